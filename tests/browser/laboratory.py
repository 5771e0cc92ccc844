"""A laboratory with 62 runners, each in its fifth version: a million runs, made by SQL."""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection
from django.utils import timezone

from autorun.declare import registry
from autorun.models import Node, Run
from autorun.runner import QuerySetRunner
from autorun.state.clock import first_chunk_id_at
from autorun.upkeep.folding import fold_everywhere
from sample_app.models import Scan
from tests.browser import scenes
from tests.engine import declare

RUNNERS, OLDER, BATCHES = 62, 4, 200
#: Scans that each version of each runner has processed: a million runs altogether.
SCANS = 3_230
#: Runs of a chunk.
SIZE = 17


@contextmanager
def laboratory() -> Iterator[list[QuerySetRunner]]:
    """The runners alone, with their runs of the last 30 hours; ten of them are at work."""
    options = {"DATA_MODEL": Scan, "INPUT_FIELDS": ("path", "checksum"), "VERSION": "5.0"}
    names = [(f"Laboratory{n:02}Runner", f"Laboratory {n:02}") for n in range(RUNNERS)]
    classes = [declare(NAME=name, TITLE=title, **options) for name, title in names]
    with registry.registered(*classes, alone=True):
        runners = [registry.get(each.get_label()) for each in classes]
        _make(runners)
        yield runners


def _make(runners: list[QuerySetRunner]) -> None:
    scenes.add_many_scans(SCANS)
    first, *_ = nodes = [runner.get_node() for runner in runners]
    # Paused, it is planned and not handed to any broker.
    Node.objects.filter(pk=first.pk).update(paused_at=timezone.now())
    runners[0].run()
    now = timezone.now()
    since = first_chunk_id_at(now - dt.timedelta(hours=30))
    step = (first_chunk_id_at(now) - since) // ((OLDER + 1) * RUNNERS * (SCANS // SIZE + 1))
    chunks = {"since": since, "step": step, "size": SIZE}
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE planned AS " + _PLANNED, [SIZE, first.pk])
        cursor.execute("DELETE FROM autorun_run")
        cursor.execute("DELETE FROM autorun_chunk")
        cursor.execute("DELETE FROM autorun_batch")
        cursor.execute(_OLDER, [OLDER])
        labels = [runner.label for runner in runners]
        cursor.execute(_NODES, [labels, [node.pk for node in nodes]])
        cursor.execute(_BATCHES, {"batches": BATCHES})
        cursor.execute(_CHUNKS, chunks)
        cursor.execute(_RUNS, chunks)
        cursor.execute(_COUNTS)
        cursor.execute(scenes.FAIL, [scenes.TRACEBACK.replace("{message}", "ValueError")])
    Node.objects.update(paused_at=None, run_seconds=scenes.SECONDS)
    scenes.settle_tables()
    fold_everywhere(at_most=Run.objects.count())
    scenes.settle_tables()


#: The rows with their fingerprints, and the number of the chunk of each.
_PLANNED = """
SELECT object_id, fingerprint, (ROW_NUMBER() OVER (ORDER BY object_id) - 1) / %s AS chunk
FROM autorun_run WHERE node_id = %s
"""
_OLDER = """
INSERT INTO autorun_node (title, version, configuration, content_type_id, inputs, digest,
    run_seconds, paused_because, held_by, sample, created_at, folded_succeeded, folded_failed,
    folded_ignored, folded_hours, counted)
SELECT title, v || '.0', configuration, content_type_id, inputs, md5(id || 'x' || v), run_seconds,
    '', '', '', created_at - (5 - v) * interval '20 days', 0, 0, 0, folded_hours, counted
FROM autorun_node, generate_series(1, %s) AS v
"""
#: Every node with its runner's label and the number of its runner; the present ones come last.
_NODES = """
CREATE TEMPORARY TABLE node AS
SELECT each.id, given.label, given.n - 1 AS n, each.id = given.id AS is_now,
    ROW_NUMBER() OVER (ORDER BY each.version, given.n) - 1 AS place, COUNT(*) OVER () AS nodes
FROM UNNEST(%s::text[], %s::bigint[]) WITH ORDINALITY AS given (label, id, n)
JOIN autorun_node AS now ON now.id = given.id JOIN autorun_node AS each ON each.title = now.title
"""
_BATCHES = """
INSERT INTO autorun_batch (runner, node_id, trigger, requested_by, scope, is_given, is_beyond_base,
    description, state, reason, cursor, upper_bound, candidates, existing, planned, unprepared,
    folded_succeeded, folded_cancelled, token, tries, created_at, planned_at, finished_at)
SELECT label, id, CASE WHEN b %% 3 = 0 THEN 'sweep' ELSE 'backfill' END, 'ada', '{}', false, false,
    'pending rows', CASE WHEN n < 10 AND b < 62 THEN 'running' ELSE 'finished' END, '', '', '',
    3230, 2150, 1080, 0, 0, 0, 0, 0, at, at, CASE WHEN n < 10 AND b < 62 THEN NULL ELSE at END
FROM generate_series(0, %(batches)s - 1) AS b JOIN node ON is_now AND n = b %% 62,
    LATERAL (SELECT now() - (%(batches)s - b) * interval '9 minutes' AS at) AS t ORDER BY b
"""
#: The last chunk of ten runners is running, and the one before it is queued.
_CHUNKS = """
INSERT INTO autorun_chunk (id, node_id, runner, batch_id, state, reason, priority, queue, size,
    postponed_by, created_at, published_at, publications, started_at, expires_at, finished_at,
    worker, token, succeeded, failed, cancelled, moved, superseded_succeeded, superseded_failed,
    superseded_cancelled, is_folded)
SELECT %(since)s + %(step)s * (c.chunk * nodes + place), node.id, label,
    batch.ids[1 + c.chunk %% 3], state, '', 0, '', c.size, '', at, at, 1,
    CASE WHEN state <> 1 THEN at END, CASE state WHEN 2 THEN now() + interval '1 hour' END,
    CASE state WHEN 4 THEN at END,
    CASE WHEN state <> 1 THEN 'celery@lab:12' ELSE '' END, 1, 0, 0, 0, 0, 0, 0, 0, false
FROM (SELECT chunk, COUNT(*) AS size, MAX(chunk) OVER () AS last FROM planned GROUP BY 1) AS c
CROSS JOIN node LEFT JOIN (
    SELECT node_id, array_agg(id ORDER BY id) AS ids FROM autorun_batch GROUP BY 1
) AS batch ON batch.node_id = node.id,
LATERAL (SELECT now() - (1 - (c.chunk * nodes + place + 1) / ((last + 1.0) * nodes))
    * interval '30 hours' AS at) AS t,
LATERAL (SELECT CASE WHEN is_now AND n < 10 AND c.chunk = last THEN 2
    WHEN is_now AND n < 10 AND c.chunk = last - 1 THEN 1 ELSE 4 END AS state) AS s
"""
_RUNS = """
INSERT INTO autorun_run (node_id, object_id, object_key, fingerprint, is_current, chunk_id,
    status, attempts, finished_at, outputs, seconds)
SELECT node.id, object_id, '', fingerprint, true, c.id, status, LEAST(status, 1), c.finished_at,
    CASE status WHEN 1 THEN jsonb_build_object('mean', object_id %% 7) END, 0.8
FROM planned CROSS JOIN node
JOIN autorun_chunk AS c ON c.id = %(since)s + %(step)s * (planned.chunk * nodes + place),
LATERAL (SELECT CASE WHEN c.state <> 4 THEN 0 WHEN (object_id + n) %% 83 = 0 THEN 2 ELSE 1 END
    AS status) AS s ORDER BY c.id, object_id
"""
_COUNTS = """
UPDATE autorun_chunk AS c SET succeeded = good, failed = bad FROM (
    SELECT chunk_id, COUNT(*) FILTER (WHERE status = 1) AS good,
        COUNT(*) FILTER (WHERE status = 2) AS bad FROM autorun_run GROUP BY 1
) AS s WHERE s.chunk_id = c.id AND c.state = 4
"""
