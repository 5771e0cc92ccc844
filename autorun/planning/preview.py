"""What a backfill would do, before it does it: rows by reason, with examples."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autorun.conf import settings
from autorun.declare import hooks
from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.planning.looks import require_valid
from autorun.planning.querysets import as_plain
from autorun.planning.reasons import Reason, count_by_reason, keys_of
from autorun.planning.rows import eligible
from autorun.planning.scope import Scope
from autorun.planning.windows import Window, windows
from autorun.state.keys import key_kind

if TYPE_CHECKING:
    from django.db.models import QuerySet


#: Rows whose input raises, and rows that the runner's filter or its dependencies leave out.
UNPREPARED = "unprepared"
FILTERED = "filtered"


@dataclass(frozen=True)
class Group:
    """The rows of one reason: a `Reason`, "unprepared" or "filtered"; `samples` are their keys."""

    reason: str
    rows: int
    is_planned: bool
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preview:
    """Groups that make up all rows in scope, and how many runs would be planned of them.

    `seconds` is what those would take one after the other, None where no run has been measured.
    """

    groups: Sequence[Group]
    planned: int
    seconds: float | None


def preview(
    runner: Runner,
    scope: Scope,
    queryset: QuerySet[Any] | None = None,
    *,
    limit: int | None = None,
    samples: int = 0,
) -> Preview:
    """What planning that scope would do; nothing is recorded.

    Raises ValueError and NotRegistered for a scope that names what there is not.
    """
    require_valid(runner)
    selection = scope.selection
    given = scope.queryset(runner) if queryset is None else queryset
    rows = eligible(runner, given, log_level=logging.DEBUG)
    counts: Counter[str] = Counter()
    found: dict[str, list[str]] = {reason: [] for reason in (*Reason, UNPREPARED)}
    node = node_of(runner)
    for window in windows(runner, rows, node_id=node.pk):
        _look(runner, window, counts, found, samples)
    counts[FILTERED] = _number_in_scope(runner, given) - counts.total()
    planned = sum(counts[reason] for reason in Reason if reason.is_taken_by(selection))
    planned = planned if limit is None else min(limit, planned)
    groups = [
        Group(reason, counts[reason], reason.is_taken_by(selection), tuple(found[reason]))
        for reason in Reason
    ]
    groups.append(Group(UNPREPARED, counts[UNPREPARED], False, tuple(found[UNPREPARED])))
    groups.append(Group(FILTERED, max(0, counts[FILTERED]), False))
    node.refresh_from_db(fields=["run_seconds"])
    seconds = None if node.run_seconds is None else node.run_seconds * planned
    return Preview(groups, planned, seconds)


def _look(
    runner: Runner,
    window: Window,
    counts: Counter[str],
    found: dict[str, list[str]],
    samples: int,
) -> None:
    """Add what is in `window` to the counts, and to the keys that are shown."""
    kind = key_kind(runner.get_model())
    counts[UNPREPARED] += len(window.unprepared)
    missing = samples - len(found[UNPREPARED])
    found[UNPREPARED] += [str(kind.to_pk(row.key)) for row in window.unprepared[:missing]]
    if window.candidates is None:
        return
    here = count_by_reason(window.candidates, using=settings.DATABASE)
    for reason, number in here.items():
        counts[reason] += number
        missing = samples - len(found[reason])
        if number and missing > 0:
            keys = keys_of(window.candidates, reason, limit=missing, using=settings.DATABASE)
            found[reason] += [str(kind.to_pk(key)) for key in keys]


def _number_in_scope(runner: Runner, queryset: QuerySet[Any] | None) -> int:
    rows = hooks.base_queryset(runner) if queryset is None else queryset
    return as_plain(runner, rows).count()
