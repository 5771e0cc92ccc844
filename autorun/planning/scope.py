"""The scope of a batch: its rows, and the reasons to plan them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

from django.db.models import Q, QuerySet

from autorun.declare import hooks, page_time
from autorun.declare.base import Runner
from autorun.exceptions import NotRegistered
from autorun.planning.reasons import Selection, selection_for
from autorun.state.keys import key_kind
from autorun.state.words import counted

Found = TypeVar("Found")
Rows = Callable[[Runner, Mapping[str, Any]], QuerySet[Any]]

#: Functions that find the rows of a `source`, by its kind, in any process. A module that makes such
#: scopes registers one on import. It raises RowsGone if the rows can no longer be found.
SOURCES: dict[str, Rows] = {}

#: Functions that raise RowsGone if the user who requested a scope may no longer do so, by the kind
#: of `asked`. They are registered like a source.
GUARDS: dict[str, Callable[[Mapping[str, Any]], object]] = {}


@dataclass(frozen=True)
class Scope:
    """The scope of a batch, as another process can read it.

    `given` is a queryset of the caller's, which no other process can continue. `source` replaces
    `pks` and `filter`: its `kind` is one of SOURCES, which needs the other values. With
    `beyond_base`, `pks` and `filter` also find rows outside the runner's base queryset. `asked`
    says who asked on a page, whose permission a worker checks again; its `kind` is one of GUARDS.
    """

    filter: str | None = None
    pks: tuple[Any, ...] | None = None
    only: str | None = None
    force: bool = False
    given: bool = False
    source: dict[str, Any] | None = None
    beyond_base: bool = False
    asked: dict[str, Any] | None = None

    @property
    def selection(self) -> Selection:
        """Raises ValueError for an unknown `only`."""
        return selection_for(self.only, force=self.force)

    def queryset(self, runner: Runner) -> QuerySet[Any] | None:
        """The rows of the scope, unfiltered; None for the runner's base queryset.

        Raises NotRegistered for an unknown filter, and RowsGone if the source is gone or the user
        may no longer request it.
        """
        if self.asked is not None:
            _known(GUARDS, self.asked)(self.asked)
        if self.source is not None:
            return _known(SOURCES, self.source)(runner, self.source)
        if self.filter is None and self.pks is None:
            return None
        rows = hooks.every_row(runner) if self.beyond_base else hooks.base_queryset(runner)
        if self.filter is not None:
            rows = _filtered(runner, self.filter, rows)
        if self.pks is not None:
            kind = key_kind(runner.get_model())
            rows = rows.filter(pk__in=[kind.to_pk(pk) for pk in self.pks])
        return rows

    def written(self) -> dict[str, Any]:
        written = {**asdict(self), "pks": None if self.pks is None else list(self.pks)}
        if self.asked is None:  # unknown to workers of an earlier version
            del written["asked"]
        return written

    @classmethod
    def read(cls, written: dict[str, Any]) -> Self:
        """The scope that another process wrote. Raises NotRegistered if a newer version did."""
        pks = written.get("pks")
        try:
            scope = cls(**{**written, "pks": None if pks is None else tuple(pks)})
            _ = scope.selection
        except (TypeError, ValueError) as unknown:
            raise NotRegistered(
                f"A newer version of autorun asked for these rows: {unknown}"
            ) from None
        return scope

    def __str__(self) -> str:
        words = ["all" if self.force else self.only or "pending", "rows"]
        if self.given:
            words.append("of a queryset")
        if self.source is not None:
            words.append(str(self.source.get("words", "")))
        if self.filter is not None:
            words.append(f"in {self.filter!r}")
        if self.pks is not None and self.only == "failed":
            words = [f"retry of {counted(len(self.pks), 'row')}", *words[2:]]
        elif self.pks is not None:
            words.append(
                f"among {len(self.pks):,} chosen rows" if len(self.pks) != 1 else "of one key"
            )
        return " ".join(words) + ", again" * self.force


def _known(registered: Mapping[str, Found], written: Mapping[str, Any]) -> Found:
    found = registered.get(str(written.get("kind")))
    if found is None:
        raise NotRegistered(
            f"This process does not know the scope {written.get('kind')!r}. Do the workers have "
            "the same INSTALLED_APPS?"
        )
    return found


def _filtered(runner: Runner, name: str, rows: QuerySet[Any]) -> QuerySet[Any]:
    known = runner.FILTERS or {}
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise NotRegistered(
            f"{runner.label} has no filter {name!r} in FILTERS. There are: {names}."
        )
    found = known[name]
    if isinstance(found, Q):
        return rows.filter(found)
    what = f"The filter {name!r} of {runner.label}"
    return page_time.limited(what, lambda: found(rows), code=found)
