"""The workers: those that are alive, by their pulses, and others by their recent chunks."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.db.models import Case, Count, F, Max, Min, Q, Sum, Value, When
from django.utils.translation import gettext as _
from django.utils.translation.trans_null import gettext_noop  # the usual one reads the settings

from autorun.conf import settings
from autorun.dispatch.messages import queue_name
from autorun.models import Chunk
from autorun.observe.activity import RATE_SECONDS
from autorun.state import draining
from autorun.state.clock import from_now
from autorun.state.words import duration


@dataclass(frozen=True)
class WorkerAtWork:
    """One worker: its columns. `runs` are those it finished in the last ten minutes.

    `queues` are those that it consumes from, or those of its recent chunks if they are not known.
    `since` is the start of the chunk that it has had for longest. `state` is "draining" until a
    drained worker has finished its chunks, then "drained"; "ended" for a worker that was stopped or
    whose main process was killed; "silent" for one that has given no sign of life for `silence`
    seconds; and empty for any other worker.
    """

    name: str
    queues: str
    runners: str
    chunks: int
    since: dt.datetime | None
    runs: int
    last_seen: dt.datetime | None
    state: str
    silence: float | None

    @property
    def state_in_words(self) -> str:
        if self.state == "silent":
            return _("not heard from for %s") % duration(self.silence)
        return _(self.state) if self.state else ""

    @property
    def mark(self) -> str:
        return {"silent": "warning", "ended": "idle"}.get(self.state, "paused")

    @property
    def may_be_drained(self) -> bool:
        """Whether it runs, and reads the note: other processes than Celery's workers do not."""
        return not self.state and _is_of_celery(self.name)

    @property
    def is_drained(self) -> bool:
        return self.state in ("draining", "drained")


def workers_at_work() -> list[WorkerAtWork]:
    """The workers that were seen or worked in the last ten minutes, by name; four queries."""
    is_running = Q(state=Chunk.State.RUNNING)
    ended = Q(state=Chunk.State.FINISHED, finished_at__gte=from_now(-RATE_SECONDS))
    chunks: Any = Chunk.objects.unfolded().filter(is_running | ended).exclude(worker="")
    found = (
        chunks.order_by()
        .values_list("worker", "queue", "runner")
        .annotate(
            running=Count("pk", filter=is_running),
            since=Min("started_at", filter=is_running),
            leased_until=Max("expires_at", filter=is_running),
            runs=Sum(Case(When(ended, then=F("succeeded") + F("failed")), default=Value(0))),
            last=Max("finished_at"),
        )
    )
    workers: dict[str, list[tuple[Any, ...]]] = {}
    for worker, *row in found:
        # A process's name is its worker's, with two more parts.
        workers.setdefault(worker.rsplit(":", 2)[0], []).append(tuple(row))
    drained, seen, queues = draining.drained(), draining.seen(), draining.queues_of_workers()
    for pulse in seen:
        if worker := draining.worker_of(pulse):
            workers.setdefault(worker, [])
    found = []
    for name, rows in sorted(workers.items()):
        pulse = draining.pulse_of(name)
        own = queues.get(draining.code_of(pulse), [])
        found.append(_worker(name, rows, own, *seen.get(pulse, ()), is_drained=pulse in drained))
    return found


def _worker(
    name: str,
    rows: list[tuple[Any, ...]],
    own_queues: list[str],
    seen_at: dt.datetime | None = None,
    now: dt.datetime | None = None,
    *,
    is_drained: bool,
) -> WorkerAtWork:
    queues, runners, running, since, leases, runs, last = (
        zip(*rows, strict=True) if rows else [()] * 7
    )
    starts = [each for each in since if each is not None]
    renewals = [each - dt.timedelta(seconds=settings.LEASE) for each in leases if each is not None]
    times = [each for each in (*last, *starts, *renewals, seen_at) if each is not None]
    last_seen = max(times, default=None)
    silence = (now - last_seen).total_seconds() if now and last_seen else 0.0
    state = ""
    if now is None and (_is_of_celery(name) or not sum(running)):
        state = gettext_noop("ended")
    elif silence > draining.longest_silence():
        state = "silent"
    elif is_drained:
        state = gettext_noop("draining") if sum(running) else gettext_noop("drained")
    return WorkerAtWork(
        name=name,
        queues=", ".join(own_queues or sorted(set(map(queue_name, queues)))),
        runners=", ".join(sorted({each for each, n in zip(runners, running, strict=True) if n})),
        chunks=sum(running),
        since=min(starts, default=None),
        runs=sum(runs),
        last_seen=last_seen,
        state=state,
        silence=silence if state == "silent" else None,
    )


def _is_of_celery(name: str) -> bool:
    """Whether a worker has this name, and not another process that executes runs."""
    return "@" in name
