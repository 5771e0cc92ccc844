"""The cost of comparing sets of rows, with nothing pending."""

from __future__ import annotations

from collections.abc import Iterator

from django.db import connection

from autorun.runner import Members
from bench import stage
from bench.measuring import Line, in_turns
from bench.scale import Scale
from bench.subject.models import Owner
from bench.subject.runners import TitleRunner

MEMBERS = 10


class OwnerRunner(TitleRunner):
    DATA_MODEL = Owner
    ANALYSIS_CONFIGURATION = {"factor": 5}
    INPUT_FIELDS = (Members("members", "title"),)


def measure(scale: Scale) -> Iterator[Line]:
    runner = OwnerRunner()
    _fill(scale.sets)
    node = stage.hold(runner)
    runner.adopt()
    stage.settle()
    timings = in_turns(
        {"autorun": runner.backfill, "aggregate": lambda: _by_hand(node.pk)}, rounds=scale.rounds
    )
    yield timings.line(
        *("autorun", "aggregate"),
        key="sets-nothing",
        work=f"compare {scale.sets:,} sets of {MEMBERS}, nothing pending",
        against="a hand-written aggregate: MD5 of each set's values in order, joined with the runs",
        goal=2.5,
        rows=scale.sets,
    )
    stage.empty_state()
    stage.empty("subject_member", "subject_owner")


def _fill(count: int) -> None:
    stage.empty_state()
    stage.empty("subject_member", "subject_owner")
    stage.execute(f"INSERT INTO subject_owner (id) SELECT i FROM {stage.series(count)}")
    stage.execute(
        "INSERT INTO subject_member (id, owner_id, title) "
        "SELECT i, 1 + (i - 1) / %s, 'A title of usual length, number ' || i "
        f"FROM {stage.series(count * MEMBERS)}",
        [MEMBERS],
    )
    if connection.vendor == "postgresql":
        for table in ("subject_owner", "subject_member"):
            stage.execute(f"VACUUM ANALYZE {table}")


def _by_hand(node_id: int) -> int:
    """The number of owners whose set has another digest than their run has."""
    is_postgresql = connection.vendor == "postgresql"
    gather = "STRING_AGG(title, '|' ORDER BY id)" if is_postgresql else "GROUP_CONCAT(title, '|')"
    same = (
        "r.fingerprint = MD5(s.titles)::uuid" if is_postgresql else "r.fingerprint = MD5(s.titles)"
    )
    (count,) = stage.execute(
        f"SELECT COUNT(*) FROM (SELECT owner_id, {gather} AS titles FROM "
        "(SELECT id, owner_id, title FROM subject_member ORDER BY owner_id, id) AS m "
        "GROUP BY owner_id) AS s WHERE NOT EXISTS (SELECT 1 FROM autorun_run r "
        "WHERE r.node_id = %s AND r.object_id = s.owner_id AND r.object_key = '' "
        f"AND r.is_current = TRUE AND {same})",
        [node_id],
    )
    return int(count)
