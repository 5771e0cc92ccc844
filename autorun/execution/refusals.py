"""Results that the database or their landing refuses, found by recording halves of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from django.db import DatabaseError

from autorun.conf import settings
from autorun.exceptions import RunTimeout
from autorun.execution.brake import FAILURES
from autorun.execution.landing import NotLanded
from autorun.execution.results import Result
from autorun.models import Run
from autorun.state.exception_text import describe_exception, one_line
from autorun.state.transactions import has_waited

#: Calls of `save_outputs()` that may take too long before the rest is left for later.
MOST_LATE = 3
#: Seconds before another try at a row that the project holds locked.
WAIT_FOR_LOCK = 10.0


@dataclass
class Refusals:
    """The results that could not be recorded; `recorded` is the growing list of the others.

    If no success can be recorded, no row is at fault, and all are tried again later.

    `unrecordable` are those that cannot even be recorded as failures; `error` is that of the last.
    """

    recorded: Sequence[Result]
    unrecordable: list[Result] = field(default_factory=list)
    error: Exception | None = None
    _alone: dict[int, BaseException] = field(default_factory=dict)
    _late: int = 0
    _hits_all: BaseException | None = None

    def add(self, result: Result, error: Exception) -> None:
        """Note a result that is refused on its own."""
        if _is_success(result):
            self._alone[result.run_id] = _cause(error)
        else:
            self.error = error
            self.unrecordable.append(result)

    def is_hopeless_after(self, error: Exception) -> bool:
        """Whether to stop trying: no success can be recorded, or each try takes too long."""
        if not isinstance(error, DatabaseError):
            self._late += isinstance(error.__cause__, RunTimeout)
            is_vain = len(self._alone) >= FAILURES and not any(map(_is_success, self.recorded))
            if is_vain or self._late >= MOST_LATE:
                self._hits_all = _cause(error)
        return self._hits_all is not None

    def ended(self, results: Sequence[Result], *, pause: float) -> list[Result]:
        """The results to record in place of those that were refused."""
        done = {each.run_id for each in (*self.recorded, *self.unrecordable)}
        return [self._end(each, pause) for each in results if each.run_id not in done]

    def _end(self, result: Result, pause: float) -> Result:
        if self._hits_all is not None and _is_success(result):
            return _again(result, pause, reason=one_line(self._hits_all))
        error = self._alone.get(result.run_id)
        if error is None:
            return result
        if isinstance(error, Exception) and has_waited(error):
            return _again(result, WAIT_FOR_LOCK)
        failure = describe_exception(error, max_bytes=settings.MAX_TRACEBACK_BYTES)
        return result._replace(status=Run.Status.FAILED, outputs=None, failure=failure)


def _again(result: Result, seconds: float, *, reason: str = "") -> Result:
    """The success as a run to be repeated, which has used no attempt."""
    unmade = result._replace(attempts=result.attempts - 1, outputs=None, seconds=None)
    return unmade._replace(status=Run.Status.PENDING, again_in=seconds, reason=reason)


def _is_success(result: Result) -> bool:
    return result.status == Run.Status.SUCCEEDED


def _cause(error: BaseException) -> BaseException:
    return (error.__cause__ or error) if isinstance(error, NotLanded) else error
