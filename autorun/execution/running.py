"""The run that a body belongs to, as `autorun.running()` gives it."""

from contextvars import ContextVar
from typing import Any

#: The `Work` and its `Call` in this context: that of a thread, or of a task of its event loop.
current: ContextVar[tuple[Any, Any] | None] = ContextVar("autorun.running", default=None)

LONGEST_NOTE = 200


class Running:
    """The run of the body that calls `running()`.

    Outside of a run, as in a test, `run_id` and `key` are None, and the methods do nothing. Pass
    this object to threads that the body starts itself. In a body that takes many rows, `run_id`,
    `key` and `attempt` are those of the first one.
    """

    def __init__(self) -> None:
        found = current.get()
        self._work = None if found is None else found[0]
        self._call = None if found is None else found[1]
        self._assignment = None if self._call is None else self._call.assignments[0]

    @property
    def run_id(self) -> int | None:
        """The id of the run, the same for all of its attempts."""
        return None if self._assignment is None else self._assignment.run.pk

    @property
    def key(self) -> Any:
        """The primary key of the row."""
        return None if self._assignment is None else self._assignment.row.key

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1 on."""
        return 1 if self._assignment is None else self._assignment.run.attempts + 1

    def progress(self, done: float, note: str = "") -> None:
        """Report how much is `done`, from 0 to 1, and what is being done.

        Pages and `explain()` show it once the worker extends its lease. The call itself writes
        nothing.
        """
        if self._work is not None and self._call in self._work.calls:
            share = min(max(float(done), 0.0), 1.0)
            self._work.doing = {"run": self.run_id, "done": share, "note": str(note)[:LONGEST_NOTE]}

    def is_cancelled(self) -> bool:
        """Whether the run was cancelled or continues elsewhere, so that nothing is recorded."""
        work, call = self._work, self._call
        if work is None or call is None:
            return False
        return call not in work.calls or any(
            each.run.pk in work.cancelled for each in call.assignments
        )
