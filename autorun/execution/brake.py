"""The brake: when many rows of a runner fail alike and none succeeds, the runner is held up.

If a disk is full or a service is away, no row is at fault, but each would use up its attempts.
"""

import time
from collections.abc import Sequence
from typing import Any

from autorun.dispatch.holding import (
    EXEMPT_IN_VAIN,
    exempt,
    has_succeeded,
    is_exempt,
    seconds_held_up,
)
from autorun.exceptions import ConfigurationError
from autorun.execution.results import Result
from autorun.models import Chunk, Failure, Run
from autorun.state.clock import from_now
from autorun.state.exception_text import name_exception

#: This many consecutive rows whose first attempt fails with the same exception, within this time.
FAILURES, WITHIN = 20, 600.0
#: Seconds of tries in vain after which failures count.
PATIENCE = 900.0
#: It is the row's fault, however many rows have it.
_LASTING = name_exception(ConfigurationError)


class Brake:
    """Counts the failures of one chunk; earlier ones of the runner are read from the database.

    They are read after the chunk's last row, and after every FAILURES rows that fail alike. A kind
    of failure that is followed by a success in the chunk concerns single rows, not the runner.
    """

    def __init__(self, chunk: Chunk, *, has_succeeded: bool) -> None:
        self._chunk = chunk
        self._is_try = bool(chunk.reason) and not has_succeeded
        self._has_succeeded = has_succeeded
        self._kind = ""
        self._kinds_of_rows = {_LASTING}
        self._alike: set[int] = set()
        self._began_at = 0.0

    def is_on_after(self, result: Result, *, is_last: bool) -> bool:
        """Whether the runner is held up because of the latest result."""
        if result.failure is None:
            self._note_success()
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
        return is_time and self._hits_all() and not is_exempt(self._chunk.runner)

    def held_up(
        self, results: Sequence[Result], latest: Sequence[Result], **parked: Any
    ) -> list[Result]:
        """The results, with those pending that failed alike and are the `latest` or end a run."""
        return [
            each.kept_pending(**parked)
            if self._is_alike(each) and (each.status == Run.Status.FAILED or each in latest)
            else each
            for each in results
        ]

    def _is_alike(self, result: Result) -> bool:
        """Whether the result is a failure of the kind that the runner is held up for."""
        return result.failure is not None and result.failure.exception_class == self._kind

    def _note_success(self) -> None:
        self._has_succeeded, self._is_try = True, False
        self._kinds_of_rows.add(self._kind)
        self._alike.clear()

    def _is_to_be_tried_again(self) -> bool:
        if seconds_held_up(self._chunk) < PATIENCE:
            return True
        exempt(self._chunk.runner, EXEMPT_IN_VAIN)
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
        return not has_succeeded(node_id, self._chunk.runner, since=since)
