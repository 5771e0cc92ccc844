"""Values of options for new versions: how many failures stop a batch or runner."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """So many rows that have failed, among the last `of` that ended."""

    number: int
    of: int = 100
