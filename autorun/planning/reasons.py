"""The reasons why a candidate is planned, or is not: chosen, counted and shown by example."""

from collections.abc import Mapping
from enum import StrEnum

from autorun.models import UNPREPARED, Run
from autorun.planning.candidates import Candidates, select
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


#: The reasons for which a planning pass takes rows.
Selection = frozenset[Reason]
PENDING = Selection((Reason.MISSING, Reason.CHANGED, Reason.PREPARABLE))
#: The values of `only=` for a backfill.
SELECTIONS: Mapping[str, Selection] = {
    "missing": Selection((Reason.MISSING,)),
    "changed": Selection((Reason.CHANGED, Reason.PREPARABLE)),
    "failed": Selection((Reason.FAILED, Reason.PREPARABLE)),
    "not_applicable": Selection((Reason.NOT_APPLICABLE,)),
    "all": PENDING | {Reason.FAILED},
}
#: All but rows that are in progress, or that cannot be planned.
FORCED = SELECTIONS["all"] | {Reason.DONE, Reason.NOT_APPLICABLE}


def selection_for(only: str | None, *, force: bool = False) -> Selection:
    """The selection for a backfill's `only` and `force`; raises ValueError if they are invalid."""
    if only is not None and only not in SELECTIONS:
        known = ", ".join(repr(name) for name in SELECTIONS)
        raise ValueError(f"There is no only={only!r}. Choose one of {known}, or None for pending.")
    if not force:
        return PENDING if only is None else SELECTIONS[only]
    if only not in (None, "all"):
        raise ValueError(
            f"force=True reruns everything in scope, so only={only!r} would be ignored: "
            "leave one of the two out."
        )
    return FORCED


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


def redo_condition(selection: Selection) -> str | None:
    """The SQL condition that the current run `r` of row `d` is to be superseded, or None."""
    # The index alone answers it unless finished runs are to be.
    conditions = []
    if Reason.DONE in selection:
        conditions.append(f"r.status <> {Run.Status.PENDING:d}")
    elif Reason.FAILED in selection:
        is_on_same_input = f"(r.fingerprint = d.f OR r.fingerprint = '{UNPREPARED}')"
        conditions.append(f"r.status = {Run.Status.FAILED:d} AND {is_on_same_input}")
    elif Reason.NOT_APPLICABLE in selection:
        conditions.append(CONDITIONS[Reason.NOT_APPLICABLE])
    if Reason.CHANGED in selection:
        conditions.append("r.fingerprint <> d.f")
    return " OR ".join(conditions) or None


def count_by_reason(candidates: Candidates) -> dict[Reason, int]:
    """The number of candidates by reason; one query."""
    counts = ", ".join(f"COUNT(CASE WHEN {each} THEN 1 END)" for each in CONDITIONS.values())
    [found] = select(candidates, counts)
    return dict(zip(CONDITIONS, found, strict=True))


def keys_of(candidates: Candidates, reason: Reason, *, limit: int) -> list[Key]:
    found = select(candidates, "d.k", f"WHERE {CONDITIONS[reason]} LIMIT {limit:d}")
    return [key for (key,) in found]
