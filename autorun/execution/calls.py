"""The calls of a body: their rows, the choice of the next rows, and the values returned."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autorun.analysis import Analysis
from autorun.exceptions import OutputError
from autorun.execution.assignments import Assignment
from autorun.execution.tails import Tail
from autorun.state.words import counted


@dataclass(eq=False)
class Call:
    """The rows of one call of the body, which started at `since` by the monotonic clock.

    `stop` ends a call that runs beside others, from any thread. `tail` is the end of what it has
    written, if anything.
    """

    assignments: Sequence[Assignment]
    since: float
    stop: Callable[[], object] | None = None
    is_stopped: bool = False
    tail: Tail | None = None

    def end(self) -> None:
        """End a call that runs beside others, once."""
        if self.stop is not None and not self.is_stopped:
            self.is_stopped = True
            self.stop()

    @property
    def run_ids(self) -> set[int]:
        return {each.run.pk for each in self.assignments}

    @property
    def seconds_a_row(self) -> float:
        """Its duration so far, divided by its rows."""
        return (time.monotonic() - self.since) / len(self.assignments)


@dataclass
class Portions:
    """How many of the rows that are left the next call of a batch body takes: at most `most`.

    The first `suspects` of them hold one at fault, because a call that took them has raised. Halves
    of them are tried until it is alone. The other rows wait for a full call. So one bad row among
    64 costs at most 8 more calls. If the next full call raises as well, calls become smaller, since
    many rows seem to be at fault.
    """

    most: int
    suspects: int = 0
    _full: int = 0
    _is_wary: bool = False

    def __post_init__(self) -> None:
        self._full = self.most

    @property
    def next(self) -> int:
        return max(1, self.suspects // 2) if self.suspects else self._full

    def returned(self, rows: int) -> None:
        """Note that a call with that many rows has returned."""
        if self.suspects:
            self.suspects -= rows
            return
        self._is_wary = False
        self._full = min(self.most, 2 * self._full)

    def raised(self, rows: int) -> None:
        """Note that a call with several rows has raised. They come first in the next call."""
        if not self.suspects and self._is_wary:
            self._full = max(1, self._full // 2)
        self.suspects = rows

    def blamed(self) -> None:
        """Note that a row that was alone is at fault."""
        self.suspects, self._is_wary = 0, True

    def too_many(self, rows: int) -> None:
        """Note that a call with that many rows is too large, whichever they are."""
        self.most = self._full = max(1, rows // 2)
        self.suspects = 0


def values_of(returned: Any, rows: int, analysis: Analysis) -> Sequence[Any]:
    """Return the value for each row of a batch call.

    If it is not a list, an error for each row: a smaller call would not help. Raises OutputError if
    it has another length.
    """
    as_list = getattr(returned, "tolist", None)  # an array of numpy, a tensor of torch
    values = as_list() if as_list is not None else returned
    if not isinstance(values, (list, tuple)):
        error = OutputError(
            f"{analysis} returned {type(returned).__name__}, not a list. It takes {analysis.batch} "
            "rows at once: return a list with one value for each, in their order."
        )
        return [error] * rows
    if len(values) != rows:
        raise OutputError(
            f"{analysis} returned {counted(len(values), 'value')} for {counted(rows, 'row')}. "
            "Return one for each, in their order; put an exception in the place of one that fails."
        )
    return values
