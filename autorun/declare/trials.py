"""Values of options for new versions: which rows try one, and how many failures stop a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Failures:
    """So many rows that have failed, among the last `of` that ended."""

    number: int
    of: int = 100


@dataclass(frozen=True)
class Candidate:
    """A version that also runs on some of the rows: on a number of `rows`, or on a `share` of them.

    A `configuration` replaces the runner's own.
    """

    version: str
    rows: int | None = None
    share: float | None = None
    configuration: Mapping[str, Any] | None = None

    @property
    def is_proper(self) -> bool:
        """Whether the values, which may be of any type, name a version and rows."""
        given: Any = self
        version, rows, share = given.version, given.rows, given.share
        if share is None:
            names_rows = type(rows) is int and rows > 0
        else:
            names_rows = rows is None and isinstance(share, (int, float)) and 0 < share <= 1
        is_named = isinstance(version, str) and bool(version)
        return is_named and names_rows and isinstance(given.configuration, Mapping | None)
