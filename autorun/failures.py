"""Failed runs, grouped by what went wrong rather than by row."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.models import Count, F, Max, Min, Q, QuerySet, Subquery
from django.db.models.functions import Left
from django.utils import timezone

from autorun.clock import from_now
from autorun.models import Failure, Node, Run
from autorun.nodes import labels_by_digest
from autorun.parameters import SINCE, read_number

if TYPE_CHECKING:
    from autorun.runner import QuerySetRunner

Row = Mapping[str, Any]

#: Characters of a message that are looked at, and of its shape.
LOOKED_AT = 400
SHAPED = 200
#: The newest failures that a page looks at; a group's actions go through all of them.
MOST_SHOWN = 2_000
BUCKETS = 24
AT_ONCE = 2_000
#: What of a run says which row it is about, and whose it is.
_NAMES = ("pk", "node_id", "chunk_id", "object_id", "object_key")
#: Ids of failures that one look for the runs of a group goes through.
IDS_AT_ONCE = 20_000

#: The attempt that a run ended with.
_LAST = Q(attempt=F("run__attempts"), run__is_current=True)
_NODE = ("run__node_id", "run__node__title", "run__node__version")

DIGITS = "0123456789"
#: What differs from row to row, what stands for it, and characters without which it is not there.
_PLACEHOLDERS = (
    (re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`"), "'...'", "'\"`"),
    (re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[\w.~-]*[/\\])+[\w.~-]*"), "<path>", "/\\"),
    (re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"), "<uuid>", "-"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b(?=\w*\d)[0-9a-fA-F]{12,}\b"), "<hex>", DIGITS),
    (
        re.compile(r"(?<![A-Za-z_])(?<!Errno )[-+]?\d[\d_,]*(?:\.\d+)?(?:[eE][-+]?\d+)?"),
        "N",
        DIGITS,
    ),
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

    @property
    def key(self) -> str:
        """A short name of the group, for addresses."""
        return _key(self.node_id, self.exception_class, self.shape)


@dataclass(frozen=True)
class RecentGroup:
    """Failed attempts of late: how many, with their course over time, the oldest first.

    The group's `runs` are those that have failed for good by now; there may be none.
    """

    group: FailureGroup
    attempts: int
    times: Sequence[int]


@dataclass(frozen=True)
class Member:
    """A run of a group, with its last failure."""

    failure_id: int
    run_id: int
    exception_class: str
    shape: str

    def is_of(self, node_id: int, key: str) -> bool:
        return _key(node_id, self.exception_class, self.shape) == key


@dataclass(frozen=True)
class RecentFailures:
    """Groups, the largest first. `looked_at` failures were grouped; `is_all` of those there are."""

    groups: Sequence[RecentGroup]
    looked_at: int
    is_all: bool


def message_shape(message: str) -> str:
    """The first line of `message` with what differs from row to row left out: names, numbers."""
    shape = message.strip().partition("\n")[0]
    for pattern, placeholder, signs in _PLACEHOLDERS:
        if any(sign in shape for sign in signs):
            shape = pattern.sub(placeholder, shape)
    return " ".join(shape.split())[:SHAPED]


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
    wanted = [Run.Status.FAILED, *([Run.Status.PENDING] if including_retried else [])]
    failures = Failure.objects.filter(_LAST, run__status__in=wanted)
    if runner is not None:
        failures = failures.filter(run__node_id=runner.get_node().pk)
    if within is not None:
        failures = failures.filter(failed_at__gt=from_now(-within.total_seconds()))
    alike = failures.values(*_NODE, "exception_class", start=Left("message", LOOKED_AT)).annotate(
        runs=Count("pk"), example=Min("run_id"), first=Min("failed_at"), last=Max("failed_at")
    )
    groups = [_group(alike) for alike in _alike(alike.order_by("example")).values()]
    return sorted(groups, key=_size)


def recent_failures(since: str, *, label: str = "") -> RecentFailures:
    """Failed attempts of the last hour, or more (a key of SINCE), in groups; one query.

    Only those of the runner of that label, where it is given.
    """
    now = timezone.now()
    span = SINCE[since]
    failures = Failure.objects.filter(failed_at__gte=now - span)
    if label:
        failures = failures.filter(run__chunk__runner=label)
    rows = list(
        failures.order_by("-failed_at").values(
            *_NODE,
            "exception_class",
            "attempt",
            "run__attempts",
            "run__status",
            "run__is_current",
            start=Left("message", LOOKED_AT),
            example=F("run_id"),
            last=F("failed_at"),
        )[: MOST_SHOWN + 1]
    )
    for row in rows:
        row.update(first=row["last"], runs=_failed_for_good(row))
    found = [
        RecentGroup(_group(alike), len(alike), _times(alike, begin=now - span, span=span))
        for alike in _alike(rows[:MOST_SHOWN]).values()
    ]
    found.sort(key=lambda each: (-each.group.runs, -each.attempts, _size(each.group)))
    return RecentFailures(found, min(len(rows), MOST_SHOWN), len(rows) <= MOST_SHOWN)


def runs_of(key: str, since: str) -> Iterator[list[Run]]:
    """The runs of a recent group that failed for good, a few thousand at a time; all of them."""
    node_id = read_number(key.partition("-")[0])
    failures = Failure.objects.filter(
        _LAST,
        failed_at__gte=timezone.now() - SINCE[since],
        run__status=Run.Status.FAILED,
        run__node_id=node_id or 0,
    )
    for rows in _from_the_newest(failures):
        ids = {
            run_id
            for _, run_id, node, exception_class, start in rows
            if _key(node, exception_class, message_shape(start)) == key
        }
        if ids:
            yield list(Run.objects.filter(pk__in=ids).only(*_NAMES))


def failed_runs(
    runner: QuerySetRunner,
    *,
    exception_class: str | None = None,
    within: dt.timedelta | None = None,
) -> Iterator[list[Run]]:
    """The runs of the runner's node that failed for good, a few thousand at a time; all of them.

    Where these are given, only those whose last attempt raised `exception_class`, and only those
    that failed `within` that time.
    """
    failures = Failure.objects.filter(
        _LAST, run__status=Run.Status.FAILED, run__node_id=runner.get_node().pk
    )
    if exception_class is not None:
        failures = failures.filter(exception_class=exception_class)
    if within is not None:
        failures = failures.filter(failed_at__gt=from_now(-within.total_seconds()))
    for rows in _from_the_newest(failures):
        ids = {run_id for _, run_id, *_ in rows}
        yield list(Run.objects.filter(pk__in=ids).only(*_NAMES))


def members_of(
    key: str, since: str = "", *, exception_class: str = "", before: int | None = None
) -> Iterator[tuple[list[Member], int | None]]:
    """The runs of a group by rounds, those that failed last first, whether for good or not.

    Each round looks at the failures of IDS_AT_ONCE ids, and at no more than AT_ONCE messages: it
    gives the members among them, of which there may be none, and the lowest of the ids, None for
    the last round. `before` is where to go on from. Where the `exception_class` of the group is
    known, fewer messages are looked at.
    """
    node_id = read_number(key.partition("-")[0])
    begin, end = _ids_since(since)
    end = end if before is None else min(end, before - 1)
    while node_id is not None and end > begin:
        failures = Failure.objects.filter(
            _LAST, pk__gt=max(begin, end - IDS_AT_ONCE), pk__lte=end, run__node_id=node_id
        )
        if since:
            failures = failures.filter(failed_at__gte=timezone.now() - SINCE[since])
        if exception_class:
            failures = failures.filter(exception_class=exception_class)
        rows = failures.order_by("-pk").values_list(
            "pk", "run_id", "exception_class", Left("message", LOOKED_AT)
        )[:AT_ONCE]
        members = [
            Member(pk, run_id, its_class, message_shape(start))
            for pk, run_id, its_class, start in rows
        ]
        end = members[-1].failure_id - 1 if len(members) == AT_ONCE else end - IDS_AT_ONCE
        lowest = end + 1 if end > begin else None
        yield [each for each in members if each.is_of(node_id, key)], lowest


def labels_of(groups: Iterable[FailureGroup]) -> dict[int, str]:
    """The label of each group's first registered runner, where there is one, by node."""
    labels = labels_by_digest()
    found = Node.objects.filter(pk__in={each.node_id for each in groups}, digest__in=labels)
    return {pk: labels[digest][0] for pk, digest in found.values_list("pk", "digest")}


def _ids_since(since: str) -> tuple[int, int]:
    """An id below those of the failures since then, and the highest of all."""
    newest = Failure.objects.order_by("-pk")
    if not since:
        return 0, newest.values_list("pk", flat=True).first() or 0
    of_late = Failure.objects.filter(failed_at__gte=timezone.now() - SINCE[since])
    oldest = Subquery(of_late.order_by("failed_at").values("pk")[:1])
    begin, end = newest.values_list(oldest, "pk").first() or (None, 0)
    # What is recorded at the same time has ids in any order.
    return (end if begin is None else max(0, begin - IDS_AT_ONCE)), end


def _from_the_newest(failures: QuerySet[Failure]) -> Iterator[list[tuple[Any, ...]]]:
    rows = failures.order_by("-pk").values_list(
        "pk", "run_id", "run__node_id", "exception_class", Left("message", LOOKED_AT)
    )
    some = list(rows[:AT_ONCE])
    while some:
        yield some
        some = list(rows.filter(pk__lt=some[-1][0])[:AT_ONCE])


def _alike(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Failures, or counts of failures, of one node, exception class and shape of message."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        shape = message_shape(row["start"])
        found.setdefault((row["run__node_id"], row["exception_class"], shape), []).append(row)
    return found


def _group(rows: Sequence[Row]) -> FailureGroup:
    """The group of rows that are alike; the first gives the example."""
    first = rows[0]
    return FailureGroup(
        node_id=first["run__node_id"],
        title=first["run__node__title"],
        version=first["run__node__version"],
        exception_class=first["exception_class"],
        shape=message_shape(first["start"]),
        runs=sum(row["runs"] for row in rows),
        message=first["start"],
        run_id=first["example"],
        first_at=min(row["first"] for row in rows),
        last_at=max(row["last"] for row in rows),
    )


def _times(rows: Sequence[Row], *, begin: dt.datetime, span: dt.timedelta) -> list[int]:
    times = [0] * BUCKETS
    for row in rows:
        bucket = int((row["last"] - begin) / span * BUCKETS)
        times[min(max(bucket, 0), BUCKETS - 1)] += 1
    return times


def _failed_for_good(row: Row) -> bool:
    return bool(
        row["run__status"] == Run.Status.FAILED
        and row["run__is_current"]
        and row["attempt"] == row["run__attempts"]
    )


def _size(group: FailureGroup) -> tuple[int, str, str]:
    """What sorts the largest group first."""
    return -group.runs, group.exception_class, group.shape


def _key(node_id: int, exception_class: str, shape: str) -> str:
    shape_hash = hashlib.sha256(f"{exception_class}\n{shape}".encode()).hexdigest()
    return f"{node_id}-{shape_hash[:16]}"
