"""Recent failures in groups, with their course over time, from a bounded number of them."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from django.db.models.functions import Left
from django.utils import timezone

from autorun.failures import LOOKED_AT, message_shape
from autorun.listing import SINCE
from autorun.models import Failure, Run

#: The newest failures that a page looks at; a group's actions go through all of them.
MOST_SHOWN = 3_000
BUCKETS = 24
AT_ONCE = 2_000


@dataclass
class Group:
    """Failures of one exception class and message shape; `times` are counts, oldest first.

    `failures` counts attempts; `failed_runs` those runs that have failed for good by now.
    """

    key: str
    exception_class: str
    shape: str
    message: str
    failures: int = 0
    runs: set[int] = field(default_factory=set)
    failed_runs: set[int] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)
    last_at: dt.datetime | None = None
    times: list[int] = field(default_factory=lambda: [0] * BUCKETS)


@dataclass(frozen=True)
class Groups:
    """Groups, the largest first. `looked_at` failures were grouped; `is_all` of those there are."""

    groups: Sequence[Group]
    looked_at: int
    is_all: bool


def key_of(exception_class: str, shape: str) -> str:
    """A short name of a group, for addresses."""
    return hashlib.sha256(f"{exception_class}\n{shape}".encode()).hexdigest()[:16]


def recent_groups(since: str) -> Groups:
    """The failures of the last hour, day or week (a key of SINCE) in groups; one query."""
    now = timezone.now()
    span = SINCE[since]
    rows = list(
        Failure.objects.filter(failed_at__gte=now - span)
        .order_by("-failed_at")
        .values_list(
            "exception_class",
            Left("message", LOOKED_AT),
            "run_id",
            "failed_at",
            "run__status",
            "run__is_current",
            "run__node_id",
        )[: MOST_SHOWN + 1]
    )
    groups: dict[tuple[str, str], Group] = {}
    for exception_class, message, run_id, failed_at, status, is_current, node_id in rows[
        :MOST_SHOWN
    ]:
        shape = message_shape(message)
        group = groups.get((exception_class, shape))
        if group is None:
            key = key_of(exception_class, shape)
            group = Group(key, exception_class, shape, message, last_at=failed_at)
            groups[exception_class, shape] = group
        group.failures += 1
        group.runs.add(run_id)
        if node_id is not None:
            group.nodes.add(node_id)
        if status == Run.Status.FAILED and is_current:
            group.failed_runs.add(run_id)
        bucket = int((failed_at - (now - span)) / span * BUCKETS)
        group.times[min(max(bucket, 0), BUCKETS - 1)] += 1
    ordered = sorted(groups.values(), key=lambda each: (-len(each.failed_runs), -each.failures))
    return Groups(ordered, min(len(rows), MOST_SHOWN), len(rows) <= MOST_SHOWN)


def runs_of(key: str, since: str) -> Iterator[list[Run]]:
    """The runs of a group that have failed for good, a few thousand at a time; all of them."""
    failures = Failure.objects.filter(
        failed_at__gte=timezone.now() - SINCE[since],
        run__status=Run.Status.FAILED,
        run__is_current=True,
    ).order_by("-pk")
    before: int | None = None
    while True:
        window = failures if before is None else failures.filter(pk__lt=before)
        rows = list(
            window.values_list("pk", "run_id", "exception_class", Left("message", LOOKED_AT))[
                :AT_ONCE
            ]
        )
        if not rows:
            return
        before = rows[-1][0]
        ids = {
            run_id
            for _, run_id, exception_class, message in rows
            if key_of(exception_class, message_shape(message)) == key
        }
        if ids:
            names = ("pk", "node_id", "chunk_id", "object_id", "object_key")
            yield list(Run.objects.filter(pk__in=ids).only(*names))
