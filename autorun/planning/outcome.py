"""The outcome of a planning pass."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from operator import add


@dataclass(frozen=True)
class Outcome:
    """Numbers of candidates: `planned` got new runs, `existing` needed none.

    If they were counted, `failed` of the existing have no attempts left, and `under_way` have not
    finished.
    """

    candidates: int = 0
    existing: int = 0
    planned: int = 0
    unprepared: int = 0
    failed: int = 0
    under_way: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*map(add, astuple(self), astuple(other)))
