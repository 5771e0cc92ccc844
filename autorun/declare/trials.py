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

    def problem(self) -> str:
        """The reason why these values name no rows; or ""."""
        given: Any = self  # a project may give anything
        version, rows, share = given.version, given.rows, given.share
        configuration = given.configuration
        if not isinstance(version, str) or not version:
            return f"its version is {version!r}, not a string"
        if (rows is None) == (share is None):
            return "it needs either rows=100 or share=0.01"
        if rows is not None and not (type(rows) is int and rows > 0):
            return f"rows is {rows!r}, not a whole number from 1 on"
        if share is not None and not (isinstance(share, (int, float)) and 0 < share <= 1):
            return f"share is {share!r}, not a number above 0 and up to 1"
        if not isinstance(configuration, (Mapping, type(None))):
            return f"its configuration is {configuration!r}, not a dict"
        return ""
