"""The reason why a candidate would be planned, or would not: counted, and shown by example."""

from collections.abc import Mapping
from enum import StrEnum

from autorun.models import UNPREPARED, Run
from autorun.planning.candidates import Candidates, select
from autorun.planning.selection import PENDING, Selection
from autorun.state.keys import Key


class Reason(StrEnum):
    """The state of a row in scope; each row has exactly one.

    missing: it has no current run. changed: that is for another input. preparable: its input could
    not be prepared for that run, and now it can. failed: the run has no attempts left. done: it
    succeeded, or is ignored. not_applicable: its body has said so. under_way: it is not finished.
    unprepared: the input cannot be prepared. filtered: the filter excludes the row, or a dependency
    has not succeeded on it yet.
    """

    MISSING = "missing"
    CHANGED = "changed"
    PREPARABLE = "preparable"
    FAILED = "failed"
    DONE = "done"
    NOT_APPLICABLE = "not_applicable"
    UNDER_WAY = "under_way"
    UNPREPARED = "unprepared"
    FILTERED = "filtered"

    @property
    def is_pending(self) -> bool:
        return self.is_taken_by(PENDING)

    def is_taken_by(self, selection: Selection) -> bool:
        """Whether a planning pass with that selection plans rows of this reason."""
        taken = {
            Reason.MISSING: selection.missing,
            Reason.CHANGED: selection.changed or selection.finished,
            Reason.PREPARABLE: selection.changed or selection.failed or selection.finished,
            Reason.FAILED: selection.failed or selection.finished,
            Reason.DONE: selection.finished,
            Reason.NOT_APPLICABLE: selection.not_applicable or selection.finished,
        }
        return taken.get(self, False)


_SAME = "r.fingerprint = d.f AND r.status"
_WAS_UNPREPARED = f"r.status = {Run.Status.FAILED:d} AND r.fingerprint = '{UNPREPARED}'"
#: SQL over a candidate `d` and its current run `r`.
CONDITIONS: Mapping[Reason, str] = {
    Reason.MISSING: "r.id IS NULL",
    Reason.CHANGED: f"r.fingerprint <> d.f AND NOT ({_WAS_UNPREPARED})",
    Reason.PREPARABLE: _WAS_UNPREPARED,
    Reason.FAILED: f"{_SAME} = {Run.Status.FAILED:d}",
    Reason.DONE: f"{_SAME} IN ({Run.Status.SUCCEEDED:d}, {Run.Status.CANCELLED:d})",
    Reason.NOT_APPLICABLE: f"{_SAME} = {Run.Status.NOT_APPLICABLE:d}",
    Reason.UNDER_WAY: f"{_SAME} = {Run.Status.PENDING:d}",
}


def count_by_reason(candidates: Candidates) -> dict[Reason, int]:
    """The number of candidates by reason; one query."""
    counts = ", ".join(f"COUNT(CASE WHEN {each} THEN 1 END)" for each in CONDITIONS.values())
    [found] = select(candidates, counts)
    return dict(zip(CONDITIONS, found, strict=True))


def keys_of(candidates: Candidates, reason: Reason, *, limit: int) -> list[Key]:
    found = select(candidates, "d.k", f"WHERE {CONDITIONS[reason]} LIMIT {limit:d}")
    return [key for (key,) in found]
