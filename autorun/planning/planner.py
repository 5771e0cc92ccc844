"""Planning of one window: count candidates, supersede runs and insert new ones."""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from django.db import DatabaseError
from django.db.models import F

from autorun import signals
from autorun.conf import settings
from autorun.declare import nodes
from autorun.declare.base import Runner
from autorun.dispatch.messages import queue_of
from autorun.dispatch.sizes import chunk_size
from autorun.exceptions import LeaseLost, WorkerLost
from autorun.models import UNPREPARED, Batch, Chunk, Failure, Node, Run
from autorun.planning import damping, statements
from autorun.planning.batches import Outcome
from autorun.planning.cancelling import finish_emptied
from autorun.planning.candidates import Candidates, candidates_of
from autorun.planning.reasons import PENDING, SELECTIONS, Selection
from autorun.planning.rows import Row
from autorun.planning.statements import Counts, Redo
from autorun.planning.windows import Window
from autorun.state.clock import new_chunk_id
from autorun.state.exception_text import describe_exception
from autorun.state.keys import Key, key_kind
from autorun.state.logs import get_logger
from autorun.state.probes import crash_point
from autorun.state.transactions import has_left_connections, repeated_on_conflict, unlocked

logger = get_logger(__name__)

#: How often the rows of a window are counted and planned if other processes plan some of them.
MOST_ROUNDS = 10
#: Triggers of batches that a hold stops.
AUTOMATIC = (Batch.Trigger.SWEEP, Batch.Trigger.RELATED, Batch.Trigger.WRITE)


@dataclass(frozen=True)
class Planner:
    """Plans windows of one runner's rows.

    A `status` other than PENDING records runs that need no work: SUCCEEDED adopts rows, with the
    outputs of their last success in the nodes `outputs_from`, and CANCELLED ignores them.
    """

    runner: Runner
    node_id: int
    priority: int
    selection: Selection = PENDING
    batch: Batch | None = None
    status: Run.Status = Run.Status.PENDING
    counts_undone: bool = False
    outputs_from: Sequence[int] = ()

    def count(self, window: Window) -> Outcome:
        """The outcome that planning `window` would have."""
        return _expected(self._count(window.candidates), window)

    def plan(
        self,
        window: Window,
        *,
        limit: int | None = None,
        also: Callable[[Outcome], None] | None = None,
    ) -> Outcome:
        """Record runs for the pending rows of `window`, at most `limit`.

        Without a batch, runs that wait with a lower priority get this one and count as planned. If
        there are any, `also` is called with the outcome in the transaction that records them.
        """
        try:
            found = self._count(window.candidates)
        except DatabaseError as error:
            if not has_left_connections(error):  # a hook may have changed the session unnoticed
                raise
            found = self._count(window.candidates)
        expected = _expected(found, window)
        is_held = found.is_held and self._is_automatic
        is_nothing = not (expected.planned or expected.unprepared or found.behind)
        if is_held or limit == 0 or is_nothing:
            return replace(expected, planned=0)

        def attempt() -> Outcome:
            outcome = replace(expected, planned=self._record(window, found, limit=limit))
            if also is not None:
                also(outcome)
            crash_point("plan.booked")
            return outcome

        outcome = repeated_on_conflict(attempt, on_conflict=self._restore_what_is_forgotten)
        crash_point("plan.committed")
        return outcome

    @property
    def _may_overtake(self) -> bool:
        """Whether the rows were saved or written: these leave a backlog, even a paused one."""
        return self.batch is None and self.priority >= Chunk.Priority.WRITE

    @property
    def _is_automatic(self) -> bool:
        """Whether no person and no call requested these rows: a hold leaves them pending."""
        is_asked = self.batch is not None and self.batch.trigger not in AUTOMATIC
        return self.status == Run.Status.PENDING and not is_asked

    def _restore_what_is_forgotten(self) -> None:
        """Make the node again if the database lost it. Raises LeaseLost if it lost the batch."""
        nodes.restore(self.runner, self.node_id)
        if self.batch is not None and not Batch.objects.filter(pk=self.batch.pk).exists():
            raise LeaseLost(f"{self.batch} is no longer in the database.")

    def _count(self, candidates: Candidates | None) -> Counts:
        if candidates is None:
            held = Node.objects.filter(pk=self.node_id).exclude(held_at=None)
            return Counts(is_held=self._is_automatic and held.exists())
        return statements.count(
            candidates,
            self.selection,
            counts_undone=self.counts_undone,
            priority=self.priority if self._may_overtake else None,
        )

    def _record(self, window: Window, found: Counts, *, limit: int | None) -> int:
        planned = 0
        if window.candidates is not None:
            if found.behind:
                first_chunk, size = new_chunk_id(), self._size(found)
                run_ids = statements.behind(window.candidates, self.priority)
                planned = move_ahead(run_ids, first_chunk=first_chunk, size=size)
                if planned:
                    self._create_chunks(first_chunk, {}, is_empty=False)
            planned += self._insert(window.candidates, found, new_chunk_id(), limit=limit)
        if window.unprepared:
            self._fail(window.unprepared)
        return planned

    def _insert(
        self, candidates: Candidates, found: Counts, first_chunk: int, *, limit: int | None
    ) -> int:
        """Insert runs for the candidates in the selection, in chunks from `first_chunk` on."""
        # Meanwhile another process may make a run of such a row, or cancel one, so that an earlier
        # result is current again. That one may be for another input than the row's, so the rows are
        # counted and planned once more. After MOST_ROUNDS the rest stays pending.
        total = 0
        for _ in range(MOST_ROUNDS):
            left = None if limit is None else limit - total
            inserted = self._insert_once(candidates, found, first_chunk, limit=left)
            total += inserted
            expected = found.redo + found.missing
            if inserted >= (expected if left is None else min(expected, left)):
                break
            now = self._count(candidates)
            if not found.redo and now == found:
                break
            found, first_chunk = now, new_chunk_id()
        else:
            logger.warning("%s: some rows change too fast to be planned now.", self.runner.label)
        return total

    def _insert_once(
        self, candidates: Candidates, found: Counts, first_chunk: int, *, limit: int | None
    ) -> int:
        size = self._size(found)
        insert = partial(
            statements.insert, size=size, status=self.status, outputs_from=self.outputs_from
        )
        superseded: dict[str, int] = {}
        inserted = damped = 0
        redo = self._redone(candidates, found, limit=limit) if found.redo else []
        if redo:
            inserted, damped, superseded = self._insert_again(insert, redo, first_chunk)
        left = None if limit is None else limit - len(redo)
        if found.missing and left != 0:
            next_chunk = first_chunk + -(-len(redo) // size)
            inserted += insert(
                candidates,
                first_chunk=next_chunk,
                limit=left,
                expected=found.missing,
                are_all_missing=found.missing == found.candidates,
            )
        crash_point("plan.inserted")
        self._create_chunks(first_chunk, superseded, is_empty=not inserted)
        crash_point("plan.chunked")
        return inserted + damped

    def _size(self, found: Counts) -> int:
        return 1 if found.candidates == 1 else chunk_size(self.runner, self.node_id)

    def _insert_again(
        self, insert: Callable[..., int], redo: Sequence[Redo], first_chunk: int
    ) -> tuple[int, int, dict[str, int]]:
        """Supersede current runs by new ones, in chunks from `first_chunk` on.

        Damped ones have chunks of their own. Returns the number of the others, that of the damped,
        and the counts of superseded runs that no chunk has yet.
        """
        until = self._pauses(redo)
        superseded, damped = statements.supersede(redo), 0
        crash_point("plan.superseded")
        again = [(each.key, each.fingerprint) for each in redo]
        if later := [row for row in again if row[0] in until]:
            own_chunk, latest = new_chunk_id(), max(until.values())
            damped = insert(self._candidates(later), first_chunk=own_chunk)
            self._create_chunks(own_chunk, superseded, is_empty=not damped, until=latest)
            again, superseded = [row for row in again if row[0] not in until], {}
        inserted = insert(self._candidates(again), first_chunk=first_chunk) if again else 0
        return inserted, damped, superseded

    def _redone(self, candidates: Candidates, found: Counts, *, limit: int | None) -> list[Redo]:
        if found.to_redo is not None:
            candidates = self._candidates(found.to_redo, within=candidates)
        return statements.redone(candidates, self.selection, limit=limit)

    def _pauses(self, redo: Sequence[Redo]) -> dict[Key, dt.datetime]:
        is_quiet = self.status != Run.Status.PENDING or not any(each.is_recent for each in redo)
        return {} if is_quiet else damping.pauses(self.runner, self.node_id, redo)

    def _create_chunks(
        self,
        first_chunk: int,
        superseded: dict[str, int],
        *,
        is_empty: bool,
        until: dt.datetime | None = None,
    ) -> None:
        """Insert the chunks that the new runs name; the first one counts the superseded runs.

        `until` says when damped rows may start.
        """
        chunk = Chunk(
            pk=first_chunk,
            node_id=self.node_id,
            runner=self.runner.label,
            batch=self.batch,
            priority=self.priority,
            queue=queue_of(self.runner),
            size=0,
            not_before=until,
            postponed_by=damping.DAMPED if until else "",
        )
        if is_empty or self.status != Run.Status.PENDING:
            chunk.state = Chunk.State.FINISHED
        if not is_empty:
            counters = ["size"]
            if self.status != Run.Status.PENDING:
                counters.append(self.status.name.lower())
            statements.insert_chunks(chunk, counters=counters, booked=superseded)
        elif superseded:
            for name, number in superseded.items():
                setattr(chunk, name, number)
            chunk.save(force_insert=True, using=settings.DATABASE)

    def _fail(self, rows: tuple[Row, ...]) -> None:
        """Record rows whose input could not be prepared as failed."""
        # A saved row always fails. In a pass over everything, a row that has a run keeps it: a file
        # system that is unavailable for a night does not turn all successes into failures. But a
        # row that processes die of always fails, so that no pass prepares it again.
        first_chunk = new_chunk_id()
        is_lethal = any(isinstance(row.error, WorkerLost) for row in rows)
        selection = PENDING if self._may_overtake or is_lethal else SELECTIONS["missing"]
        failing = replace(self, status=Run.Status.FAILED, selection=selection)
        candidates = self._candidates([(row.key, UNPREPARED) for row in rows])
        found = failing._count(candidates)
        if not failing._insert(candidates, found, first_chunk, limit=None):
            return
        crash_point("plan.unprepared")
        runs = Run.objects.of(self.node_id).filter(
            chunk_id__gte=first_chunk, chunk_id__lte=first_chunk + len(rows), fingerprint=UNPREPARED
        )
        self._note_failures(runs, {row.key: row.error for row in rows if row.error is not None})

    def _note_failures(self, runs: Iterable[Run], errors: Mapping[Key, Exception]) -> None:
        key_of = key_kind(self.runner.get_model()).of
        # Another process's chunks may have ids in the same range.
        failed = {
            run: describe_exception(errors[key], max_bytes=settings.MAX_TRACEBACK_BYTES)
            for run in runs
            if (key := key_of(run)) in errors
        }
        Failure.objects.bulk_create(
            Failure(run_id=run.pk, attempt=0, **asdict(text)) for run, text in failed.items()
        )
        endings = (
            signals.Ending(run.pk, key_of(run), attempts=0, failure=text)
            for run, text in failed.items()
        )
        signals.announce_runs(self.runner.label, endings)

    def _candidates(
        self, rows: Sequence[tuple[Key, str]], *, within: Candidates | None = None
    ) -> Candidates:
        """`rows` as candidates, with the bounds of the candidates `within`."""
        kind = key_kind(self.runner.get_model())
        candidates = candidates_of(rows, node_id=self.node_id, kind=kind)
        if within is None:
            return candidates
        return replace(candidates, above=within.above, up_to=within.up_to)


def _expected(found: Counts, window: Window) -> Outcome:
    pending = found.missing + found.redo
    return Outcome(
        candidates=found.candidates + len(window.unprepared),
        existing=found.candidates - pending,
        planned=pending,
        unprepared=len(window.unprepared),
        failed=found.failed,
        under_way=found.under_way,
    )


def move_ahead(run_ids: Sequence[int], *, first_chunk: int, size: int) -> int:
    """Move runs that wait in a sweep or backfill to chunks from `first_chunk` on.

    The caller creates these, and each takes `size` runs. Return how many have moved: one stays if
    its chunk no longer waits, or is locked by a process that is sending or cancelling it.
    """
    pending = Run.objects.current().pending().filter(pk__in=run_ids)
    waiting = Chunk.objects.waiting().filter(pk__in=pending.values("chunk_id")).order_by("pk")
    # Locked before their runs, as a worker does that finishes one.
    locked = unlocked(waiting).values_list("pk", flat=True)
    runs = pending.filter(chunk_id__in=list(locked)).select_for_update().order_by("pk")
    found = list(runs.values_list("pk", "chunk_id", "attempts"))
    if any(attempts for *_, attempts in found):
        size = 1  # one of them may kill its worker
    for number, begin in enumerate(range(0, len(found), size)):
        some = [pk for pk, *_ in found[begin : begin + size]]
        Run.objects.filter(pk__in=some).update(chunk_id=first_chunk + number)
    moved: dict[int, list[int]] = defaultdict(list)
    for chunk_id, runs_of_chunk in Counter(chunk_id for _, chunk_id, _ in found).items():
        moved[runs_of_chunk].append(chunk_id)
    for amount, chunk_ids in moved.items():
        Chunk.objects.filter(pk__in=chunk_ids).update(moved=F("moved") + amount)
        finish_emptied(chunk_ids)
    return len(found)
