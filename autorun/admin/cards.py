"""What the overview says of each runner, gathered for all of them at once."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.apps import apps
from django.utils import timezone

from autorun.admin.charts import Column, Segment, columns, stacked
from autorun.declare import registry
from autorun.declare.nodes import digest_of
from autorun.declare.runner import Runner
from autorun.exceptions import AutorunError
from autorun.models import Batch, Node
from autorun.observe.activity import Activity, activity_by_node, stuck_nodes
from autorun.planning.counting import Count
from autorun.state.counts import Progress, progress_by_node
from autorun.triggers.on_schedule import SWEEP_NAME

#: How long a finished count of a runner's rows is shown.
COUNT_AGE = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Counted:
    """All rows of a runner by reason, and how many are left out of them, at some time.

    Its filter leaves rows out, and so do other runners that have not succeeded on them yet.

    `runs` is how many current runs there were then.
    """

    count: Count
    left_out: int
    runs: int
    at: dt.datetime

    def written(self) -> dict[str, Any]:
        """The count as JSON."""
        return {
            "rows": dict(self.count.rows),
            "left_out": self.left_out,
            "runs": self.runs,
            "at": self.at.isoformat(),
        }

    @classmethod
    def of(cls, node: Node | None) -> Counted | None:
        """What was counted for the node of late, if anything."""
        if node is None or not node.counted:
            return None
        known = node.counted
        at = dt.datetime.fromisoformat(known["at"])
        if timezone.now() - at > COUNT_AGE:
            return None
        return cls(Count(known["rows"]), known["left_out"], known["runs"], at)


@dataclass(frozen=True)
class NextSweep:
    """When a runner is swept next; without a time, `words` says why not."""

    at: dt.datetime | None = None
    words: str = ""
    entry_id: int | None = None
    schedule: str = ""


@dataclass(frozen=True)
class Card:
    """One runner as the overview shows it."""

    runner: Runner
    node: Node | None
    progress: Progress
    activity: Activity
    batches: Sequence[Batch]
    next_sweep: NextSweep
    counted: Counted | None = None
    error: str = ""
    #: Whether its messages lie in the queue and no worker is at them.
    is_stuck: bool = False

    @property
    def label(self) -> str:
        return self.runner.label

    @property
    def name(self) -> str:
        return name_of_runner(self.runner)

    @property
    def title(self) -> str:
        """The analysis and its version."""
        return title_of_runner(self.runner) if self.node is None else str(self.node)

    @property
    def model_name(self) -> str:
        try:
            return str(self.runner.get_model()._meta.verbose_name_plural)
        except AutorunError:  # `error` says what is wrong
            return str(self.runner.DATA_MODEL)

    @property
    def pending(self) -> int | None:
        """Rows without a run for their current input; None where nobody has counted of late.

        Of those counted, what has been planned since is no longer pending.
        """
        if self.counted is None:
            return None
        return max(0, self.counted.count.pending - self._planned_since)

    @property
    def bar(self) -> list[Segment]:
        return stacked(self.parts)

    @property
    def parts(self) -> list[tuple[str, str, int]]:
        """Each state with its word and its number, in the order of the bar."""
        progress = self.progress
        parts = [
            ("succeeded", "succeeded", progress.succeeded),
            ("running", "running", progress.running),
            ("queued", "queued", progress.queued),
            ("waiting", "waiting", progress.waiting),
            ("parked", "parked", progress.parked),
            ("failed", "failed", progress.failed),
            ("ignored", "ignored", progress.ignored),
        ]
        if self.counted is not None:
            parts.insert(4, ("pending", "pending", self.pending or 0))
            parts.append(("filtered", self._left_out_words, self.left_out or 0))
        return parts

    @property
    def left_out(self) -> int | None:
        """Rows that no run is for, less those that have been planned since they were counted."""
        if self.counted is None:
            return None
        of_these = max(0, self._planned_since - self.counted.count.pending)
        return max(0, self.counted.left_out - of_these)

    @property
    def _planned_since(self) -> int:
        """Rows that have got a run since they were counted."""
        return 0 if self.counted is None else max(0, self.progress.total - self.counted.runs)

    @property
    def _left_out_words(self) -> str:
        if self.runner.DEPENDS_ON:
            return "filtered out, or waiting for another runner"
        return "filtered out"

    @property
    def sparkline(self) -> list[Column]:
        return columns([(hour.succeeded, hour.failed) for hour in self.activity.hours])

    @property
    def last_day(self) -> tuple[int, int]:
        """Runs that succeeded and that failed within the last 24 hours."""
        hours = self.activity.hours
        return sum(each.succeeded for each in hours), sum(each.failed for each in hours)

    @property
    def seconds_left(self) -> float | None:
        """Until what is on its way has ended; None while nothing is done."""
        if self.is_stuck or not self.progress.unfinished or not self.activity.per_second:
            return None
        return self.activity.seconds_for(self.progress.unfinished, run_seconds=self.run_seconds)

    @property
    def run_seconds(self) -> float | None:
        """A run's usual time: the median of late, or what the node remembers."""
        if self.activity.median_seconds is not None:
            return self.activity.median_seconds
        return None if self.node is None else self.node.run_seconds


def cards() -> list[Card]:
    """A card for each registered runner, by label; six queries however many there are."""
    runners = registry.runners()
    digests = [digest for runner in runners if (digest := _digest(runner)[0])]
    nodes = list(Node.objects.filter(digest__in=digests))
    return _cards(runners, nodes, progress_by_node(nodes), _unfinished_batches())


def card_of(
    runner: Runner,
    nodes: Sequence[Node] | None = None,
    progresses: Mapping[int, Progress] | None = None,
) -> Card:
    """One runner's card, without its batches; `nodes` where they are known already."""
    if nodes is None:
        nodes = list(Node.objects.filter(digest=_digest(runner)[0]))
    if progresses is None:
        progresses = progress_by_node(nodes)
    (card,) = _cards([runner], nodes, progresses, {})
    return card


def name_of_runner(runner: Runner) -> str:
    """The runner's class name in words: `ScanPreprocessingRunner` is "Scan Preprocessing"."""
    name = type(runner).__name__.removesuffix("Runner") or type(runner).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)


def title_of_runner(runner: Runner) -> str:
    """The runner's analysis and its version, or what it says of them where there are none such."""
    try:
        return str(runner.get_analysis())
    except Exception:  # noqa: BLE001  whatever a declaration can be wrong in
        return str(runner.ANALYSIS)


def remember(card: Card, count: Count, *, left_out: int) -> Card:
    """The card with a finished count, which is kept so that pages need not count anew."""
    counted = Counted(count, max(0, left_out), card.progress.total, timezone.now())
    # Not in a cache, of which each process may have its own.
    Node.objects.filter(digest=digest_of(card.runner)).update(counted=counted.written())
    return replace(card, counted=counted)


def next_sweeps(runners: Sequence[Runner]) -> dict[str, NextSweep]:
    """When each runner is swept next, by label; one query of beat's tables."""
    entries: Mapping[str, Any] = {}
    has_beat = apps.is_installed("django_celery_beat")
    if has_beat:
        from django_celery_beat.models import PeriodicTask

        names = [f"{SWEEP_NAME}{runner.label}" for runner in runners]
        rows = PeriodicTask.objects.filter(name__in=names).select_related(
            "interval", "crontab", "solar", "clocked"
        )
        entries = {row.name.removeprefix(SWEEP_NAME): row for row in rows}
    return {
        runner.label: _next_sweep(runner, entries.get(runner.label), has_beat=has_beat)
        for runner in runners
    }


def _cards(
    runners: Sequence[Runner],
    nodes: Iterable[Node],
    progresses: Mapping[int, Progress],
    batches: Mapping[str, Sequence[Batch]],
) -> list[Card]:
    by_digest = {node.digest: node for node in nodes}
    activities = activity_by_node(by_digest.values())
    sweeps = next_sweeps(runners)
    digests = {runner.label: _digest(runner) for runner in runners}
    stuck = stuck_nodes(pk for pk, progress in progresses.items() if progress.under_way)
    found = []
    for runner in runners:
        digest, error = digests[runner.label]
        node = by_digest.get(digest)
        node_id = 0 if node is None else node.pk
        card = Card(
            runner=runner,
            node=node,
            progress=progresses.get(node_id, Progress()),
            activity=activities.get(node_id, Activity()),
            batches=batches.get(runner.label, ()),
            next_sweep=sweeps[runner.label],
            counted=Counted.of(node),
            error=error,
            is_stuck=node_id in stuck,
        )
        found.append(card)
    return found


def _digest(runner: Runner) -> tuple[str, str]:
    """The digest of the runner's node, or '' and what is wrong with its declaration."""
    try:
        return digest_of(runner), ""
    except Exception as error:  # noqa: BLE001  whatever a declaration can be wrong in
        return "", str(error)


def _next_sweep(runner: Runner, entry: Any, *, has_beat: bool) -> NextSweep:
    if entry is None:
        return NextSweep(words=_why_no_entry(runner, has_beat=has_beat))
    if not entry.enabled:
        return NextSweep(words="switched off", entry_id=entry.pk)
    try:
        words = _schedule_words(entry)
        schedule = entry.schedule
        since = entry.last_run_at or schedule.now()
        left = schedule.remaining_estimate(schedule.maybe_make_aware(since))
    except Exception:  # noqa: BLE001  a schedule that was edited into nonsense
        return NextSweep(words=str(entry.schedule), entry_id=entry.pk)
    at = timezone.now() + max(left, dt.timedelta())
    return NextSweep(at, entry_id=entry.pk, schedule=words)


def _schedule_words(entry: Any) -> str:
    """When beat's entry is due: "every 5 minutes", or "At 03:00 AM"."""
    if entry.crontab is not None:
        return str(entry.crontab.human_readable)
    return str(entry.interval or entry.solar or entry.clocked or "")


def _why_no_entry(runner: Runner, *, has_beat: bool) -> str:
    try:
        schedule = runner.get_schedule()
    except Exception as error:  # noqa: BLE001  a hook of one runner's: the others are shown
        return f"get_schedule() raises {type(error).__name__}"
    if schedule is None:
        return "on no schedule"
    return "once beat has started" if has_beat else "django-celery-beat is not installed"


def _unfinished_batches() -> dict[str, list[Batch]]:
    found: dict[str, list[Batch]] = {}
    unfinished = Batch.objects.unfinished()
    for batch in unfinished.defer("scope").order_by("-pk")[:100]:
        found.setdefault(batch.runner, []).append(batch)
    return found
