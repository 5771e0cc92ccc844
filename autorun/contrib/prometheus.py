"""Metrics for Prometheus. Needs `pip install django-autorun[prometheus]`.

    from autorun.contrib import prometheus

    prometheus.register()

Call it once, such as in `AppConfig.ready()` of a project that shows its metrics with
django-prometheus, or before prometheus_client's `start_http_server`. The numbers are read from the
database whenever they are scraped, in six statements, so that every process tells the same: scrape
one of them only.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from django.db import Error, connections
from django.db.models import Count, Min
from django.utils import timezone

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.nodes import digest_of
from autorun.declare.runner import Runner
from autorun.exceptions import AutorunError
from autorun.models import Batch, Chunk, Node, Pulse, SpilledTrigger
from autorun.planning.counting import count_rows
from autorun.state.counts import progress_by_node

try:
    from prometheus_client.core import REGISTRY, GaugeMetricFamily
except ImportError as missing:
    raise ImportError(
        "autorun.contrib.prometheus needs prometheus_client: "
        "pip install 'django-autorun[prometheus]'."
    ) from missing

logger = logging.getLogger(__name__)

#: Name, labels and meaning of each metric; `docs/` repeats them.
METRICS: dict[str, tuple[tuple[str, ...], str]] = {
    "autorun_up": ((), "1 where the database could be read, else 0 and nothing below."),
    "autorun_runs": (
        ("runner", "analysis", "version", "state"),
        "Current runs of a runner's node, by whether they have ended and how.",
    ),
    "autorun_pending_rows": (("runner",), "Rows that nothing has been planned for."),
    "autorun_run_seconds": (("runner",), "A run's time, as a moving average."),
    "autorun_paused": (("runner",), "1 where the runner is paused, else 0."),
    "autorun_chunks": (("runner", "state"), "Chunks that have not ended."),
    "autorun_oldest_queued_seconds": (
        ("runner",),
        "How long ago the message was sent for the chunk that has been queued the longest.",
    ),
    "autorun_lease_age_seconds": (
        ("runner",),
        "How long ago the worker was heard of that has been silent the longest.",
    ),
    "autorun_batches": (("runner", "state"), "Batches by state."),
    "autorun_spilled_triggers": ((), "Messages about saved rows that no broker took."),
    "autorun_oldest_spilled_seconds": ((), "How long the oldest of them has waited."),
    "autorun_upkeep_age_seconds": ((), "How long ago upkeep last looked round."),
}


def register(
    collector_registry: Any = None, *, pending: bool = False, pending_seconds: float = 2.0
) -> AutorunCollector:
    """Have the metrics collected by prometheus_client's default registry, or by the given one.

    With `pending`, `autorun_pending_rows` is counted too, which compares every row with its run:
    for `pending_seconds` a runner at most. Runners with more rows than that are left out.
    """
    collector = AutorunCollector(pending=pending, pending_seconds=pending_seconds)
    (REGISTRY if collector_registry is None else collector_registry).register(collector)
    return collector


class AutorunCollector:
    """Collects METRICS when it is asked to."""

    def __init__(self, *, pending: bool = False, pending_seconds: float = 2.0) -> None:
        self.pending = pending
        self.pending_seconds = pending_seconds

    def describe(self) -> list[Any]:
        """The metrics without their values: registering must not query the database."""
        return list(_Families().families.values())

    def collect(self) -> Iterator[Any]:
        """The metrics; `autorun_up` 0 alone where the database is away."""
        found = _Families()
        _close_old_connection()
        try:
            self._read(found)
        except Error:
            logger.exception("Metrics could not be read.")
            found = _Families()
            found.add("autorun_up", 0)
        else:
            found.add("autorun_up", 1)
        yield from found.families.values()

    def _read(self, found: _Families) -> None:
        now = timezone.now()
        nodes = _runners_by_digest()
        _add_nodes(found, nodes)
        _add_chunks(found, now)
        _add_batches(found)
        _add_spilled(found, now)
        beat_at = Pulse.objects.filter(name="upkeep").values_list("beat_at", flat=True).first()
        if beat_at is not None:
            found.add("autorun_upkeep_age_seconds", _age(now, beat_at))
        if self.pending:
            for runner in (each for runners in nodes.values() for each in runners):
                self._add_pending(found, runner)

    def _add_pending(self, found: _Families, runner: Runner) -> None:
        try:
            count = count_rows(runner, seconds=self.pending_seconds)
        except Error:
            raise
        except Exception:
            logger.exception("%s: its pending rows could not be counted.", runner.label)
            return
        if count.is_complete:
            found.add("autorun_pending_rows", count.pending, runner.label)


class _Families:
    """The metrics of one scrape."""

    def __init__(self) -> None:
        self.families = {
            name: GaugeMetricFamily(name, meaning, labels=labels)
            for name, (labels, meaning) in METRICS.items()
        }

    def add(self, metric: str, value: float, *labels: str) -> None:
        self.families[metric].add_metric(labels, value)


def _close_old_connection() -> None:
    """A thread that serves nothing but metrics has nobody else to do it."""
    connection = connections[settings.DATABASE]
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def _runners_by_digest() -> dict[str, list[Runner]]:
    found: dict[str, list[Runner]] = {}
    for runner in registry.runners():
        try:
            found.setdefault(digest_of(runner), []).append(runner)
        except AutorunError as error:  # a system check says what is wrong with it
            logger.warning("%s: no metrics: %s", runner.label, error)
    return found


def _add_nodes(found: _Families, runners: dict[str, list[Runner]]) -> None:
    nodes = Node.objects.filter(digest__in=list(runners)).in_bulk(field_name="digest")
    progress = progress_by_node(nodes.values())
    for digest, node in nodes.items():
        for runner in runners[digest]:
            found.add("autorun_paused", node.paused_at is not None, runner.label)
            if node.run_seconds is not None:
                found.add("autorun_run_seconds", node.run_seconds, runner.label)
            for state, runs in asdict(progress[node.pk]).items():
                labels = (runner.label, node.title, node.version, state)
                found.add("autorun_runs", runs, *labels)


def _add_chunks(found: _Families, now: dt.datetime) -> None:
    unfinished = Chunk.objects.unfinished().values_list("runner", "state")
    counted = unfinished.annotate(Count("pk"), Min("published_at"), Min("expires_at")).order_by()
    lease = dt.timedelta(seconds=settings.LEASE)
    for runner, number, chunks, published_at, expires_at in counted:
        state = Chunk.State(number)
        found.add("autorun_chunks", chunks, runner, state.name.lower())
        if state == Chunk.State.QUEUED and published_at is not None:
            found.add("autorun_oldest_queued_seconds", _age(now, published_at), runner)
        if state == Chunk.State.RUNNING and expires_at is not None:
            found.add("autorun_lease_age_seconds", _age(now, expires_at - lease), runner)


def _add_batches(found: _Families) -> None:
    counted = Batch.objects.values_list("runner", "state").annotate(Count("pk")).order_by()
    for runner, state, batches in counted:
        found.add("autorun_batches", batches, runner, state)


def _add_spilled(found: _Families, now: dt.datetime) -> None:
    spilled = SpilledTrigger.objects.aggregate(number=Count("pk"), oldest=Min("created_at"))
    found.add("autorun_spilled_triggers", spilled["number"])
    age = 0.0 if spilled["oldest"] is None else _age(now, spilled["oldest"])
    found.add("autorun_oldest_spilled_seconds", age)


def _age(now: dt.datetime, then: dt.datetime) -> float:
    return max(0.0, (now - then).total_seconds())
