"""The runs of one chunk, executed one after the other."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from autorun import signals
from autorun.analysis import Analysis
from autorun.conf import settings
from autorun.declare import nodes
from autorun.declare.base import Runner
from autorun.declare.interruption import INSISTENCE, Interrupted, Termination, interrupt
from autorun.dispatch.holding import pause_after
from autorun.dispatch.limiting import LONGEST_WAIT, Pace, hold_back, shared
from autorun.dispatch.sizes import size_of_rest
from autorun.exceptions import LeaseLost, RunCancelled
from autorun.execution import running
from autorun.execution.assignments import Assignment, load_runs, pending_in, superseded
from autorun.execution.body import Body
from autorun.execution.brake import Brake
from autorun.execution.builds import build_of
from autorun.execution.calls import Call
from autorun.execution.landing import landing_of
from autorun.execution.refusals import Refusals
from autorun.execution.results import Result, Tally, endings, record
from autorun.execution.stopped import stopped, stops_before
from autorun.models import Run
from autorun.planning.rows import load
from autorun.signals import run_failed, run_succeeded
from autorun.state.coroutines import is_in_transaction
from autorun.state.exception_text import one_line
from autorun.state.keys import Key, key_kind
from autorun.state.leases import Lease
from autorun.state.logs import get_logger
from autorun.state.probes import crash_point
from autorun.state.transactions import Halving, is_passing

logger = get_logger(__name__)

#: Results are written after so many seconds, or when their outputs take so many bytes.
WRITE_EVERY = 1.0
WRITE_BYTES = 4_000_000
#: Seconds before another try at a run whose row an older run is still using.
WAIT_FOR_OLDER = 2.0
_status_of = attrgetter("status")
_run_of = attrgetter("run_id")
_failure_of = attrgetter("failure")


class Work:
    """The runs of a leased chunk: one thread executes them, and its keeper may take some away.

    What the two threads share is used under `lock`. `runs` are the chunk's, if the caller has them.
    """

    def __init__(
        self, lease: Lease, runner: Runner, analysis: Analysis, *, runs: Sequence[Any] | None = None
    ) -> None:
        self.lease = lease
        self.runner = runner
        self.body = Body(runner, analysis, lease.chunk.node.configuration)
        self.lock = threading.RLock()
        self.build: int | None = None
        self._landing = landing_of(runner, lease.chunk) if runner.lands else None
        self.began_at = time.monotonic()
        #: The calls of the body that have not returned.
        self.calls: list[Call] = []
        #: The runs to cancel, and since when a call has been told to end because of that.
        self.cancelled: set[int] = set()
        self.stopped_at = self._interrupted_at = 0.0
        #: The progress that a body reports; the next extension of the lease stores it.
        self.doing: dict[str, Any] | None = None
        self._thread_id = threading.get_ident()
        self.keys: list[Key] = []
        self.succeeded: list[Key] = []
        #: Rows that had changed since they were planned. They may have changed back meanwhile, and
        #: planning would have found them up to date.
        self.unexpected: list[Key] = []
        self.seconds: list[float] = []
        #: Whether a run went on in another chunk.
        self.has_moved = False
        self._runs = runs
        self._assignments: deque[Assignment] = deque()
        self._results: list[Result] = []
        self._unannounced: list[Result] = []
        self._output_bytes = 0
        self._written_at = self.began_at
        self._tally = Tally.of(lease.chunk)
        self._is_abandoned = self._is_in_doubt = self.is_followed = False
        self._brake: Brake | None = None  # made when a run fails
        self._pace = None if runner.LIMIT is None else Pace(shared(runner.LIMIT))

    def assign(self) -> None:
        """Load the chunk's runs and their rows; cancel or move the runs that cannot start."""
        chunk = self.lease.chunk
        known = nodes.builds.get((settings.DATABASE, chunk.node_id))
        self.build = build_of(chunk.node, self.body.analysis) if known is None else known
        runs = load_runs(chunk_id=chunk.pk) if self._runs is None else self._runs
        kind = key_kind(self.runner.get_model())
        due: list[Run] = []
        for run in runs:
            if not run.is_current:
                self._results.append(Result.cancelled(run))
            elif run.has_older:
                self._results.append(Result.moved(run, again_in=WAIT_FOR_OLDER))
            else:
                due.append(run)
        try:
            is_beyond_base = chunk.batch is not None and chunk.batch.is_beyond_base
            self.keys = list(map(kind.of, due))
            rows = load(self.runner, self.keys, within_base=not is_beyond_base) if due else {}
        except Exception as error:  # noqa: BLE001  it may be raised again
            self._give_up_loading(due, error)
            return
        changed: list[Assignment] = []
        for run in due:
            row = rows.get(kind.of(run))
            if row is not None and row.instance is None:  # it cannot be loaded
                row = row._replace(fingerprint=run.fingerprint)
            if row is None:  # deleted, or no longer eligible
                self._results.append(Result.cancelled(run))
                self.unexpected.append(kind.of(run))
            else:
                self._assignments.append(Assignment(run, row))
                if row.fingerprint != run.fingerprint:
                    changed.append(self._assignments[-1])
        if not changed:
            return
        dropped = superseded(changed)  # planning has made newer runs for them meanwhile
        self._results += [Result.cancelled(each.run) for each in changed if each.run.pk in dropped]
        self._assignments = deque(each for each in self._assignments if each.run.pk not in dropped)

    def perform(self, termination: Termination) -> Tally:
        """Execute the assigned runs, and return how they ended.

        Raises LeaseLost, or Interrupted.
        """
        before = running.current.get()
        try:
            if self.lease.chunk.reason:
                self._go_on_elsewhere()
            if self.body.together > 1 and not is_in_transaction():

                def start(wait: Callable[[float], object]) -> Call | None:
                    call = self.next_call(termination, wait)
                    running.current.set((self, call))
                    return call

                self.body.call_together(start, self.settle, termination)
            while (call := self.next_call(termination)) is not None:
                running.current.set((self, call))
                self.settle(call, self.body.call(call, termination))
            return self._write(is_last=True)
        except Interrupted:
            with self.lock:
                self._results += stopped(self.lease.chunk, self.calls, self.body)
                self.calls.clear()
                self.give_back(size=int(stops_before(self.lease.chunk) > 0))
            raise
        finally:
            running.current.set(before)
            if self._unannounced:
                self.announce()

    def announce(self) -> None:
        """Send signals for recorded runs; not under the lock, since receivers may be slow."""
        if self._unannounced:
            with self.lock:
                results, self._unannounced = self._unannounced, []
            if not nodes.is_tried(self.runner, self.lease.chunk.node_id):
                signals.announce_runs(self.runner.label, endings(results))

    # For the keeper's thread

    def hand_over(self, *, in_one_chunk: bool = False) -> int:
        """Give the unstarted runs to other workers. Return how many."""
        with self.lock:
            rest = [Result.moved(each.run) for each in self._assignments]
            if rest:
                # If the answer is lost, the database may have moved them.
                self._is_in_doubt = True
                self._write(rest, size=len(rest) if in_one_chunk else 0)
                self._is_in_doubt = False
            self._assignments.clear()
        return len(rest)

    def give_back(self, *, size: int = 0, **when: float) -> None:
        """Give all unfinished runs to other workers, without using an attempt, and end.

        With `again_in`, they start after that many seconds; `size` as in `_write()`.
        """
        with self.lock:
            rest = [*self._at_work(), *self._assignments]
            self._write([Result.moved(each.run, **when) for each in rest], is_last=True, size=size)
            self._assignments.clear()
            self._is_abandoned = True

    def cancel(self) -> None:
        """Drop the `cancelled` runs that have not started, and end the call of one that has.

        They are results that move: `record()` cancels what would move but is to be cancelled.
        """
        with self.lock:
            for each in [each for each in self._assignments if each.run.pk in self.cancelled]:
                self._assignments.remove(each)
                self._results.append(Result.moved(each.run))
            at_work = [each for each in self.calls if self.cancelled & each.run_ids]
            if self.body.together > 1:
                for call in at_work:
                    call.end()
            elif at_work:
                now = time.monotonic()
                if not self.body.stop:
                    self.stopped_at = now
                    self.body.stop.append(RunCancelled("The run was cancelled while it ran."))
                elif now - self._interrupted_at < INSISTENCE:
                    return  # it may be cleaning up
                self._interrupted_at = now
                interrupt(self._thread_id, self.body.stop[0])

    def fail_call(self, call: Call, error: BaseException) -> bool:
        """Fail the runs of a call before it returns, and end; False if it has returned.

        A later return value is dropped. If the call has several rows, the one at fault is unknown:
        as after a death, each is retried alone.
        """
        with self.lock:
            if call not in self.calls:
                return False
            self.calls.remove(call)
            if self.body.stop:
                self._results += [Result.moved(each.run) for each in call.assignments]
            else:
                self._write(self.body.failures(call, error), size=1)
            self.give_back()
            return True

    def abandon(self) -> None:
        """End without writing: another worker has the lease."""
        with self.lock:
            self._is_abandoned = True

    # For the working thread

    def _wait_for_turn(self, pace: Pace, wait: Callable[[float], object]) -> None:
        """Wait until the runner's limit lets the next call start; put the rest off if that is long.

        Results do not wait to be recorded, and the keeper does not take the chunk for a slow one.
        """
        calls = -(-len(self._assignments) // self.body.rows_a_call)
        if (seconds := pace.take_turn(calls)) > LONGEST_WAIT:
            pace.leave(1)
            with self.lock:
                self._move_rest(again_in=seconds)
        elif seconds:
            if seconds >= WRITE_EVERY and self._results:
                self._write()
                self.announce()
            self.began_at += seconds
            wait(seconds)

    def next_call(
        self, termination: Termination, rest: Callable[[float], object] | None = None
    ) -> Call | None:
        """The next call of the body, with its rows; None if no row is left.

        It may have to wait for its turn; `rest` lets other calls continue meanwhile.
        """
        if self._pace is not None:
            self._wait_for_turn(self._pace, rest or termination.sleep)
        with self.lock:
            if self._is_abandoned:
                raise self._abandoned()
            if self._is_in_doubt:
                # They may have been handed over although the answer was lost.
                ours = pending_in(self.lease.chunk)
                self._assignments = deque(each for each in self._assignments if each.run.pk in ours)
                self._is_in_doubt = False
            most = 1 if (portions := self.body.portions) is None else portions.next
            taken: list[Assignment] = []
            while self._assignments and len(taken) < most:
                taken.append(self._assignments.popleft())
            if not taken:
                return None
            self.body.stop.clear()
            call = Call(taken, time.monotonic())
            self.calls.append(call)
            return call

    def _move_rest(self, **options: Any) -> None:
        self._results += [Result.moved(each.run, **options) for each in self._assignments]
        self._assignments.clear()

    def _at_work(self) -> list[Assignment]:
        return [each for call in self.calls for each in call.assignments]

    def _give_up_loading(self, due: Sequence[Run], error: Exception) -> None:
        # Recorded when the database is back.
        moved: dict[str, Any] = {"again_in": WAIT_FOR_OLDER}
        if not is_passing(error):
            # No row's fault: a hook that is broken, or a column that is not there before `migrate`.
            message = "%s: no row can be loaded; tried again later."
            logger.error(message, self.runner.label, exc_info=error)
            moved = {"again_in": pause_after(self.lease.chunk), "reason": one_line(error)}
        self._results += [Result.moved(run, **moved) for run in due]

    def settle(self, call: Call, results: Sequence[Result]) -> None:
        """Note how the rows of a call ended, and write the results if it is time.

        Rows without a result come next again.
        """
        crash_point("finish.unwritten")
        with self.lock:
            if self._is_abandoned:
                raise self._abandoned()
            self.calls.remove(call)
            self._results += results
            ended = dict(zip(map(_run_of, results), results, strict=True))
            for assignment in reversed(call.assignments):
                result = ended.get(assignment.run.pk)
                if result is None:
                    self._assignments.appendleft(assignment)
                    continue
                outputs = result.outputs or ""
                self._output_bytes += len(outputs if outputs.isascii() else outputs.encode())
                if result.seconds is not None:
                    self.seconds.append(result.seconds)
                has_changed = result.fingerprint != assignment.run.fingerprint
                if has_changed and assignment.row.error is None:
                    self.unexpected.append(assignment.row.key)
                if result.status == Run.Status.SUCCEEDED:
                    self.succeeded.append(assignment.row.key)
        if (refusal := self.body.refused_by) is not None:
            # The service refuses all calls: the rest of the chunk and of the limit waits.
            hold_back(self.runner, refusal.seconds)
            self.body.refused_by = None
            with self.lock:
                self._move_rest(again_in=refusal.seconds, postponed_by=one_line(refusal))
        if self._brake is not None or any(map(_failure_of, results)):
            self._brake_after_each(results)
        is_late = time.monotonic() - self._written_at >= WRITE_EVERY
        if is_late or self._output_bytes >= WRITE_BYTES:
            self._write()
            self.announce()

    def _brake_after_each(self, results: Sequence[Result]) -> None:
        for place, result in enumerate(results):
            is_success = result.status == Run.Status.SUCCEEDED
            if result.failure is not None or (self._brake is not None and is_success):
                self._brake_after(results[place:])

    def _brake_after(self, latest: Sequence[Result]) -> None:
        """Park the rest if the runner's rows all fail alike; the failures so far end no run.

        `latest` are the result and those after it of the same call.
        """
        result = latest[0]
        brake = self._brake = self._brake or Brake(
            self.runner, self.lease.chunk, succeeded=len(self.succeeded)
        )
        is_last = len(latest) == 1 and not self._assignments
        is_on = brake.is_on_after(result, is_last=is_last)
        if why := brake.why_to_stop(result, is_last=is_last):
            brake.stop(why)
            with self.lock:
                self._move_rest()
        elif is_on:
            parked = brake.parking_after(result)
            with self.lock:
                self._results = brake.held_up(self._results, latest, **parked)
                self._move_rest(**parked)
            if why := brake.why_held_up():
                brake.stop(why)
        elif result.failure is not None:
            self._go_on_elsewhere()

    def _go_on_elsewhere(self) -> None:
        """Continue at another row of the chunk: bad rows are often neighbours."""
        with self.lock:
            portions = self.body.portions
            if self._assignments and not (portions is not None and portions.suspects):
                self._assignments.rotate(random.randrange(len(self._assignments)))

    def _abandoned(self) -> LeaseLost:
        return LeaseLost(f"Chunk {self.lease.chunk.pk} is no longer this process's.")

    def _write(self, also: Sequence[Result] = (), *, is_last: bool = False, size: int = 0) -> Tally:
        """Record the results so far and `also`. If this raises, those not recorded are kept.

        The keeper continues after an error. A chunk that then finished without these results would
        leave their runs pending for ever.
        """
        with self.lock:
            results = [*self._results, *also]
            moved = [*map(_status_of, results)].count(Run.Status.PENDING)
            size = size or (self._size_of_rest(moved) if moved else 1)
            self.has_moved = self.has_moved or moved > 0
            recorded: list[Result] = []
            refusals = Refusals(recorded)
            dependents = is_last and self.succeeded and nodes.dependents(self.lease.chunk.node)
            put = partial(record, self.lease, size=size, build=self.build, landing=self._landing)
            self.is_followed = bool(self.unexpected or dependents)
            put = partial(put, is_followed=self.is_followed)
            probe = partial(put, [], self._tally, is_last=False)
            halving = Halving(results, refusals.add, probe, using=settings.DATABASE)
            for some in halving:
                is_finished = is_last and len(some) == len(results)
                try:
                    self._tally = put(some, self._tally, is_last=is_finished)
                    recorded += some
                except Exception as error:  # noqa: BLE001  halved, and raised if it hits all
                    halving.errors.append(error)
                    is_finished = False
                    if refusals.is_hopeless_after(error):
                        break
            if len(recorded) < len(results):
                results = [*recorded, *self._record_refused(refusals, results)]
            if run_succeeded.receivers or run_failed.receivers:
                self._unannounced += results
            self._results = [*filter(refusals.unrecordable.__contains__, self._results)]
            self._output_bytes, self._written_at = 0, time.monotonic()
            if refusals.error is not None:
                raise refusals.error
            if is_last and not is_finished:
                self._tally = put([], self._tally, is_last=True)
            return self._tally

    def _record_refused(self, refusals: Refusals, results: Sequence[Result]) -> list[Result]:
        """Record refused successes as failures, or as runs to be repeated."""
        rest = refusals.ended(results, pause=pause_after(self.lease.chunk))
        keys = {each.key for each in rest}
        self.succeeded = [key for key in self.succeeded if key not in keys]
        brake = self._brake or Brake(self.runner, self.lease.chunk, succeeded=len(self.succeeded))
        rest = brake.after_refused(rest)
        moved = [*map(_status_of, rest)].count(Run.Status.PENDING)
        size = self._size_of_rest(moved) if moved else 1
        self.has_moved |= moved > 0
        put = partial(record, self.lease, size=size, build=self.build)
        self._tally = put(rest, self._tally, is_last=False)
        return rest

    def _size_of_rest(self, moved: int) -> int:
        started = len(self.seconds) + len(self._at_work())
        seconds = (time.monotonic() - self.began_at) / started if started else None
        return size_of_rest(self.runner, self.lease.chunk.node, moved, seconds=seconds)
