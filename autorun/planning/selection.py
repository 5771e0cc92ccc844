"""The selection of rows that a planning pass takes."""

from dataclasses import dataclass

from autorun.models import UNPREPARED, Run

#: The current run `r` of row `d` is for its present input, as far as that is known.
_IS_ON_SAME_INPUT = f"(r.fingerprint = d.f OR r.fingerprint = '{UNPREPARED}')"


@dataclass(frozen=True)
class Selection:
    """The reasons for which a row is planned.

    missing: it has no current run. changed: its current run is for another input.
    failed: no attempts left, on the same input or on one that could not be prepared.
    not_applicable: the body has said so, on the same input.
    finished: forced, although the row has a finished run.
    """

    missing: bool = True
    changed: bool = True
    failed: bool = False
    not_applicable: bool = False
    finished: bool = False

    @property
    def redo_condition(self) -> str | None:
        """The SQL condition that the current run `r` of row `d` is to be superseded, or None."""
        conditions = []
        if self.finished:
            conditions.append(f"r.status <> {Run.Status.PENDING:d}")
        elif self.failed:
            conditions.append(f"r.status = {Run.Status.FAILED:d} AND {_IS_ON_SAME_INPUT}")
        elif self.not_applicable:
            conditions.append(f"r.status = {Run.Status.NOT_APPLICABLE:d} AND r.fingerprint = d.f")
        if self.changed:
            conditions.append("r.fingerprint <> d.f")
        return " OR ".join(conditions) or None


PENDING = Selection()

#: The values of `only=` for a backfill.
SELECTIONS = {
    "missing": Selection(changed=False),
    "changed": Selection(missing=False),
    "failed": Selection(missing=False, changed=False, failed=True),
    "not_applicable": Selection(missing=False, changed=False, not_applicable=True),
    "all": Selection(failed=True),
}


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
    return Selection(finished=True)
