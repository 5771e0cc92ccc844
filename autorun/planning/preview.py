"""The preview of a backfill: rows by reason, with examples."""

from collections.abc import Sequence
from dataclasses import dataclass

from autorun.declare import hooks
from autorun.declare.base import Runner
from autorun.declare.hooks import as_plain
from autorun.declare.nodes import node_id_of
from autorun.models import Node
from autorun.planning.counting import Count, count_rows
from autorun.planning.on_demand import require_valid
from autorun.planning.reasons import Reason
from autorun.planning.same_input import count_same_input
from autorun.planning.scope import Scope
from autorun.planning.selection import Selection
from autorun.state.keys import key_kind


@dataclass(frozen=True)
class Group:
    """The rows of one reason; `samples` are some of their primary keys, as text."""

    reason: Reason
    rows: int
    is_planned: bool
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preview:
    """All rows in scope in groups, and the number of runs that would be planned.

    `seconds` is what those would take one after the other, None if no run has been measured.
    `same_input` are changed rows whose input is the same by an earlier definition.
    """

    groups: Sequence[Group]
    planned: int
    seconds: float | None
    same_input: int = 0


def preview(runner: Runner, scope: Scope, *, limit: int | None = None, samples: int = 0) -> Preview:
    """The result of planning that scope; nothing is recorded.

    Raises ValueError for an unknown `only`, NotRegistered for an unknown filter.
    """
    require_valid(runner)
    selection, given = scope.selection, scope.queryset(runner)
    count = count_rows(runner, given, samples=samples)
    in_scope = as_plain(runner, hooks.base_queryset(runner) if given is None else given).count()
    filtered = Group(Reason.FILTERED, max(0, in_scope - count.total), False)
    groups = [*groups_of(runner, count, selection), filtered]
    planned = number_planned(groups, limit=limit)
    nodes = Node.objects.filter(pk=node_id_of(runner))
    seconds = nodes.values_list("run_seconds", flat=True).first()
    same = count_same_input(runner, given) if count.rows.get(Reason.CHANGED) else 0
    return Preview(groups, planned, None if seconds is None else seconds * planned, same)


def groups_of(runner: Runner, count: Count, selection: Selection) -> list[Group]:
    """The counted rows in groups; rows that are filtered out are not among them."""
    kind = key_kind(runner.get_model())
    return [
        Group(
            reason,
            count.rows.get(reason, 0),
            reason.is_taken_by(selection),
            tuple(str(kind.to_pk(key)) for key in count.samples.get(reason, ())),
        )
        for reason in Reason
        if reason is not Reason.FILTERED
    ]


def number_planned(groups: Sequence[Group], *, limit: int | None) -> int:
    planned = sum(group.rows for group in groups if group.is_planned)
    return planned if limit is None else min(limit, planned)
