"""The data behind the pages: a few scans in every state, or a million of them, made by SQL."""

import datetime as dt
import hashlib

from django.contrib.auth.models import Permission, User
from django.db import connection
from django.utils import timezone

from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.planning import batches
from autorun.planning.named import plan_keys
from autorun.runner import QuerySetRunner
from autorun.state import pulses
from autorun.triggers import on_schedule
from autorun.upkeep.folding import fold
from sample_app.models import Scan
from sample_app.runners import AnatomicalPreprocessingRunner, ScanPreprocessingRunner

#: The time that a run takes.
SECONDS = 0.8
DESCRIPTIONS = ("Anatomical T1, sagittal", "Resting state", "Diffusion, 64 directions", "Localiser")
TRACEBACK = """Traceback (most recent call last):
  File "autorun/execution/work.py", line 161, in _result
    value = self.analysis.call(**self._arguments(row))
  File "sample_app/images.py", line 41, in read_volume
    return decode(path.read_bytes())
{message}
"""


def add_user(name: str, *codenames: str, is_superuser: bool = False) -> User:
    """A user of the admin with those permissions; the password is the name."""
    user = User.objects.create_user(name, password=name, is_staff=True, is_superuser=is_superuser)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return user


def add_scans(number: int, *, first: int = 1) -> list[Scan]:
    return Scan.objects.bulk_create(
        Scan(
            path=f"/data/scans/sub-{n:03}/ses-{n % 3 + 1}/scan-{n:04}.nii.gz",
            description=DESCRIPTIONS[n % len(DESCRIPTIONS)],
            modality="MR",
            size=1_000_000 + n,
            checksum=hashlib.sha256(str(n).encode()).hexdigest(),
        )
        for n in range(first, first + number)
    )


def few() -> QuerySetRunner:
    """Twenty scans: done, failed for two reasons, ignored, running, queued, waiting, pending."""
    runner = ScanPreprocessingRunner()
    scans = add_scans(20)
    node = runner.get_node()
    older = Node.objects.create(
        title=node.title,
        version="0.9",
        configuration={"harder": False, "better": 100, "smoother": 2},
        content_type=node.content_type,
        digest="0" * 64,
    )
    Node.objects.filter(pk=older.pk).update(created_at=timezone.now() - dt.timedelta(days=40))
    now = timezone.now()
    batch = batches.begin(
        runner,
        Batch.Trigger.BACKFILL,
        description="pending rows",
        requested_by="ada",
        candidates=18,
        planned=18,
    )
    Node.objects.filter(pk=node.pk).update(paused_at=now)
    plan_keys(runner, [scan.pk for scan in scans[:18]])
    Node.objects.filter(pk=node.pk).update(paused_at=None, run_seconds=SECONDS)
    chunk = Chunk.objects.get(runner=runner.label)
    Chunk.objects.filter(pk=chunk.pk).update(batch=batch, priority=Chunk.Priority.BACKFILL)
    runs = list(Run.objects.filter(node=node).order_by("pk"))
    for hours, part in enumerate((runs[:3], runs[3:8], runs[8:12])):
        _finish(runner, part, at=now - dt.timedelta(hours=hours * 5, minutes=3), batch=batch)
    for place, state in enumerate((Chunk.State.RUNNING, Chunk.State.QUEUED)):
        _move(runner, runs[12 + 2 * place : 14 + 2 * place], state, batch=batch)
    Chunk.objects.filter(pk=chunk.pk).update(size=2)
    Batch.objects.filter(pk=batch.pk).update(planned_at=now, expires_at=None)
    return runner


def lively() -> QuerySetRunner:
    """A day in a laboratory: most scans done, some failed, a backfill on its way; for pictures.

    The backfill started a few minutes ago, and all its runs take as long as the median says.
    """
    now = timezone.now()
    scans = add_scans(1_200)
    for runner in (AnatomicalPreprocessingRunner(), ScanPreprocessingRunner()):
        node = runner.get_node()
        Node.objects.filter(pk=node.pk).update(paused_at=now, run_seconds=SECONDS)
        nightly = batches.begin(runner, Batch.Trigger.SWEEP, description="pending rows")
        batch = batches.begin(
            runner,
            Batch.Trigger.BACKFILL,
            description="pending rows",
            requested_by="ada",
            candidates=len(scans),
        )
        plan_keys(runner, [scan.pk for scan in scans])
        runs = list(Run.objects.filter(node=node).order_by("pk"))
        is_busy = type(runner) is ScanPreprocessingRunner
        old, last = (len(runs) - 320, len(runs) - 150) if is_busy else (len(runs), len(runs))
        for begin in (*range(0, old, 40), *range(old, last, 40)):
            end = min(begin + 40, old if begin < old else last)
            part = runs[begin:end]
            ago = dt.timedelta(seconds=(last - end) * SECONDS + 3)
            if begin < old:
                ago = dt.timedelta(hours=23.2 * (1 - begin / old) ** 1.5, minutes=15)
            failed = [run for run in part if run.object_id % 37 in (5, 6)]
            _finish(
                runner, part, at=now - ago, batch=nightly if begin < old else batch, failed=failed
            )
        if last < len(runs):
            _move(runner, runs[last : last + 38], Chunk.State.RUNNING, batch=batch, done=30)
            _move(runner, runs[last + 38 : last + 70], Chunk.State.QUEUED, batch=batch)
            _move(runner, runs[last + 70 :], Chunk.State.WAITING, batch=batch)
        Chunk.objects.filter(node=node).exclude(pk__in=Run.objects.values("chunk_id")).delete()
        Node.objects.filter(pk=node.pk).update(paused_at=None)
        night = now - dt.timedelta(hours=23.5)
        Batch.objects.filter(pk=nightly.pk).update(
            state=Batch.State.FINISHED,
            created_at=night,
            planned_at=night,
            finished_at=now - dt.timedelta(minutes=15),
            candidates=1_190,
            existing=1_190 - old,
            planned=old,
        )
        begun = now - dt.timedelta(minutes=3)
        Batch.objects.filter(pk=batch.pk).update(
            created_at=begun,
            planned_at=begun,
            expires_at=None,
            existing=old,
            planned=len(runs) - old,
        )
        if not is_busy:
            Batch.objects.filter(pk=batch.pk).delete()
    add_scans(14, first=2_000)
    pulses.note("upkeep", timezone.now())  # a worker is running
    on_schedule.sync()
    return ScanPreprocessingRunner()


def add_many_scans(
    number: int, *, folder: str = "scans", description: str = "Anatomical T1"
) -> None:
    """Scans made by SQL of PostgreSQL."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO sample_app_scan "
            "(path, description, modality, size, checksum, thumbnail, created_at, updated_at) "
            "SELECT '/data/' || %s || '/scan-' || n || '.nii.gz', %s, 'MR', n, "
            "md5(n::text) || md5(n::text), '', now(), now() FROM generate_series(1, %s) AS n",
            [folder, description, number],
        )


def many(number: int = 1_000_000, *, run_seconds: float = 0.005) -> QuerySetRunner:
    """A million scans, most of them done within the last day, some failed, some on their way."""
    runner = ScanPreprocessingRunner()
    add_many_scans(number)
    node = runner.get_node()
    # Paused, it is planned and not handed to any broker.
    Node.objects.filter(pk=node.pk).update(paused_at=timezone.now(), run_seconds=run_seconds)
    batch = runner.backfill(requested_by="ada")
    with connection.cursor() as cursor:
        cursor.execute(_FINISH_RUNS, [batch.pk])
        cursor.execute(_FINISH_CHUNKS)
        cursor.execute(FAIL, [TRACEBACK.replace("{message}", "ValueError: no pixel data")])
    add_many_scans(3_000, folder="new", description="Resting state")
    Node.objects.filter(pk=node.pk).update(paused_at=None)
    settle_tables()
    fold(node.pk, at_most=number)
    settle_tables()
    return runner


def many_alone() -> QuerySetRunner:
    """The same, each run in a chunk of its own, as those are that take a second or more."""
    return many(run_seconds=2.0)


#: All but the newest twenty chunks have ended, over the last 30 hours; one run in 83 failed.
_FINISH_RUNS = """
WITH c AS (
    SELECT id, ROW_NUMBER() OVER (ORDER BY id DESC) AS n, COUNT(*) OVER () AS total
    FROM autorun_chunk WHERE batch_id = %s
)
UPDATE autorun_run AS r SET
    status = CASE WHEN r.id %% 83 = 0 THEN 2 ELSE 1 END, attempts = 1,
    finished_at = now() - (c.n::float / c.total) * interval '30 hours',
    outputs = CASE WHEN r.id %% 83 = 0 THEN NULL ELSE '{"mean": 0.5}'::jsonb END
FROM c WHERE c.id = r.chunk_id AND c.n > 20
"""
_FINISH_CHUNKS = """
WITH s AS (
    SELECT chunk_id, MAX(finished_at) AS finished_at,
        COUNT(*) FILTER (WHERE status = 1) AS good, COUNT(*) FILTER (WHERE status = 2) AS bad
    FROM autorun_run WHERE status IN (1, 2) GROUP BY 1
)
UPDATE autorun_chunk AS c SET state = 4, succeeded = good, failed = bad, worker = 'celery@lab:12',
    published_at = s.finished_at - interval '3 s', started_at = s.finished_at - interval '1.1 s',
    finished_at = s.finished_at
FROM s WHERE s.chunk_id = c.id
"""
FAIL = """
INSERT INTO autorun_failure
    (run_id, attempt, exception_class, message, traceback, worker, failed_at)
SELECT id, 1, CASE WHEN id % 3 = 0 THEN 'OSError' ELSE 'ValueError' END,
    CASE WHEN id % 3 = 0 THEN 'Timeout after ' || id % 90 || ' s'
    ELSE '/data/scans/sub-' || object_id || '/scan.nii.gz has no pixel data.' END,
    %s, 'celery@lab:12', finished_at
FROM autorun_run WHERE status = 2
""".replace("id % ", "id %% ")


def settle_tables() -> None:
    # VACUUM does not run in a transaction, and a table just written is not what pages meet.
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def _finish(
    runner: QuerySetRunner,
    runs: list[Run],
    *,
    at: dt.datetime,
    batch: Batch,
    failed: list[Run] | None = None,
) -> None:
    """The runs have ended; every third failed, where it is not said which."""
    failed = runs[::3] if failed is None else failed
    chunk = Chunk.objects.create(
        node=runner.get_node(),
        runner=runner.label,
        batch=batch,
        size=len(runs),
        state=Chunk.State.FINISHED,
        succeeded=len(runs) - len(failed),
        failed=len(failed),
        published_at=at - dt.timedelta(seconds=len(runs) * SECONDS + 1),
        started_at=at - dt.timedelta(seconds=len(runs) * SECONDS),
        finished_at=at,
        worker="celery@workstation:4242",
    )
    # For their second attempt: after the first one had failed.
    Chunk.objects.filter(pk=chunk.pk).update(created_at=at - dt.timedelta(seconds=45))
    outputs = {"mean": 101.37, "std": 12.5, "shape": [256, 256, 180], "range": [0, 255]}
    Run.objects.filter(pk__in=[run.pk for run in runs]).update(
        chunk=chunk, attempts=1, finished_at=at, status=Run.Status.SUCCEEDED, outputs=outputs
    )
    Run.objects.filter(pk__in=[run.pk for run in failed]).update(
        status=Run.Status.FAILED, outputs=None, attempts=2
    )
    for place, run in enumerate(failed):
        kind, message = "ValueError", f"/data/scans/sub-{run.object_id:03} has no pixel data."
        if place == 1:
            kind, message = "OSError", f"[Errno 5] Cannot read 'scan-{run.object_id:04}.nii.gz'"
        for attempt in (1, 2):
            Failure.objects.create(
                run=run,
                attempt=attempt,
                exception_class=kind,
                message=message,
                traceback=TRACEBACK.replace("{message}", f"{kind}: {message}"),
                worker="celery@workstation:4242",
                failed_at=at - dt.timedelta(seconds=46 * (2 - attempt)),
            )


def _move(
    runner: QuerySetRunner, runs: list[Run], state: Chunk.State, *, batch: Batch, done: int = 0
) -> None:
    """The runs are in a chunk of that state; the first ones are `done`, each in SECONDS."""
    now = timezone.now()
    counts = {"size": len(runs), "succeeded": done}
    chunk = Chunk.objects.create(
        node=runner.get_node(), runner=runner.label, batch=batch, state=state, **counts
    )
    ended = Run.objects.filter(pk__in=[run.pk for run in runs[:done]])
    ended.update(status=Run.Status.SUCCEEDED, attempts=1, finished_at=now, seconds=SECONDS)
    times = {"created_at": now - dt.timedelta(seconds=25)}
    if state != Chunk.State.WAITING:
        times["published_at"] = now - dt.timedelta(seconds=20)
    if state == Chunk.State.RUNNING:
        lease = {"expires_at": now + dt.timedelta(minutes=30), "worker": "celery@workstation:4242"}
        began = now - dt.timedelta(seconds=max(3, done * SECONDS))
        times |= {"started_at": began, **lease}
    Chunk.objects.filter(pk=chunk.pk).update(**times)
    Run.objects.filter(pk__in=[run.pk for run in runs]).update(chunk=chunk)
