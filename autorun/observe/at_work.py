"""The workers: those that are alive, by their pulses, and others by their recent chunks."""

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

    `queues` are those that it consumes from, or those of its recent chunks if they are not known.
    `since` is the start of the chunk that it has had for longest. `state` is "draining" until a
    drained worker has finished its chunks, then "drained"; "ended" for a worker that is no longer
    alive, or "not answering" if it still has chunks; and empty for any other worker.
    """

    name: str
    queues: str
    runners: str
    chunks: int
    since: dt.datetime | None
    runs: int
    last_seen: dt.datetime | None
    state: str

    @property
    def may_be_drained(self) -> bool:
        return not self.state

    @property
    def is_drained(self) -> bool:
        return self.state in ("draining", "drained")


def workers_at_work() -> list[WorkerAtWork]:
    """The workers that are alive or worked in the last ten minutes, by name; four queries."""
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
    drained, seen, queues = draining.drained(), draining.seen(), draining.queues_of_workers()
    alive = [pulse for pulse, (_, is_recent) in seen.items() if is_recent]
    for pulse in (*alive, *(pulse for pulse, is_confirmed in drained.items() if is_confirmed)):
        if worker := draining.worker_of(pulse):
            workers.setdefault(worker, [])
    found = []
    for name, rows in sorted(workers.items()):
        pulse = draining.pulse_of(name)
        # Without a pulse it has ended, unless it is one of an earlier release that still runs.
        at, is_alive = seen.get(pulse, (None, any(number for _, _, number, *_ in rows)))
        own = queues.get(draining.code_of(pulse), [])
        found.append(_worker(name, rows, own, at, is_alive=is_alive, is_drained=pulse in drained))
    return found


def _worker(
    name: str,
    rows: list[tuple[Any, ...]],
    own_queues: list[str],
    seen_at: dt.datetime | None,
    *,
    is_alive: bool,
    is_drained: bool,
) -> WorkerAtWork:
    queues, runners, running, since, runs, last = zip(*rows, strict=True) if rows else [()] * 6
    starts = [each for each in since if each is not None]
    times = [each for each in (*last, *starts, seen_at) if each is not None]
    state = ""
    if not is_alive:
        state = _("not answering") if sum(running) else _("ended")
    elif is_drained:
        state = _("draining") if sum(running) else _("drained")
    return WorkerAtWork(
        name=name,
        queues=", ".join(own_queues or sorted(set(map(queue_name, queues)))),
        runners=", ".join(sorted({each for each, n in zip(runners, running, strict=True) if n})),
        chunks=sum(running),
        since=min(starts, default=None),
        runs=sum(runs),
        last_seen=max(times, default=None),
        state=state,
    )
