"""What came of runs, written for many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace

from django.db import connections

from autorun.chunk_ids import new_chunk_id
from autorun.clock import DatabaseNow, from_now, now_sql
from autorun.conf import settings
from autorun.crashing import crash_point
from autorun.encoding import ExceptionText
from autorun.exceptions import LeaseLost
from autorun.execution.leases import Lease, worker_name
from autorun.keys import Key
from autorun.models import Chunk, Failure, Run
from autorun.recordsets import recordset
from autorun.signals import Ending
from autorun.sql import table
from autorun.transactions import repeated_on_conflict


@dataclass(frozen=True)
class Result:
    """How one run ended; or, where it is PENDING, that it goes on in another chunk.

    It goes on after `again_in` seconds. `outputs` is JSON text. `key` names the row where the run
    was worked on.
    """

    run_id: int
    status: Run.Status
    attempts: int
    fingerprint: str
    outputs: str | None = None
    failure: ExceptionText | None = None
    again_in: float = 0.0
    key: Key = 0

    @classmethod
    def cancelled(cls, run: Run) -> Result:
        """The run is not to be done: its row has another one, or is gone."""
        return cls(run.pk, Run.Status.CANCELLED, run.attempts, run.fingerprint)

    @classmethod
    def going_on(cls, run: Run, *, again_in: float = 0.0) -> Result:
        """The run goes on in another chunk, with no attempt used up."""
        return cls(run.pk, Run.Status.PENDING, run.attempts, run.fingerprint, again_in=again_in)


@dataclass(frozen=True)
class Tally:
    """How the runs of a chunk ended so far, as the chunk's columns count them.

    Totals, not increments: a transaction that is repeated because the answer to its commit got
    lost counts nothing twice.
    """

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    moved: int = 0
    superseded_succeeded: int = 0
    superseded_failed: int = 0
    superseded_cancelled: int = 0

    @classmethod
    def of(cls, chunk: Chunk) -> Tally:
        """What the chunk's columns say."""
        return cls(**{each.name: getattr(chunk, each.name) for each in fields(cls)})


_COLUMNS = {
    "run_id": "bigint",
    "new_status": "smallint",
    "new_attempts": "smallint",
    "new_fingerprint": "fingerprint",
    "new_chunk": "bigint",
    "new_outputs": "text",
}


def record(
    lease: Lease, results: Sequence[Result], tally: Tally, *, size: int, is_last: bool
) -> Tally:
    """Write the results and what they make of the chunk's counts; those counts.

    `is_last` ends the chunk. Runs that go on are put into new chunks of at most `size`. Raises
    LeaseLost, having written nothing, where the chunk has another worker now.
    """
    tries = 0

    def attempt() -> Tally:
        nonlocal tries
        tries += 1
        counted = _counted(tally, results)
        if tries > 1 and (recorded := _already_recorded(lease, counted, is_last=is_last)):
            return recorded
        places = _Places(lease.chunk, results, size=size)
        _write_counts(lease, counted, is_last=is_last)
        crash_point("finish.counted")
        if results:
            outdated = _write_runs(lease, results, places)
            crash_point("finish.updated")
            if outdated:
                counted = _with_outdated(counted, outdated)
                _write_counts(lease, counted, is_last=is_last)
            _write_failures(lease, results)
            crash_point("finish.failures")
            if chunks := places.chunks():
                Chunk.objects.bulk_create(chunks)
                crash_point("finish.moved")
        return counted

    return repeated_on_conflict(attempt, using=settings.DATABASE, is_idempotent=True)


def endings(results: Sequence[Result]) -> Iterator[Ending]:
    """What signals tell of those runs that have succeeded or failed for good."""
    for result in results:
        if result.status in (Run.Status.SUCCEEDED, Run.Status.FAILED):
            yield Ending(result.run_id, result.key, result.attempts, result.outputs, result.failure)


def _already_recorded(lease: Lease, counted: Tally, *, is_last: bool) -> Tally | None:
    """What an earlier attempt recorded, where only the answer to its commit was lost."""
    chunk = lease.held().first()
    if chunk is None or (chunk.state == Chunk.State.FINISHED) is not is_last:
        return None
    found = Tally.of(chunk)
    ended = ("succeeded", "failed", "cancelled", "moved")
    same = all(getattr(found, name) == getattr(counted, name) for name in ended)
    return found if same else None


class _Places:
    """The chunk each result belongs to: the lease's own, or a new one where the run goes on."""

    def __init__(self, chunk: Chunk, results: Sequence[Result], *, size: int) -> None:
        self.chunk = chunk
        going_on: dict[float, list[int]] = {}
        for result in results:
            if result.status == Run.Status.PENDING:
                going_on.setdefault(result.again_in, []).append(result.run_id)
        next_id = new_chunk_id()
        self._new: list[tuple[int, float, list[int]]] = []
        for again_in, run_ids in going_on.items():
            for begin in range(0, len(run_ids), size):
                self._new.append((next_id, again_in, run_ids[begin : begin + size]))
                next_id += 1
        self._of_run = {run: chunk_id for chunk_id, _, runs in self._new for run in runs}

    def of(self, result: Result) -> int:
        return self._of_run.get(result.run_id, self.chunk.pk)

    def chunks(self) -> list[Chunk]:
        return [
            Chunk(
                pk=chunk_id,
                node_id=self.chunk.node_id,
                runner=self.chunk.runner,
                batch_id=self.chunk.batch_id,
                priority=self.chunk.priority,
                queue=self.chunk.queue,
                size=len(runs),
                not_before=from_now(again_in) if again_in else None,
            )
            for chunk_id, again_in, runs in self._new
        ]


def _counted(tally: Tally, results: Sequence[Result]) -> Tally:
    ended = Counter(result.status for result in results)
    cancelled = ended[Run.Status.CANCELLED]
    return replace(
        tally,
        succeeded=tally.succeeded + ended[Run.Status.SUCCEEDED],
        failed=tally.failed + ended[Run.Status.FAILED],
        cancelled=tally.cancelled + cancelled,
        # A cancelled run is never current: it makes room for another.
        superseded_cancelled=tally.superseded_cancelled + cancelled,
        moved=tally.moved + ended[Run.Status.PENDING],
    )


def _with_outdated(tally: Tally, outdated: Counter[int]) -> Tally:
    """Also count the runs that a newer one had taken the place of while they ran."""
    return replace(
        tally,
        superseded_succeeded=tally.superseded_succeeded + outdated[Run.Status.SUCCEEDED],
        superseded_failed=tally.superseded_failed + outdated[Run.Status.FAILED],
    )


def _write_counts(lease: Lease, tally: Tally, *, is_last: bool) -> None:
    """Lock the chunk by writing it: nothing else is written unless the lease is still held."""
    values = asdict(tally)
    if is_last:
        values.update(state=Chunk.State.FINISHED, finished_at=DatabaseNow(), expires_at=None)
    if not lease.held().update(**values):
        raise LeaseLost(f"Chunk {lease.chunk.pk} of {lease.chunk.runner} has another worker now.")


def _write_runs(lease: Lease, results: Sequence[Result], places: _Places) -> Counter[int]:
    """One UPDATE for all; how many of each status were superseded while they ran."""
    connection = connections[settings.DATABASE]
    rows = recordset(
        connection,
        _COLUMNS,
        (
            (
                result.run_id,
                int(result.status),
                result.attempts,
                result.fingerprint,
                places.of(result),
                result.outputs,
            )
            for result in results
        ),
    )
    outputs = "j.new_outputs::jsonb" if connection.vendor == "postgresql" else "j.new_outputs"
    now = now_sql(connection.vendor)
    is_cancelled = f"j.new_status = {Run.Status.CANCELLED:d}"
    is_pending = f"j.new_status = {Run.Status.PENDING:d}"
    changes = (
        f"is_current = CASE WHEN {is_cancelled} THEN NULL ELSE is_current END, "
        "status = j.new_status, attempts = j.new_attempts, fingerprint = j.new_fingerprint, "
        f"chunk_id = j.new_chunk, outputs = {outputs}, "
        f"finished_at = CASE WHEN {is_pending} THEN NULL ELSE {now} END"
    )
    runs = table(Run, connection)
    # A run that was handed over already, by a commit whose answer was lost, is another worker's.
    match = "id = j.run_id AND chunk_id = %s"
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute(
                f"UPDATE {runs} JOIN ({rows.sql}) AS j ON {match} SET {changes}",
                [*rows.params, lease.chunk.pk],
            )
            ids = [result.run_id for result in results]
            superseded = Run.objects.filter(pk__in=ids, is_current=None)
            return Counter(superseded.values_list("status", flat=True))
        cursor.execute(
            f"UPDATE {runs} SET {changes} FROM ({rows.sql}) AS j WHERE {match} "
            "RETURNING status, is_current",
            [*rows.params, lease.chunk.pk],
        )
        return Counter(status for status, is_current in cursor.fetchall() if not is_current)


def _write_failures(lease: Lease, results: Sequence[Result]) -> None:
    failures = [
        Failure(
            run_id=result.run_id,
            attempt=result.attempts,
            exception_class=result.failure.exception_class,
            message=result.failure.message,
            traceback=result.failure.traceback,
            worker=lease.worker or worker_name(),
        )
        for result in results
        if result.failure is not None
    ]
    if failures:
        Failure.objects.bulk_create(failures)
