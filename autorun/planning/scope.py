"""What a batch is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from django.db.models import Q, QuerySet

from autorun.exceptions import NotRegistered
from autorun.keys import key_kind
from autorun.planning.selection import Selection, selection_for

if TYPE_CHECKING:
    from autorun.runner import QuerySetRunner


@dataclass(frozen=True)
class Scope:
    """What a batch is about, in words that another process understands.

    `given` is a queryset of the caller's, which no other process can go on with.
    """

    filter: str | None = None
    pks: tuple[Any, ...] | None = None
    only: str | None = None
    force: bool = False
    given: bool = False

    @property
    def selection(self) -> Selection:
        """Raises ValueError for an unknown `only`."""
        return selection_for(self.only, force=self.force)

    def queryset(self, runner: QuerySetRunner) -> QuerySet[Any] | None:
        """The rows the scope names, unfiltered; None for the runner's base queryset.

        Raises NotRegistered for a filter the runner does not have.
        """
        if self.filter is None and self.pks is None:
            return None
        rows = runner.get_base_queryset()
        if self.filter is not None:
            rows = _named_filter(runner, self.filter)(rows)
        if self.pks is not None:
            kind = key_kind(runner.get_model())
            rows = rows.filter(pk__in=[kind.to_pk(pk) for pk in self.pks])
        return rows

    def written(self) -> dict[str, Any]:
        """The scope as JSON."""
        return {**asdict(self), "pks": None if self.pks is None else list(self.pks)}

    @classmethod
    def read(cls, written: dict[str, Any]) -> Scope:
        """The scope that `written` is the JSON of."""
        pks = written.get("pks")
        return cls(**{**written, "pks": None if pks is None else tuple(pks)})

    def __str__(self) -> str:
        words = [self.only or "pending", "rows"]
        if self.force:
            words = ["all rows, again"]
        if self.given:
            words.append("of a queryset")
        if self.filter is not None:
            words.append(f"in {self.filter!r}")
        if self.pks is not None:
            words.append(f"among {len(self.pks)} keys")
        return " ".join(words)


def _named_filter(runner: QuerySetRunner, name: str) -> Callable[[QuerySet[Any]], QuerySet[Any]]:
    known = runner.FILTERS or {}
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise NotRegistered(
            f"{runner.label} has no filter {name!r} in FILTERS. There are: {names}."
        )
    found = known[name]
    if isinstance(found, Q):
        condition = found
        return lambda rows: rows.filter(condition)
    return found
