"""Rows counted by reason, within a time limit.

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

from autorun.declare.base import Runner
from autorun.declare.hooks import every_row
from autorun.declare.nodes import node_id_of
from autorun.planning.reasons import Reason, count_by_reason, keys_of
from autorun.planning.rows import eligible, planned_by_database
from autorun.planning.windows import Window, in_halves, span_of, windows
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
        return sum(self.rows.get(reason, 0) for reason in Reason if reason.is_pending)

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

    for window in windows(runner, rows, node_id=node_id, after=after):
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
            for window in windows(runner, rows, node_id=node_id, after=above, up_to=up_to)
            for reason in Reason
            if reason.is_pending
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
