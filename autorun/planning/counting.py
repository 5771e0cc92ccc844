"""Rows counted by reason, within a time limit, as the preview of a backfill shows them.

A million rows take seconds to compare with their runs. They are counted window by window, and the
next call continues where the last one stopped.
"""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from django.db.models import QuerySet

from autorun.declare import hooks
from autorun.declare.base import Runner
from autorun.declare.hooks import as_plain, every_row
from autorun.declare.nodes import node_id_of
from autorun.models import Node
from autorun.planning.on_demand import require_valid
from autorun.planning.reasons import PENDING, Reason, Selection, count_by_reason, keys_of
from autorun.planning.rows import eligible, planned_by_database
from autorun.planning.same_input import count_same_input
from autorun.planning.scope import Scope
from autorun.planning.windows import Window, Windows, in_halves, span_of
from autorun.state.keys import Key, key_kind
from autorun.state.parameters import read_number


@dataclass(frozen=True)
class Count:
    """The rows that pass the filter, by reason, up to the key `after`; '' once all are counted.

    `samples` are the keys of some of them, as text.
    """

    rows: Mapping[str, int] = field(default_factory=dict)
    after: str = ""
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return not self.after

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    @property
    def pending(self) -> int:
        return sum(self.rows.get(reason, 0) for reason in PENDING)

    def written(self) -> str:
        """The count as text, from which `count_rows` can continue."""
        samples = {name: list(keys) for name, keys in self.samples.items()}
        return json.dumps([dict(self.rows), self.after, samples], separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The count in `text`, or None if it is not one."""
        try:
            rows, after, samples = json.loads(text)
            return cls(
                {name: read_number(rows.get(name)) or 0 for name in Reason},
                str(after),
                {name: [str(key) for key in samples.get(name, ())] for name in Reason},
            )
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None


def count_rows(
    runner: Runner,
    queryset: QuerySet[Any] | None = None,
    *,
    begun: Count | None = None,
    seconds: float = math.inf,
    samples: int = 0,
) -> Count:
    """Count the rows of `queryset`, or of the default one, by reason, with `samples` keys of each.

    Continues from `begun`, which need not be trusted, to the first window after `seconds`.
    """
    deadline = time.monotonic() + seconds
    begun = begun if begun is not None and _is_key(runner, begun.after) else Count()
    counts = Counter(begun.rows)
    shown: dict[str, list[str]] = {
        reason: [key for key in begun.samples.get(reason, ())[:samples] if _is_key(runner, key)]
        for reason in Reason
    }
    rows = eligible(runner, queryset, log_level=logging.DEBUG)
    node_id = node_id_of(runner)
    after = begun.after

    def add(window: Window) -> None:
        numbers = {Reason.UNPREPARED: len(window.unprepared)}
        if window.candidates is not None:
            numbers |= count_by_reason(window.candidates)
        for reason, number in numbers.items():
            counts[reason] += number
            if number and len(shown[reason]) < samples:
                shown[reason] += map(str, _keys(window, reason, limit=samples - len(shown[reason])))

    for window in Windows(runner, rows, node_id, after):
        in_halves(runner, rows, window, add)
        after = window.last_key
        if time.monotonic() > deadline:
            break
    return Count(dict(counts), after, shown)


@dataclass(frozen=True)
class Found:
    """Keys of pending rows, the highest first; rows up to the key `up_to` are not checked yet."""

    keys: Sequence[Any]
    up_to: str = ""


def find_pending(
    runner: Runner, queryset: QuerySet[Any], *, up_to: str = "", seconds: float, most: int
) -> Found:
    """Pending rows of `queryset` with keys up to `up_to`, from the highest key down.

    Most pending rows are new, and new rows have the highest keys. Ends with the first window after
    `seconds`, or with `most` keys or a few more.
    """
    deadline = time.monotonic() + seconds
    kind = key_kind(runner.get_model())
    rows = eligible(runner, queryset, log_level=logging.DEBUG)
    node_id = node_id_of(runner)
    up_to = up_to if _is_key(runner, up_to) else ""
    span = span_of(runner)
    if planned_by_database(runner) and not kind.is_integer:
        # Only numbers sort in Python as in the database, so only they can be cut off at `most`.
        span = most
    found: list[Any] = []
    while True:
        above = _key_below(runner, up_to, span)
        keys = [
            key
            for window in Windows(runner, rows, node_id, above, up_to)
            for reason in Reason
            if reason in PENDING
            for key in _keys(window, reason, limit=span)
        ]
        if kind.is_integer and len(found) + len(keys) > most:
            keys.sort(reverse=True)
            taken = most - len(found)
            return Found([*found, *keys[:taken]], str(keys[taken]))
        found += keys
        if not above or len(found) >= most or time.monotonic() > deadline:
            return Found(found, above)
        up_to = above


def _key_below(runner: Runner, up_to: str, span: int) -> str:
    """The key below the `span` highest ones up to `up_to`; '' if there are no more."""
    kind = key_kind(runner.get_model())
    rows = every_row(runner).order_by("-pk")
    if up_to:
        rows = rows.filter(pk__lte=kind.to_pk(up_to))
    found = list(kind.values(rows)[span : span + 1])
    return str(found[0]) if found else ""


def _keys(window: Window, reason: Reason, *, limit: int) -> list[Key]:
    if reason is Reason.UNPREPARED:
        return [row.key for row in window.unprepared[:limit]]
    return [] if window.candidates is None else keys_of(window.candidates, reason, limit=limit)


def _is_key(runner: Runner, text: str) -> bool:
    return bool(text) and key_kind(runner.get_model()).read(text) is not None


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
            reason in selection,
            tuple(str(kind.to_pk(key)) for key in count.samples.get(reason, ())),
        )
        for reason in Reason
        if reason is not Reason.FILTERED
    ]


def number_planned(groups: Sequence[Group], *, limit: int | None) -> int:
    planned = sum(group.rows for group in groups if group.is_planned)
    return planned if limit is None else min(limit, planned)
