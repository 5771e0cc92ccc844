"""Results of runs, recorded for many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from django.db import connections
from django.db.models import Exists, OuterRef, QuerySet

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.hooks import backoff_of
from autorun.exceptions import LeaseLost
from autorun.models import Chunk, Failure, Run
from autorun.planning.cancelling import cancel_started
from autorun.signals import Ending
from autorun.state.clock import NOW_SQL, DatabaseNow, from_now, new_chunk_id
from autorun.state.exception_text import ExceptionText
from autorun.state.keys import Key, key_kind
from autorun.state.leases import Lease, ends_at, held, worker_name
from autorun.state.managers import RETIRED, RunStatus
from autorun.state.probes import crash_point
from autorun.state.sql import (
    Fragment,
    Slot,
    Unmatched,
    changed_by,
    prepared_update,
    recordset,
    update_from,
)
from autorun.state.transactions import repeated_on_conflict


class Lands(Protocol):
    """Writes a project's own rows for successes: `autorun.execution.landing.Landing`."""

    keeps_outputs: bool

    def land(self, results: Sequence[Result]) -> None: ...


class Result(NamedTuple):
    """How one run ended; if it is PENDING, it moves to another chunk that starts in `again_in` s.

    With a `reason`, that chunk is parked until then; `postponed_by` is the RetryLater that it waits
    for. `outputs` is JSON text; the reason if the run is not applicable. `key` names the row of a
    run that has finished. `seconds` are those of an attempt that was made.
    """

    run_id: int
    status: Run.Status
    attempts: int
    fingerprint: str
    outputs: str | None = None
    failure: ExceptionText | None = None
    again_in: float = 0.0
    reason: str = ""
    key: Key = 0
    seconds: float | None = None
    postponed_by: str = ""

    @classmethod
    def cancelled(cls, run: Run) -> Result:
        """The run is not executed: its row has a newer run, or is gone."""
        return cls(run.pk, Run.Status.CANCELLED, run.attempts, run.fingerprint)

    @classmethod
    def failed(
        cls,
        run: Run,
        failure: ExceptionText,
        runner: Runner | None,
        *,
        fingerprint: str,
        backoff: Callable[[Runner, int], float] = backoff_of,
        is_lasting: bool = False,
    ) -> Result:
        """The attempt failed: the run is retried after the backoff, or has no attempts left.

        If the reason `is_lasting`, there is no retry. Without a `runner` the run is always retried,
        at once.
        """
        attempts = run.attempts + 1
        failed = cls(run.pk, Run.Status.FAILED, attempts, fingerprint, failure=failure)
        if runner is None:
            return failed._replace(status=Run.Status.PENDING)
        if attempts < runner.MAX_ATTEMPTS and not is_lasting:
            pause = backoff(runner, attempts)
            return failed._replace(status=Run.Status.PENDING, again_in=pause)
        return failed._replace(key=key_kind(runner.get_model()).of(run))

    @classmethod
    def moved(cls, run: Run, **options: Any) -> Result:
        """The run moves to another chunk without using an attempt."""
        return cls(run.pk, Run.Status.PENDING, run.attempts, run.fingerprint, **options)

    def kept_pending(self, *, again_in: float, reason: str) -> Result:
        """The failure, counted as that of a runner that is held up: a last attempt is returned."""
        pending = self._replace(status=Run.Status.PENDING, again_in=again_in, reason=reason)
        if self.status == Run.Status.PENDING:
            return pending
        return pending._replace(attempts=self.attempts - 1, failure=None)


@dataclass(frozen=True)
class Tally:
    """How the runs of a chunk have ended so far, as the chunk's columns count them.

    Totals, not increments: a transaction that is repeated because the answer to its commit was
    lost counts nothing twice.
    """

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    moved: int = 0
    superseded_succeeded: int = 0
    superseded_failed: int = 0
    superseded_cancelled: int = 0
    not_applicable: int = 0
    superseded_not_applicable: int = 0

    @classmethod
    def of(cls, chunk: Chunk) -> Tally:
        return cls(*_counts_of(chunk))


_failure_of = attrgetter("failure")
_status_of = attrgetter("status")
_COUNTS = tuple(each.name for each in fields(Tally))
_KNOWN = tuple(f"known_{name}" for name in _COUNTS)
_counts_of = attrgetter(*_COUNTS)


#: Makes a run what its row `s` of the results says, by vendor.
_CHANGES = {
    vendor: (
        "status = s.new_status, attempts = s.new_attempts, "
        f"fingerprint = CASE WHEN fingerprint = '{RETIRED}' THEN fingerprint "
        "ELSE s.new_fingerprint END, "
        f"outputs = s.new_outputs{'::jsonb' if vendor == 'postgresql' else ''}, "
        "seconds = s.new_seconds, "
        f"finished_at = CASE WHEN s.new_status = {Run.Status.PENDING:d} THEN NULL ELSE {now} END"
    )
    for vendor, now in NOW_SQL.items()
}
#: If a run is cancelled or moved. SQLite writes indexed columns anew even if they stay as they are.
_CHANGES_OF_UNFINISHED = (
    f", is_current = CASE WHEN s.new_status = {Run.Status.CANCELLED:d} THEN NULL "
    "ELSE is_current END, chunk_id = s.new_chunk"
)
_COLUMNS = {
    "run_id": "bigint",
    "new_status": "smallint",
    "new_attempts": "smallint",
    "new_fingerprint": "fingerprint",
    "new_chunk": "bigint",
    "new_outputs": "text",
    "new_seconds": "real",
}


def record(
    lease: Lease,
    results: Sequence[Result],
    tally: Tally,
    *,
    size: int,
    is_last: bool,
    is_followed: bool = False,
    build: int | None = None,
    landing: Lands | None = None,
) -> Tally:
    """Write the results and the counts of the chunk that follow from them. Return those counts.

    `tally` has the counts so far. `is_last` finishes the chunk. If it `is_followed`, it keeps its
    lease until the caller has planned what follows; if the lease ends first, upkeep does. `build`
    made the attempts. Moved runs go to new chunks of at most `size`. A result is skipped if an
    earlier call, whose commit got no answer, has recorded or moved its run. `landing` lands the
    outputs of the successes, or raises NotLanded. If the database has forgotten earlier results,
    the chunk waits for a worker to repeat them. Raises LeaseLost, with nothing written, if the
    chunk has another worker now.
    """
    statuses = set(map(_status_of, results))
    is_moving = Run.Status.PENDING in statuses
    new_chunks = _new_chunks(lease.chunk, results, size=size) if is_moving else []
    is_stored = landing is None or landing.keeps_outputs
    source = _as_source(lease.chunk, results, new_chunks, is_stored=is_stored)
    built_by = "NULL"
    if build is not None:
        built_by = f"CASE WHEN s.new_seconds IS NULL THEN NULL ELSE {build:d} END"
    changes = f"{_CHANGES[connections[settings.DATABASE].vendor]}, build_id = {built_by}"
    if is_moving or Run.Status.CANCELLED in statuses:
        changes += _CHANGES_OF_UNFINISHED
    ends = {"is_last": is_last, "keeps_lease": is_last and is_followed}
    recording = _Recording(lease, results, tally, new_chunks, source, changes, landing, **ends)
    return repeated_on_conflict(recording.attempt, is_idempotent=True)


@dataclass(frozen=True)
class _Recording:
    """A transaction that records results; it may be repeated."""

    lease: Lease
    results: Sequence[Result]
    tally: Tally
    new_chunks: list[tuple[Chunk, list[int]]]
    source: Fragment
    changes: str
    landing: Lands | None
    is_last: bool
    keeps_lease: bool

    def attempt(self) -> Tally:
        chunk, results = self.lease.chunk, self.results
        known, expected = self.tally, _counted(self.tally, results)
        of_lease = {"chunk_id": chunk.pk, "token": self.lease.token}
        as_known = dict(zip(_KNOWN, vars(known).values(), strict=True))
        ends = (self.is_last, self.keeps_lease)
        # This locks the chunk.
        count = _WRITE_COUNTS[True, *ends](**of_lease, **vars(expected), **as_known)
        # A commit whose confirmation was lost has recorded or moved its runs: they stay.
        only = Fragment(f"chunk_id = %s AND status = {Run.Status.PENDING:d}", (chunk.pk,))
        runs: dict[str, Any] = {"source": self.source, "key": "run_id", "only": only}
        runs["returning"] = "id, is_current"
        try:
            found = update_from(Run, self.changes, **runs, first=count)
            is_expected = True
        except Unmatched:
            # An answer was lost, or runs of the chunk were cancelled or ignored, or are to be.
            is_expected, known = False, _recorded(self.lease, results)
            found = update_from(Run, self.changes, **runs)
        written: dict[int, bool | None] = dict(found)
        crash_point("finish.updated")
        if self.landing is not None:
            _land(self.landing, results, written)
        counted = _counted(known, results, written)
        if not is_expected or counted != expected:
            changed_by(_WRITE_COUNTS[False, *ends](**of_lease, **vars(counted)))
        ended = counted.succeeded + counted.failed + counted.cancelled + counted.moved
        if self.is_last and ended != chunk.size:
            # One that was finished waits again if it still has pending runs.
            pending = Run.objects.pending().filter(chunk_id=OuterRef("pk"))
            unended = self.lease.held().filter(Exists(pending))
            unended.update(state=Chunk.State.WAITING, finished_at=None, expires_at=None)
        if any(map(_failure_of, results)):
            Failure.objects.bulk_create(_failures(self.lease, results, written))
        crash_point("finish.failures")
        if self.new_chunks and (chunks := _filled(self.new_chunks, written)):
            Chunk.objects.bulk_create(chunks)
            crash_point("finish.moved")
        return counted


def endings(results: Sequence[Result]) -> Iterator[Ending]:
    """The signals' values for the runs that have succeeded or have no attempts left."""
    for result in results:
        if result.status in (Run.Status.SUCCEEDED, Run.Status.FAILED):
            yield Ending(result.run_id, result.key, result.attempts, result.outputs, result.failure)


def _land(landing: Lands, results: Sequence[Result], written: Mapping[int, bool | None]) -> None:
    # The row of a superseded run gets the outputs of the next one.
    current = (each for each in results if written.get(each.run_id))
    if done := [each for each in current if each.status == Run.Status.SUCCEEDED]:
        landing.land(done)
        crash_point("finish.landed")


def _recorded(lease: Lease, results: Sequence[Result]) -> Tally:
    """Lock the chunk and return its counts.

    Raises LeaseLost. First cancel runs that have not succeeded and whose cancellation was
    requested.
    """
    chunk = lease.held().select_for_update().first()
    if chunk is None:
        raise LeaseLost(f"Chunk {lease.chunk.pk} of {lease.chunk.runner} has another worker now.")
    left = {each.run_id for each in results if each.status in (RunStatus.PENDING, RunStatus.FAILED)}
    if asked := left.intersection(chunk.cancelling or ()):
        cancel_started(lease.held(), run_ids=asked)
        crash_point("cancel.started")
        chunk = lease.held().get()
    return Tally.of(chunk)


def _new_chunks(
    chunk: Chunk, results: Sequence[Result], *, size: int
) -> list[tuple[Chunk, list[int]]]:
    """Chunks of at most `size` for the moved runs, each with the ids of its runs."""
    moved: dict[tuple[float, str], list[Result]] = {}
    for result in results:
        if result.status == Run.Status.PENDING:
            moved.setdefault((result.again_in, result.reason), []).append(result)
    new_chunks = []
    next_id = new_chunk_id()
    for (again_in, reason), alike in moved.items():
        run_ids = [each.run_id for each in alike]
        # The same for all: a chunk for each message would undo what chunks are for.
        postponed_by = next((each.postponed_by for each in alike if each.postponed_by), "")
        parked: dict[str, Any] = {}
        if reason:
            parked = {"state": Chunk.State.PARKED, "reason": reason}
            if chunk.reason:  # it has been parked before, since then
                parked["created_at"] = chunk.created_at
        for begin in range(0, len(run_ids), size):
            new = Chunk(
                pk=next_id,
                node_id=chunk.node_id,
                runner=chunk.runner,
                batch_id=chunk.batch_id,
                priority=chunk.priority,
                queue=chunk.queue,
                not_before=from_now(again_in) if again_in else None,
                postponed_by=postponed_by,
                **parked,
            )
            new_chunks.append((new, run_ids[begin : begin + size]))
            next_id += 1
    return new_chunks


def _filled(new_chunks: list[tuple[Chunk, list[int]]], written: Container[int]) -> list[Chunk]:
    """The new chunks that have runs among those `written`, with their sizes."""
    for chunk, run_ids in new_chunks:
        chunk.size = sum(run_id in written for run_id in run_ids)
    return [chunk for chunk, _ in new_chunks if chunk.size]


def _counted(
    tally: Tally, results: Sequence[Result], written: Mapping[int, bool | None] | None = None
) -> Tally:
    """The counts with the results; with those `written` alone, if given.

    The value of a written run says whether it was still current when it ended.
    """
    ended: Counter[Run.Status] = Counter()
    superseded: Counter[Run.Status] = Counter()
    for result in results:
        if written is None or result.run_id in written:
            ended[result.status] += 1
            if written is not None and not written[result.run_id]:
                superseded[result.status] += 1
    cancelled, apart = ended[Run.Status.CANCELLED], ended[Run.Status.NOT_APPLICABLE]
    superseded_apart = superseded[Run.Status.NOT_APPLICABLE]
    return Tally(
        succeeded=tally.succeeded + ended[Run.Status.SUCCEEDED],
        failed=tally.failed + ended[Run.Status.FAILED],
        cancelled=tally.cancelled + cancelled + apart,
        moved=tally.moved + ended[Run.Status.PENDING],
        superseded_succeeded=tally.superseded_succeeded + superseded[Run.Status.SUCCEEDED],
        superseded_failed=tally.superseded_failed + superseded[Run.Status.FAILED],
        # A cancelled run is never current, so that its row can have another.
        superseded_cancelled=tally.superseded_cancelled + cancelled + superseded_apart,
        not_applicable=tally.not_applicable + apart,
        superseded_not_applicable=tally.superseded_not_applicable + superseded_apart,
    )


def _counting(
    as_known: bool, is_last: bool, is_followed: bool
) -> tuple[QuerySet[Chunk], dict[str, Any]]:
    chunk = held(Slot("chunk_id"), Slot("token"))
    changes: dict[str, Any] = {name: Slot(name) for name in _COUNTS}
    if as_known:
        known = zip(_COUNTS, map(Slot, _KNOWN), strict=True)
        chunk = chunk.filter(**dict(known), cancelling__isnull=True)
    if is_last:
        changes |= {"state": Chunk.State.FINISHED, "finished_at": DatabaseNow()}
        changes["expires_at"] = ends_at() if is_followed else None
    return chunk, changes


#: By whether the counts are as known, the chunk is finished, and it keeps its lease.
_WRITE_COUNTS = {
    each: prepared_update(partial(_counting, *each)) for each in product((True, False), repeat=3)
}


def _as_source(
    chunk: Chunk,
    results: Sequence[Result],
    new_chunks: list[tuple[Chunk, list[int]]],
    *,
    is_stored: bool,
) -> Fragment:
    """The results as rows of a table, each with the new chunk of its run."""
    chunk_ids: dict[int, int] = {}
    for new, run_ids in new_chunks:
        chunk_ids.update(dict.fromkeys(run_ids, new.pk))
    rows = []
    for result in results:
        chunk_id = chunk_ids.get(result.run_id, chunk.pk)
        row = (result.run_id, int(result.status), result.attempts, result.fingerprint)
        rows.append((*row, chunk_id, result.outputs if is_stored else None, result.seconds))
    return recordset(connections[settings.DATABASE], _COLUMNS, rows)


def _failures(lease: Lease, results: Sequence[Result], written: Container[int]) -> list[Failure]:
    return [
        Failure(
            run_id=result.run_id,
            attempt=result.attempts,
            worker=lease.worker or worker_name(),
            **asdict(result.failure),
        )
        for result in results
        if result.failure is not None and result.run_id in written
    ]
