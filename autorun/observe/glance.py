"""How far runners have got, and a line that says whether all is well: the overview, `status`."""

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import Any, Literal

from celery import current_app
from django.db.models import Count, F, IntegerField, QuerySet, Sum, Value
from django.utils.translation import gettext as _, ngettext

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.nodes import digest_of, labels_by_id
from autorun.exceptions import bare_message
from autorun.models import Batch, Chunk, Node, Pulse
from autorun.observe.activity import Activity, activity_by_node
from autorun.state.clock import from_now
from autorun.state.counts import (
    ANOTHER_SUM,
    Progress,
    crowded,
    left_for_long,
    progress_and_stuck,
    unfolded_chunks,
    unplanned_for_long,
    waiting_by_batch,
)
from autorun.state.words import ago, number, number_in

#: Rounds of upkeep, and at least this many seconds, that may be missing on a machine under load.
UPKEEP_TURNS = 10
LEAST_UPKEEP_SILENCE = 60.0

Topic = Literal["workers", "runners", "failures", "held_up", "paused", "held", "sweeps"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far one runner has got; `error` says why nothing more is known."""

    runner: Runner
    digest: str = ""
    node: Node | None = None
    progress: Progress = field(default_factory=Progress)
    activity: Activity = field(default_factory=Activity)
    #: Whether its tasks are in the queue and no worker is processing them.
    is_stuck: bool = False
    error: str = ""

    @property
    def paused_at(self) -> dt.datetime | None:
        return None if self.node is None else self.node.paused_at

    @property
    def held_at(self) -> dt.datetime | None:
        return None if self.node is None else self.node.held_at

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the unfinished runs have finished; None while no run is processed."""
        if self.is_stuck or self.paused_at is not None:
            return None
        return self.activity.seconds_left(self.progress.unfinished)

    @property
    def run_seconds(self) -> float | None:
        """The time of a run: the recent median, or the one stored with the node."""
        stored = None if self.node is None else self.node.run_seconds
        return stored if self.activity.median_seconds is None else self.activity.median_seconds


def standings_of(
    runners: Sequence[Runner],
    progresses: Mapping[Node, Progress] | None = None,
    *,
    is_brief: bool = False,
) -> list[Standing]:
    """The standing of each runner, in their order; `progresses` if they have been loaded already.

    Four queries, or two; if it `is_brief`, without activities, two or none.
    """
    digests = [digest_or_problem(runner) for runner in runners]
    if progresses is None:
        known = [digest for digest, _ in digests if digest]
        progresses = progresses_of(Node.objects.filter(digest__in=known))
    nodes = {node.digest: node for node in progresses}
    activities = {} if is_brief else activity_by_node(progresses)
    standings = []
    for runner, (digest, error) in zip(runners, digests, strict=True):
        of_node = {}
        if (node := nodes.get(digest)) is not None:
            of_node = {
                "node": node,
                "progress": progresses[node],
                "activity": activities.get(node.pk, Activity()),
                "is_stuck": node.is_stuck,  # type: ignore[attr-defined]
            }
        standings.append(Standing(runner=runner, digest=digest, error=error, **of_node))
    return standings


def progresses_of(nodes: Iterable[Node], *others: Any) -> dict[Node, Progress]:
    """The progress of each node, in their order, which says whether it `is_stuck`; one query.

    `others` are further arguments of `progress_and_stuck`.
    """
    found = list(nodes)
    progresses, stuck = progress_and_stuck(found, *others)
    for node in found:
        node.is_stuck = node.pk in stuck  # type: ignore[attr-defined]
    return {node: progresses.get(node.pk, Progress()) for node in found}


def digest_or_problem(runner: Runner) -> tuple[str, str]:
    """The digest of the runner's node, or '' and the problem with its declaration."""
    try:
        return digest_of(runner), ""
    except Exception as error:  # noqa: BLE001  any fault of a declaration
        return "", bare_message(error)


@dataclass(frozen=True)
class Fact:
    """One part of the line; `topic` is the page that tells more."""

    topic: Topic
    level: Literal["ok", "warning", "error"]
    what: str
    at: dt.datetime | None = None

    @property
    def words(self) -> str:
        return f"{self.what} {ago(self.at)}" if self.at else self.what


@dataclass(frozen=True)
class Tally:
    """The failed and unfinished runs of all current nodes, and the unfinished batches.

    `stuck` are the nodes whose tasks have been queued for long while no worker of that queue is
    busy: none runs a chunk, and none plans a batch. For the nodes in `crowd`, the number of waiting
    runs is an estimate.
    """

    failed: int = 0
    unfinished: int = 0
    batches: int = 0
    stuck: frozenset[int] = frozenset()
    is_upkeep_silent: bool = False
    crowd: frozenset[int] = frozenset()

    @property
    def has_no_worker(self) -> bool:
        is_eager = current_app.conf.task_always_eager
        return bool(self.stuck or self.is_upkeep_silent) and not is_eager


def take_tally() -> Tally:
    """Count what the tabs of every page show; one query, and that of `crowded` now and then."""
    ids = labels_by_id().keys()
    crowd = crowded(ids)
    first, *others = _numbers_by_node(ids, crowd)
    return _tally(((pk, numbers) for pk, _, *numbers in first.union(*others, all=True)), crowd)


def progresses_and_tally(nodes: Iterable[Node] | None = None) -> tuple[dict[Node, Progress], Tally]:
    """`progresses_of` the nodes, or of all current ones, and `take_tally()`, in as many queries."""
    current = labels_by_id().keys()
    found = list(Node.objects.filter(pk__in=current) if nodes is None else nodes)
    rows: list[tuple[int, Sequence[int]]] = []
    ids = {node.pk for node in found}
    crowd = crowded(current | ids)
    others = _numbers_by_node(current - ids, crowd)
    progresses = progresses_of(found, others, lambda *row: rows.append(row), crowd)
    for node, of in progresses.items():
        if node.pk in current:
            late = int(node.is_stuck)  # type: ignore[attr-defined]
            rows.append((node.pk, (of.failed, of.unfinished, late, 0, 0, 0)))
        node.is_crowded = node.pk in crowd  # type: ignore[attr-defined]
    return progresses, _tally(rows, crowd)


def _tally(rows: Iterable[tuple[int, Sequence[int]]], crowd: Iterable[int]) -> Tally:
    sums: dict[int, list[int]] = {}
    for pk, numbers in rows:
        sums[pk] = [*map(add, sums.get(pk, (0,) * 6), (int(each or 0) for each in numbers))]
    # No node has the id 0: that row is the recent round of upkeep.
    *_, rounds = sums.pop(0, (0,))
    failed, left, _, unfinished, *_ = map(sum, zip((0,) * 6, *sums.values(), strict=True))
    stuck = frozenset(pk for pk, (_, _, late, _, unplanned, _) in sums.items() if late or unplanned)
    silent = not rounds
    return Tally(failed, left, unfinished, stuck, is_upkeep_silent=silent, crowd=frozenset(crowd))


def _numbers_by_node(node_ids: Collection[int], crowd: Collection[int]) -> list[Any]:
    """Rows of a node's id, its failed and unfinished runs, late chunks, batches and late ones."""
    # Their columns are as many as those of `progress_and_stuck`.
    none, one, mark = (Value(each, IntegerField()) for each in (0, 1, ANOTHER_SUM))
    nodes = Node.objects.filter(pk__in=node_ids).order_by()
    crowd = [pk for pk in node_ids if pk in crowd]
    batches: Any = Batch.objects.unfinished().order_by()
    started = ("node_id", mark)
    open_counts = [
        chunks.values_list(*started).annotate(
            a=Sum(F("failed") - F("superseded_failed")),
            b=Sum(Chunk.RUNS_LEFT),
            c=Count("pk", filter=left_for_long()),
            d=none,
            e=none,
            f=none,
        )
        for chunks in unfolded_chunks(node_ids, crowd)
    ]
    return [
        *open_counts,
        *waiting_by_batch(crowd, ANOTHER_SUM, place=1),
        nodes.values_list("pk", mark, "folded_failed", *[none] * 5),
        batches.values_list(*started).annotate(
            a=none,
            b=none,
            c=none,
            d=Count("pk"),
            e=Count("pk", filter=unplanned_for_long()),
            f=none,
        ),
        _recent_upkeep().values_list(none, mark, *[none] * 5, one),
    ]


def at_a_glance(standings: Collection[Standing], found: Tally) -> list[Fact]:
    """Return what an operator has to know of these runners, the worst first; one query."""
    order = ("error", "warning", "ok")
    facts = [*_of_workers(found), *_of_runs(standings), *_of_sweeps()]
    return sorted(facts, key=lambda each: order.index(each.level))


def is_upkeep_silent() -> bool:
    """Whether no worker has made a round of upkeep for long."""
    return not _recent_upkeep().exists()


def upkeep_patience() -> float:
    """Seconds without a round of upkeep after which no worker seems to be running."""
    return max(LEAST_UPKEEP_SILENCE, UPKEEP_TURNS * settings.UPKEEP_INTERVAL)


def _recent_upkeep() -> QuerySet[Pulse]:
    return Pulse.objects.filter(name="upkeep", beat_at__gt=from_now(-upkeep_patience()))


def _of_workers(found: Tally) -> Iterator[Fact]:
    if found.has_no_worker:
        stuck, silent = _("No worker is picking up tasks"), _("No worker is running")
        what = stuck if found.stuck else silent
        yield Fact("workers", "error", what)
    elif not current_app.conf.task_always_eager:
        yield Fact("workers", "ok", _("Workers are running"))


def _of_runs(standings: Collection[Standing]) -> Iterator[Fact]:
    progresses = {each.node: each.progress for each in standings if each.node is not None}
    if broken := sum(bool(each.error) for each in standings):
        words = ngettext("%s runner cannot run", "%s runners cannot run", broken)
        yield Fact("runners", "error", words % number(broken))
    failed = sum(each.failed for each in progresses.values())
    if failed:
        yield Fact("failures", "error", number_in("failed", failed))
    if parked := sum(each.parked for each in progresses.values()):
        yield Fact("held_up", "warning", number_in("parked", parked))
    if paused := sum(node.paused_at is not None for node in progresses):
        yield Fact("paused", "warning", number_in("paused", paused))
    if held := sum(node.held_at is not None for node in progresses):
        words = ngettext("sweeps of %s runner held", "sweeps of %s runners held", held)
        yield Fact("held", "warning", words % number(held))


def _of_sweeps() -> Iterator[Fact]:
    last = Batch.objects.filter(trigger=Batch.Trigger.SWEEP).defer("scope").order_by("-pk").first()
    if last is None:
        return
    has_failed = last.state == Batch.State.FAILED
    level, what = ("error", _("last sweep failed")) if has_failed else ("ok", _("last sweep"))
    yield Fact("sweeps", level, what, last.created_at)  # type: ignore[arg-type]
