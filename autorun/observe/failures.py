"""Failed runs, grouped by what went wrong rather than by row."""

import datetime as dt
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Case, Count, F, OuterRef, Q, QuerySet, Subquery, When, Window
from django.db.models.functions import Left, RowNumber
from django.utils import timezone
from django.utils.crypto import salted_hmac
from django.utils.functional import cached_property

from autorun.declare.base import Runner
from autorun.declare.nodes import labels_by_id, node_id_of, nodes_of
from autorun.models import Chunk, Failure, Node, Run
from autorun.observe.run_states import NAMES
from autorun.state.clock import from_now
from autorun.state.parameters import SINCE

Row = Mapping[str, Any]
ClassOfNode = tuple[int, str]

#: Characters of a message that are read, and of its shape.
READ = 400
SHAPED = 200
#: Failures whose messages are read: the newest of all, and at least so many of each class. The
#: actions on a group read all of them.
READ_AT_ONCE = 2_000
LEAST_OF_CLASS = 100
#: Runs that a group names.
EXAMPLES = 3
BUCKETS = 24
FAILURES_AT_ONCE = 2_000

#: The last attempt of a current run.
LAST = Q(attempt=F("run__attempts"), run__is_current=True)

DIGITS = "0123456789"
#: Patterns that differ from row to row, their placeholders, and characters that every match has.
_PLACEHOLDERS = (
    # An apostrophe within a word opens no quotation.
    (re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|`[^`]*`"), "'...'", "'\"`"),
    (re.compile(r"(?<![\w.<])(?:[A-Za-z]:)?(?:[\w.~-]*[/\\])+[\w.~-]*"), "<path>", "/\\"),
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
    """Runs of one node whose last attempts failed with the same class and kind of message.

    `shape` is the message without its varying parts; `heading` is the message that all have, or
    that; `message` is the newest of the messages, and `run_ids` are the newest few runs, its run
    first. `of_class` counts all failures of the node and class. If they are too many to read all
    messages, the group is of the `of_newest` newest failures, else that is 0.
    """

    node_id: int
    title: str
    version: str
    exception_class: str
    shape: str
    heading: str
    runs: int
    message: str
    run_ids: Sequence[int]
    first_at: dt.datetime
    last_at: dt.datetime
    of_class: int
    of_newest: int

    @property
    def run_id(self) -> int:
        return self.run_ids[0]

    @cached_property
    def key(self) -> str:
        """A short name of the group, for addresses."""
        return group_key(self.node_id, self.exception_class, self.shape)

    @property
    def cause(self) -> str:
        """The start of the key, without the node's: short enough to be typed."""
        return self.key.partition("-")[2][:8]


@dataclass(frozen=True)
class RecentGroup:
    """Recent failed attempts: how many, and their course over time, the oldest first.

    The group's `runs` are those that have no attempts left by now; there may be none.
    """

    group: FailureGroup
    attempts: int
    times: Sequence[int]


@dataclass(frozen=True)
class RecentFailures:
    """Groups, the largest first, and the number of all failed attempts, in groups or not.

    `earlier` of them are of nodes that no registered runner has; `labels` has the runners' nodes,
    and `former` the others, with the runners that had them.
    """

    groups: Sequence[RecentGroup]
    attempts: int
    earlier: int
    labels: Mapping[int, str]
    former: Mapping[int, str]


def log_tails(run_ids: Iterable[int]) -> dict[int, str]:
    """The log, output and stderr of the last failed attempts, by run, if they are known."""
    failures = Failure.objects.filter(run__in=list(run_ids)).exclude(log_tail="")
    return dict(failures.order_by("attempt").values_list("run_id", "log_tail"))


def message_shape(message: str) -> str:
    """The first line of `message` without names, numbers and the like, which vary by row."""
    shape = message.strip().partition("\n")[0]
    characters = set(shape)
    for pattern, placeholder, signs in _PLACEHOLDERS:
        if not characters.isdisjoint(signs):
            shape = pattern.sub(placeholder, shape)
    return " ".join(shape.split())[:SHAPED]


def group_key(node_id: int, exception_class: str, shape: str) -> str:
    """The key of a group. Keyed with the project's secret: it confirms no guess at a message."""
    keyed = salted_hmac("autorun.observe.failures", f"{exception_class}\n{shape}")
    return f"{node_id}-{keyed.hexdigest()[:16]}"


def group_failures(
    runner: Runner | None = None,
    *,
    batch_id: int | None = None,
    within: dt.timedelta | None = None,
    including_retried: bool = False,
) -> Sequence[FailureGroup]:
    """Current runs whose last attempt failed, the largest group first; two queries or three.

    Runs of one runner's node, of one batch, or of all; those with attempts left only if
    `including_retried`.
    """
    wanted = [Run.Status.FAILED, *([Run.Status.PENDING] if including_retried else [])]
    counted = LAST & Q(run__status__in=wanted)
    failures = Failure.objects.filter(counted)
    if runner is not None:
        failures = failures.filter(run__node_id=node_id_of(runner))
    if batch_id is not None:
        failures = failures.filter(run__chunk__batch=batch_id)
    if within is not None:
        failures = failures.filter(failed_at__gt=from_now(-within.total_seconds()))
    groups = [group for group, _ in _grouped(failures, _numbers(failures), counted=counted)]
    return sorted(groups, key=_size)


def recent_failures(since: str, *, label: str = "", with_earlier: bool = True) -> RecentFailures:
    """Failed attempts of all runners or the given one `since` then (a key of SINCE), in groups.

    Those of earlier versions are only counted unless `with_earlier`.
    """
    now = timezone.now()
    span = SINCE[since]
    failures = Failure.objects.filter(failed_at__gte=now - span)
    if label:
        failures = failures.filter(run__chunk__runner=label)
    classes = _numbers(failures)
    current = labels_by_id()
    present = {each: number for each, number in classes.items() if each[0] in current}
    earlier = sum(classes.values()) - sum(present.values())
    if earlier and not with_earlier:
        failures, classes = _with_node(failures).filter(node__in=current), present
    labels, former = runners_of(node_id for node_id, _ in classes)
    counted = LAST & Q(run__status=Run.Status.FAILED)
    found = [
        RecentGroup(group, len(alike), _times(alike, begin=now - span, span=span))
        for group, alike in _grouped(failures, classes, counted=counted)
    ]
    found.sort(key=lambda each: (-each.group.runs, -each.attempts, _size(each.group)))
    return RecentFailures(found, sum(present.values()) + earlier, earlier, labels, former)


def failed_runs(
    runner: Runner,
    *,
    exception_class: str | None = None,
    within: dt.timedelta | None = None,
    of_earlier_versions: bool = False,
) -> Iterator[list[Run]]:
    """The failed runs of the runner's node without attempts left, a few thousand at a time.

    `of_earlier_versions` includes those of nodes that the runner had before.
    """
    failures = _for_good(nodes_of(runner) if of_earlier_versions else [node_id_of(runner)])
    if exception_class is not None:
        failures = failures.filter(exception_class=exception_class)
    if within is not None:
        failures = failures.filter(failed_at__gt=from_now(-within.total_seconds()))
    for rows in _from_the_newest(failures):
        ids = {run_id for _, run_id, *_ in rows}
        yield list(Run.objects.filter(pk__in=ids).only(*NAMES))


def classes_of(runner: Runner) -> list[str]:
    """The exception classes of the failed runs of the runner's node, in the order of names."""
    classes = _for_good([node_id_of(runner)]).values_list("exception_class", flat=True)
    return list(classes.distinct().order_by("exception_class"))


def exception_classes() -> set[str]:
    """The classes of the last week's failures, or of the newest ones if there were none."""
    failures = Failure.objects.values_list("exception_class", flat=True)
    late = failures.filter(failed_at__gte=timezone.now() - SINCE["7d"])
    return set(late.distinct()) or set(failures.order_by("-pk")[:FAILURES_AT_ONCE])


def runners_of(node_ids: Iterable[int]) -> tuple[dict[int, str], dict[int, str]]:
    """The label of each node's first registered runner, or of the one that had the node before."""
    ids, current = set(node_ids), labels_by_id()
    of_chunks = Chunk.objects.filter(node=OuterRef("pk")).values("runner")[:1]
    others = Node.objects.filter(pk__in=ids - current.keys())
    former = {pk: label or "" for pk, label in others.values_list("pk", Subquery(of_chunks))}
    return {pk: current[pk][0] for pk in ids & current.keys()}, former


def _for_good(node_ids: Collection[int]) -> QuerySet[Failure]:
    of_nodes = Failure.objects.filter(run__node_id__in=node_ids)
    return of_nodes.filter(LAST, run__status=Run.Status.FAILED)


def runs_in(groups: Iterable[FailureGroup]) -> int:
    """The number of runs of these classes, including those whose messages were not read."""
    classes = {(group.node_id, group.exception_class): group.of_class for group in groups}
    return sum(classes.values())


def _from_the_newest(failures: QuerySet[Failure]) -> Iterator[list[tuple[Any, ...]]]:
    rows = failures.order_by("-pk").values_list(
        "pk", "run_id", "run__node_id", "exception_class", Left("message", READ)
    )
    some = list(rows[:FAILURES_AT_ONCE])
    while some:
        yield some
        some = list(rows.filter(pk__lt=some[-1][0])[:FAILURES_AT_ONCE])


def _with_node(failures: QuerySet[Failure]) -> Any:
    # Looked up one by one: joined, PostgreSQL would read all runs there are.
    node = Subquery(Run.objects.filter(pk=OuterRef("run_id")).values("node_id"))
    return failures.annotate(node=node)


def _numbers(failures: QuerySet[Failure]) -> dict[ClassOfNode, int]:
    """The number of failures of each exception class of each node."""
    by_class = _with_node(failures).values_list("node", "exception_class")
    numbers = by_class.annotate(Count("pk")).order_by()
    return {(node_id, name): number for node_id, name, number in numbers}


def _grouped(
    failures: QuerySet[Failure], classes: Mapping[ClassOfNode, int], *, counted: Q
) -> list[tuple[FailureGroup, Sequence[Row]]]:
    """The groups of failures with their rows, the newest first; those `counted` are its runs.

    `classes` has the number of failures of each class of each node. The newest of each class are
    read, so that a flood of one hides no other.
    """
    by_class = _read_by_class(failures, classes, counted)
    found: list[tuple[FailureGroup, Sequence[Row]]] = []
    # Without classes that first failed since they were counted: a page loaded again has them.
    for each in by_class.keys() & classes.keys():
        alike: dict[str, list[Row]] = {}
        for row in by_class[each]:
            alike.setdefault(message_shape(row["start"]), []).append(row)
        read = len(by_class[each])
        found += [
            (_group(rows, shape, read=read, of_class=classes[each]), rows)
            for shape, rows in alike.items()
        ]
    return found


def _read_by_class(
    failures: QuerySet[Failure], classes: Mapping[ClassOfNode, int], counted: Q
) -> dict[ClassOfNode, list[Row]]:
    """The newest failures; more of the classes of which these are too few."""
    by_class: dict[ClassOfNode, list[Row]] = {}
    for row in _newest(failures, counted)[:READ_AT_ONCE]:
        by_class.setdefault(_class_of(row), []).append(row)
    hidden = {
        each
        for each, number in classes.items()
        if len(by_class.get(each, ())) < min(number, LEAST_OF_CLASS)
    }
    if hidden:
        by_class |= {each: [] for each in hidden}
        for row in _newest_of_each(failures, {name for _, name in hidden}, counted):
            if _class_of(row) in hidden:
                by_class[_class_of(row)].append(row)
    return by_class


def _newest_of_each(
    failures: QuerySet[Failure], exception_classes: Collection[str], counted: Q
) -> Iterable[Row]:
    place = Window(
        RowNumber(),
        partition_by=[F("run__node_id"), F("exception_class")],
        order_by=[F("failed_at").desc(), F("pk").desc()],
    )
    newest = failures.filter(exception_class__in=exception_classes).annotate(place=place)
    found = Failure.objects.filter(pk__in=newest.filter(place__lte=LEAST_OF_CLASS).values("pk"))
    return _newest(found, counted)


def _newest(failures: QuerySet[Failure], counted: Q) -> QuerySet[Failure, Row]:
    newest = failures.order_by("-failed_at", "-pk")
    counts = newest.annotate(is_counted=Case(When(counted, then=True), default=False))
    rows: QuerySet[Failure, Row] = counts.values(
        *("run__node_id", "run__node__title", "run__node__version"),
        *("exception_class", "run_id", "failed_at", "is_counted"),
        start=Left("message", READ),
    )
    return rows


def _class_of(row: Row) -> ClassOfNode:
    return row["run__node_id"], row["exception_class"]


def _group(rows: Sequence[Row], shape: str, *, read: int, of_class: int) -> FailureGroup:
    newest = rows[0]
    is_one_message = all(row["start"] == newest["start"] for row in rows)
    first_line = newest["start"].strip().partition("\n")[0]
    return FailureGroup(
        node_id=newest["run__node_id"],
        title=newest["run__node__title"],
        version=newest["run__node__version"],
        exception_class=newest["exception_class"],
        shape=shape,
        heading=first_line if is_one_message else shape,
        runs=sum(row["is_counted"] for row in rows),
        message=newest["start"],
        run_ids=list(dict.fromkeys(row["run_id"] for row in rows))[:EXAMPLES],
        first_at=rows[-1]["failed_at"],
        last_at=newest["failed_at"],
        of_class=of_class,
        of_newest=read if of_class > read else 0,
    )


def _times(rows: Sequence[Row], *, begin: dt.datetime, span: dt.timedelta) -> list[int]:
    times = [0] * BUCKETS
    for row in rows:
        bucket = int((row["failed_at"] - begin) / span * BUCKETS)
        times[min(max(bucket, 0), BUCKETS - 1)] += 1
    return times


def _size(group: FailureGroup) -> tuple[int, str, str]:
    return -group.runs, group.exception_class, group.shape
