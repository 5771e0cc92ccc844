"""The brake: when many rows of a runner fail alike and none succeeds, the runner is held up.

If a disk is full or a service is down, no row is at fault, but each would use up its attempts. With
STOP_AFTER, too many failures also pause the batch or the runner.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from autorun.declare.base import Runner
from autorun.declare.trials import Failures
from autorun.dispatch import holding
from autorun.exceptions import ConfigurationError
from autorun.execution.results import Result
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.planning import batches
from autorun.state import pulses
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.exception_text import name_exception, summary
from autorun.state.logs import get_logger

logger = get_logger(__name__)

#: This many consecutive rows whose first attempt fails with the same exception, within this time.
FAILURES, WITHIN = 20, 600.0
#: Seconds of unsuccessful tries after which failures count.
PATIENCE = 900.0
#: It is the row's fault, however many rows have it.
_LASTING = name_exception(ConfigurationError)


class Brake:
    """Counts the failures of one chunk; earlier ones of the runner are read from the database.

    They are read after the chunk's last row, and after every FAILURES rows that fail alike. If a
    success follows in the chunk, the failure concerns single rows, not the runner.
    """

    def __init__(self, runner: Runner, chunk: Chunk, *, succeeded: int) -> None:
        self._chunk = chunk
        self._is_try = bool(chunk.reason) and not succeeded
        self._has_succeeded = succeeded > 0
        # A check reports any other value.
        declared = runner.STOP_AFTER
        self._most = declared if isinstance(declared, Failures) else None
        of = self._most.of if self._most else 0
        self._failed_with = ""
        self._have_failed = deque([False] * min(succeeded, of), maxlen=of)
        self._kind = ""
        self._kinds_of_rows = {_LASTING}
        self._alike: set[int] = set()
        self._began_at = 0.0

    def is_on_after(self, result: Result, *, is_last: bool) -> bool:
        """Whether the runner is held up because of the latest result."""
        if result.failure is None:
            self._has_succeeded, self._is_try = True, False
            self._kinds_of_rows.add(self._kind)
            self._alike.clear()
            return False
        kind = result.failure.exception_class
        if self._is_try and kind != _LASTING:
            self._kind = kind
            return self._is_to_be_tried_again()
        # A row that is retried may have failed while others succeeded.
        if result.attempts > 1 or kind in self._kinds_of_rows:
            return False
        if kind != self._kind or not self._alike:
            self._alike.clear()
            self._kind, self._began_at = kind, time.monotonic()
        self._alike.add(result.run_id)
        is_time = is_last or len(self._alike) % FAILURES == 0
        return is_time and self._hits_all() and not holding.is_exempt(self._chunk.runner)

    def parking_after(self, result: Result) -> dict[str, Any]:
        """The options that park the remaining runs of the chunk because of the latest result."""
        summed_up = summary(result.failure) if result.failure else ""
        alike = f"The last {FAILURES} rows have failed alike: {summed_up}"
        reason = self._chunk.reason or alike
        logger.error("%s: held up. %s", self._chunk.runner, reason)
        return {"again_in": holding.pause_after(self._chunk), "reason": reason}

    def after_refused(self, results: list[Result]) -> list[Result]:
        """The results; those that could not be recorded are pending if all are refused alike."""
        failed = [each for each in results if each.failure is not None]
        for number, each in enumerate(failed, 1):
            if self.is_on_after(each, is_last=number == len(failed)):
                return self.held_up(results, failed, **self.parking_after(each))
        return results

    def held_up(
        self, results: Sequence[Result], latest: Sequence[Result], **parked: Any
    ) -> list[Result]:
        """The results; those that failed alike are pending if `latest` or if they ended a run."""
        return [
            each.kept_pending(**parked)
            if self._is_alike(each) and (each.status == Run.Status.FAILED or each in latest)
            else each
            for each in results
        ]

    def _is_alike(self, result: Result) -> bool:
        """Whether the result is a failure of the kind that the runner is held up for."""
        return result.failure is not None and result.failure.exception_class == self._kind

    def _is_to_be_tried_again(self) -> bool:
        if holding.seconds_held_up(self._chunk) < PATIENCE:
            return True
        holding.exempt(self._chunk.runner, holding.EXEMPT_IN_VAIN)
        self._is_try = False
        return False

    def _hits_all(self) -> bool:
        """Whether the runner's last rows have failed alike, and none has succeeded meanwhile."""
        node_id = self._chunk.node_id
        since: Any = from_now(self._began_at - time.monotonic())
        alike = set(self._alike)
        if len(alike) < FAILURES and not self._has_succeeded:
            failures = Failure.objects.filter(
                run__node=node_id, attempt=1, failed_at__gt=from_now(-WITHIN)
            ).order_by("-failed_at", "-pk")
            latest = failures.values_list("run_id", "exception_class", "failed_at")
            for run_id, kind, failed_at in latest[: 2 * FAILURES]:
                if kind != self._kind or len(alike) >= FAILURES:
                    break
                alike.add(run_id)
                since = failed_at
        if len(alike) < FAILURES:
            return False
        return not holding.has_succeeded(node_id, self._chunk.runner, since=since)

    def why_to_stop(self, result: Result, *, is_last: bool) -> str:
        """Why STOP_AFTER pauses the batch or the runner after the latest result; or ""."""
        if result.failure is not None:
            self._failed_with = result.failure.exception_class
        if self._most is None or result.status not in (Run.Status.SUCCEEDED, Run.Status.FAILED):
            return ""
        self._have_failed.append(result.status == Run.Status.FAILED)
        failed, ended = sum(self._have_failed), len(self._have_failed)
        if failed and is_last and failed < self._most.number:
            for of_chunk, all_of_chunk in self._ended_before():
                # Of a chunk that is not among the last ones as a whole, its share is.
                room = min(all_of_chunk, self._most.of - ended)
                failed += of_chunk * room // all_of_chunk
                ended += room
        if failed < self._most.number:
            return ""
        return self._why(failed, ended)

    def why_held_up(self) -> str:
        """Why STOP_AFTER pauses the batch or the runner that is now held up; or ""."""
        is_enough = self._most is not None and self._most.number <= FAILURES
        return self._why(FAILURES, FAILURES) if is_enough else ""

    def _why(self, failed: int, ended: int) -> str:
        # Without the message, which may contain data of the row.
        return f"{failed} of the last {ended} rows have failed, the last with {self._failed_with}"

    def stop(self, reason: str) -> None:
        """Pause the batch that was requested, or else the runner, for `reason`."""
        chunk, batch = self._chunk, self._requested_batch()
        logger.error("%s: paused %s. %s", chunk.runner, batch or "the runner", reason)
        if batch is not None:
            batches.pause(batch, reason=reason)
        else:
            running = Node.objects.filter(pk=chunk.node_id, paused_at=None)
            running.update(paused_at=DatabaseNow(), paused_because=reason)
        pulses.note(self._stopped_name(), DatabaseNow())

    def _requested_batch(self) -> Batch | None:
        batch = self._chunk.batch
        requested = (Batch.Trigger.BACKFILL, Batch.Trigger.CODE)
        return batch if batch is not None and batch.trigger in requested else None

    def _ended_before(self) -> Iterator[tuple[int, int]]:
        """The failed and all ended runs of each chunk before this one, the latest first.

        Those that started before it was last stopped do not count.
        """
        chunk, batch = self._chunk, self._requested_batch()
        of = self._most.of if self._most else 0
        chunks = Chunk.objects.of(chunk.node_id).filter(
            state=Chunk.State.FINISHED, priority=chunk.priority, runner=chunk.runner
        )
        if batch is not None:
            chunks = chunks.filter(batch=batch)
        if (stopped_at := pulses.beat_of(self._stopped_name())) is not None:
            chunks = chunks.filter(started_at__gt=stopped_at)
        ended = chunks.exclude(pk=chunk.pk).order_by("-pk").values_list("succeeded", "failed")[:of]
        return ((failed, succeeded + failed) for succeeded, failed in ended if succeeded + failed)

    def _stopped_name(self) -> str:
        batch = self._requested_batch()
        what = f"node {self._chunk.node_id}" if batch is None else f"batch {batch.pk}"
        return pulses.name_for("stop", what)
