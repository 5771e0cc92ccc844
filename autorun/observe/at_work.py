"""The workers that have chunks now or had some lately, by their chunks, and those drained."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.db.models import Case, Count, F, Max, Min, Q, Sum, Value, When
from django.utils.translation.trans_null import (
    gettext_noop as _,  # the usual one reads the settings
)

from autorun.dispatch.messages import queue_name
from autorun.models import Chunk
from autorun.observe.activity import RATE_SECONDS
from autorun.state import draining
from autorun.state.clock import from_now


@dataclass(frozen=True)
class WorkerAtWork:
    """One worker: its columns. `runs` are those it finished in the last ten minutes.

    `since` is the start of the chunk that it has had for longest. `state` is "draining" until a
    drained worker has finished its chunks, then "drained", and empty for any other worker.
    """

    name: str
    queues: str
    runners: str
    chunks: int
    since: dt.datetime | None
    runs: int
    last_seen: dt.datetime | None
    state: str


def workers_at_work() -> list[WorkerAtWork]:
    """The workers, by name; two queries. Without work for ten minutes, only drained ones stay."""
    is_running = Q(state=Chunk.State.RUNNING)
    ended = Q(state=Chunk.State.FINISHED, finished_at__gte=from_now(-RATE_SECONDS))
    chunks: Any = Chunk.objects.unfolded().filter(is_running | ended).exclude(worker="")
    found = (
        chunks.order_by()
        .values_list("worker", "queue", "runner")
        .annotate(
            running=Count("pk", filter=is_running),
            since=Min("started_at", filter=is_running),
            runs=Sum(Case(When(ended, then=F("succeeded") + F("failed")), default=Value(0))),
            last=Max("finished_at"),
        )
    )
    workers: dict[str, list[tuple[Any, ...]]] = {}
    for worker, *row in found:
        # A process's name is its worker's, with two more parts.
        workers.setdefault(worker.rsplit(":", 2)[0], []).append(tuple(row))
    drained = draining.drained()
    for pulse, is_confirmed in drained.items():
        if is_confirmed and (worker := draining.worker_of(pulse)):
            workers.setdefault(worker, [])
    return [
        _worker(name, rows, is_drained=draining.pulse_of(name) in drained)
        for name, rows in sorted(workers.items())
    ]


def _worker(name: str, rows: list[tuple[Any, ...]], *, is_drained: bool) -> WorkerAtWork:
    queues, runners, running, since, runs, last = zip(*rows, strict=True) if rows else [()] * 6
    starts = [each for each in since if each is not None]
    return WorkerAtWork(
        name=name,
        queues=", ".join(sorted(set(map(queue_name, queues)))),
        runners=", ".join(sorted({each for each, n in zip(runners, running, strict=True) if n})),
        chunks=sum(running),
        since=min(starts, default=None),
        runs=sum(runs),
        last_seen=max([*(each for each in last if each is not None), *starts], default=None),
        state="" if not is_drained else _("draining") if sum(running) else _("drained"),
    )
