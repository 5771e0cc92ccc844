"""Failed runs, grouped by what went wrong rather than by row."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.models import Count, F, Max, Min
from django.db.models.functions import Left

from autorun.clock import from_now
from autorun.models import Failure, Run

if TYPE_CHECKING:
    from autorun.runner import QuerySetRunner

#: Characters of a message that are looked at, and of its shape.
LOOKED_AT = 400
SHAPED = 200

_PLACEHOLDERS = (
    (re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`"), "'...'"),
    (re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[\w.~-]*[/\\])+[\w.~-]*"), "<path>"),
    (re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"), "<uuid>"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b(?=\w*\d)[0-9a-fA-F]{12,}\b"), "<hex>"),
    (re.compile(r"(?<![A-Za-z_])(?<!Errno )[-+]?\d[\d_,]*(?:\.\d+)?(?:[eE][-+]?\d+)?"), "N"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class FailureGroup:
    """Runs of one node that ended with the same class of exception and the same kind of message.

    `shape` is the message with what differs left out; `message` is one of the messages, and
    `run_id` its run.
    """

    node_id: int
    title: str
    version: str
    exception_class: str
    shape: str
    runs: int
    message: str
    run_id: int
    first_at: dt.datetime
    last_at: dt.datetime


def message_shape(message: str) -> str:
    """The first line of `message` with what differs from row to row left out: names, numbers."""
    shape = message.strip().partition("\n")[0]
    for pattern, placeholder in _PLACEHOLDERS:
        shape = pattern.sub(placeholder, shape)
    return shape.strip()[:SHAPED]


def group_failures(
    runner: QuerySetRunner | None = None,
    *,
    within: dt.timedelta | None = None,
    including_retried: bool = False,
) -> Sequence[FailureGroup]:
    """Current runs whose last attempt failed, the largest group first.

    Of one runner's node, or of all; only those that failed `within` that time, where it is given;
    and only those that failed for good, unless `including_retried`.
    """
    failures = Failure.objects.filter(run__is_current=True, attempt=F("run__attempts"))
    wanted = [Run.Status.FAILED, *([Run.Status.PENDING] if including_retried else [])]
    failures = failures.filter(run__status__in=wanted)
    if runner is not None:
        failures = failures.filter(run__node_id=runner.get_node().pk)
    if within is not None:
        failures = failures.filter(failed_at__gt=from_now(-within.total_seconds()))
    alike = failures.values(
        "run__node_id",
        "run__node__title",
        "run__node__version",
        "exception_class",
        start=Left("message", LOOKED_AT),
    ).annotate(
        runs=Count("pk"), example=Min("run_id"), first=Min("failed_at"), last=Max("failed_at")
    )
    groups: dict[tuple[Any, ...], FailureGroup] = {}
    for row in alike.order_by("example"):
        found = _group(row)
        key = (found.node_id, found.exception_class, found.shape)
        groups[key] = found if key not in groups else _joined(groups[key], found)
    return sorted(groups.values(), key=lambda each: (-each.runs, each.exception_class, each.shape))


def _group(row: Mapping[str, Any]) -> FailureGroup:
    return FailureGroup(
        node_id=row["run__node_id"],
        title=row["run__node__title"],
        version=row["run__node__version"],
        exception_class=row["exception_class"],
        shape=message_shape(row["start"]),
        runs=row["runs"],
        message=row["start"],
        run_id=row["example"],
        first_at=row["first"],
        last_at=row["last"],
    )


def _joined(one: FailureGroup, other: FailureGroup) -> FailureGroup:
    return FailureGroup(
        node_id=one.node_id,
        title=one.title,
        version=one.version,
        exception_class=one.exception_class,
        shape=one.shape,
        runs=one.runs + other.runs,
        message=one.message,
        run_id=one.run_id,
        first_at=min(one.first_at, other.first_at),
        last_at=max(one.last_at, other.last_at),
    )
