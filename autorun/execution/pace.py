"""The pace of a chunk's calls: no faster than its runner's limit allows."""

import time

from autorun.dispatch.limiting import Bound, reserve

#: Seconds that a worker waits at most until the limit of a runner lets a run start.
LONGEST_WAIT = 10.0


class Pace:
    """The times at which a chunk may call its body, reserved some calls at a time.

    Between two calls lies at least the interval of the rate; a late call is not made up for.
    """

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._interval = bound.seconds_for(1)
        self._reserved = 0
        self._next_at = 0.0

    def take_turn(self, calls: int) -> float:
        """The seconds until the next call may start; `calls` are left, with this one.

        If none is left, what was reserved for more is left to others.
        """
        if not calls:
            self._give_back()
            return 0.0
        if not self._reserved:
            self._reserved = min(calls, self._bound.most_calls or calls)
            due_at = time.monotonic() + reserve(self._bound, self._reserved)
            self._next_at = max(self._next_at, due_at)
        self._reserved -= 1
        seconds = max(0.0, self._next_at - time.monotonic())
        self._next_at = time.monotonic() + seconds + self._interval
        return seconds

    def _give_back(self) -> None:
        if self._reserved and self._interval:
            reserve(self._bound, -self._reserved)
        self._reserved = 0
