"""Metrics for Prometheus. Needs `pip install django-autorun[prometheus]`.

    from autorun.contrib import prometheus

    prometheus.register()

Call it once, for example in `AppConfig.ready()` of a project that exposes metrics with
django-prometheus, or before prometheus_client's `start_http_server`. Each scrape reads the numbers
from the database, in a few statements. Every process reports the same numbers, so scrape only one.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from django.db import Error, connections
from django.db.models import Count, Min
from django.utils import timezone

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.nodes import digest_of
from autorun.exceptions import AutorunError
from autorun.models import Batch, Chunk, Node, SpilledTrigger, Written
from autorun.observe.held_up import limits_in_use
from autorun.planning.counting import count_rows
from autorun.planning.pending import stale
from autorun.state.counts import progress_by_node
from autorun.state.logs import get_logger
from autorun.state.pulses import beat_of
from autorun.triggers import on_write

try:
    from prometheus_client.core import REGISTRY, GaugeMetricFamily
except ImportError as missing:
    raise ImportError(
        "autorun.contrib.prometheus needs prometheus_client: "
        "pip install 'django-autorun[prometheus]'."
    ) from missing

#: A metric's name, its value and the values of its labels.
Sample = tuple[str, float, *tuple[str, ...]]

logger = get_logger(__name__)

#: Name, labels and description of each metric; `docs/` repeats them.
METRICS: dict[str, tuple[tuple[str, ...], str]] = {
    "autorun_up": ((), "1 if the database could be read, else 0 and no other metric."),
    "autorun_runs": (
        ("runner", "analysis", "version", "state"),
        "Current runs of a runner's node, by state.",
    ),
    "autorun_pending_rows": (("runner",), "Pending rows."),
    "autorun_stale_runs": (
        ("runner",),
        "Successes on rows on which a runner in DEPENDS_ON has no success now.",
    ),
    "autorun_run_seconds": (("runner",), "Moving average of the time of a run."),
    "autorun_paused": (("runner",), "1 if the runner is paused, else 0."),
    "autorun_held": (("runner",), "1 if the runner's sweeps and saves are held, else 0."),
    "autorun_chunks": (("runner", "state"), "Unfinished chunks."),
    "autorun_oldest_queued_seconds": (("runner",), "Age of the oldest message in the queue."),
    "autorun_lease_age_seconds": (
        ("runner",),
        "Longest time since a running chunk's worker extended its lease.",
    ),
    "autorun_batches": (("runner", "state"), "Batches by state."),
    "autorun_limit_calls": (("limit",), "Calls of bodies in flight that share a limit."),
    "autorun_limit_waiting_runs": (("limit",), "Runs waiting for that limit."),
    "autorun_spilled_triggers": ((), "Messages about saved rows that the broker did not accept."),
    "autorun_oldest_spilled_seconds": ((), "Age of the oldest of them."),
    "autorun_written_rows": (("table",), "Notes of written rows that upkeep has not taken yet."),
    "autorun_oldest_written_seconds": (("table",), "Age of the oldest of them."),
    "autorun_upkeep_age_seconds": ((), "Time since the last round of upkeep."),
}


def register(
    collector_registry: Any = None, *, pending: bool = False, pending_seconds: float = 2.0
) -> "AutorunCollector":
    """Register the metrics with prometheus_client's default registry, or with the given one.

    With `pending`, `autorun_pending_rows` and `autorun_stale_runs` are also counted. The former
    compares every row with its run and takes at most `pending_seconds` per runner; runners that
    take longer are left out.
    """
    collector = AutorunCollector(pending=pending, pending_seconds=pending_seconds)
    (REGISTRY if collector_registry is None else collector_registry).register(collector)
    return collector


@dataclass(eq=False)
class AutorunCollector:
    """Collects METRICS at each scrape."""

    pending: bool
    pending_seconds: float

    def describe(self) -> list[Any]:
        """Metrics without values, because registration must not query the database."""
        return list(_families().values())

    def collect(self) -> Iterator[Any]:
        """All metrics, or only `autorun_up 0` if the database does not answer."""
        families = _families()
        _close_old_connection()
        try:
            for metric, value, *labels in self._samples():
                families[metric].add_metric(labels, value)
        except Error:
            logger.exception("Metrics could not be read.")
            families = _families()
            families["autorun_up"].add_metric([], 0)
        yield from families.values()

    def _samples(self) -> Iterator[Sample]:
        now = timezone.now()
        nodes = _runners_by_digest()
        yield from _of_nodes(nodes)
        yield from _of_chunks(now)
        yield from _of_batches()
        for limit in limits_in_use():
            yield "autorun_limit_calls", limit.in_use, limit.name
            yield "autorun_limit_waiting_runs", limit.waiting, limit.name
        spilled = SpilledTrigger.objects.aggregate(number=Count("pk"), oldest=Min("created_at"))
        yield "autorun_spilled_triggers", spilled["number"]
        yield "autorun_oldest_spilled_seconds", _age(now, spilled["oldest"])
        yield from _of_writes(now)
        if (beat_at := beat_of("upkeep")) is not None:
            yield "autorun_upkeep_age_seconds", _age(now, beat_at)
        if self.pending:
            for runner in chain.from_iterable(nodes.values()):
                yield from self._of_pending(runner)
        yield "autorun_up", 1

    def _of_pending(self, runner: Runner) -> Iterator[Sample]:
        try:
            count = count_rows(runner, seconds=self.pending_seconds)
            number = stale(runner).count() if count.is_complete and runner.depends_on else 0
        except Error:
            raise
        except Exception:
            logger.exception("%s: its pending rows could not be counted.", runner.label)
            return
        if count.is_complete:
            yield "autorun_pending_rows", count.pending, runner.label
            yield "autorun_stale_runs", number, runner.label


def _families() -> dict[str, Any]:
    return {
        name: GaugeMetricFamily(name, meaning, labels=labels)
        for name, (labels, meaning) in METRICS.items()
    }


def _close_old_connection() -> None:
    """Close a stale connection: Django does so for requests only, not in a thread for metrics."""
    connection = connections[settings.DATABASE]
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def _runners_by_digest() -> dict[str, list[Runner]]:
    found: dict[str, list[Runner]] = {}
    for runner in registry.runners():
        try:
            found.setdefault(digest_of(runner), []).append(runner)
        except AutorunError as error:  # a system check reports it
            logger.warning("%s: no metrics: %s", runner.label, error)
    return found


def _of_nodes(runners: dict[str, list[Runner]]) -> Iterator[Sample]:
    nodes = Node.objects.filter(digest__in=list(runners)).in_bulk(field_name="digest")
    progress = progress_by_node(nodes.values())
    for digest, node in nodes.items():
        for runner in runners[digest]:
            yield "autorun_paused", node.paused_at is not None, runner.label
            yield "autorun_held", node.held_at is not None, runner.label
            if node.run_seconds is not None:
                yield "autorun_run_seconds", node.run_seconds, runner.label
            for state, runs in asdict(progress[node.pk]).items():
                yield "autorun_runs", runs, runner.label, node.title, node.version, state


def _of_chunks(now: dt.datetime) -> Iterator[Sample]:
    unfinished = Chunk.objects.unfinished().values_list("runner", "state")
    counted = unfinished.annotate(Count("pk"), Min("published_at"), Min("expires_at")).order_by()
    lease = dt.timedelta(seconds=settings.LEASE)
    for runner, number, chunks, published_at, expires_at in counted:
        state = Chunk.State(number)
        yield "autorun_chunks", chunks, runner, state.name.lower()
        if state == Chunk.State.QUEUED and published_at is not None:
            yield "autorun_oldest_queued_seconds", _age(now, published_at), runner
        if state == Chunk.State.RUNNING and expires_at is not None:
            yield "autorun_lease_age_seconds", _age(now, expires_at - lease), runner


def _of_batches() -> Iterator[Sample]:
    counted = Batch.objects.values_list("runner", "state").annotate(Count("pk")).order_by()
    for runner, state, batches in counted:
        yield "autorun_batches", batches, runner, state


def _of_writes(now: dt.datetime) -> Iterator[Sample]:
    notes = Written.objects.values_list("source").annotate(Count("pk"), Min("written_at"))
    found = {source: (number, oldest) for source, number, oldest in notes.order_by()}
    for source in sorted({*on_write.tables(), *found}):
        number, oldest = found.get(source, (0, None))
        yield "autorun_written_rows", number, source
        yield "autorun_oldest_written_seconds", _age(now, oldest), source


def _age(now: dt.datetime, then: dt.datetime | None) -> float:
    return 0.0 if then is None else max(0.0, (now - then).total_seconds())
