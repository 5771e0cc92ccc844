"""What became of the rows that a planning pass looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What became of some candidates: `planned` new runs; `existing` needed none.

    Of the existing, `failed` are those that failed for good and `under_way` those that have not
    ended, where anybody asked.
    """

    candidates: int = 0
    existing: int = 0
    planned: int = 0
    unprepared: int = 0
    failed: int = 0
    under_way: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.candidates + other.candidates,
            self.existing + other.existing,
            self.planned + other.planned,
            self.unprepared + other.unprepared,
            self.failed + other.failed,
            self.under_way + other.under_way,
        )
