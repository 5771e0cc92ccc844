"""Workers that are alive, and drained ones: these start no more chunks until they are restarted.

A pulse of each worker notes when it was last seen, and others which queues it consumes from.
Another one notes that a worker is drained: the worker's processes read it when they are about to
start a chunk, and its upkeep before every round.
The main process uses no database: a byte of memory, which it shares with the processes it forks,
tells it to stop consuming autorun's queues.
"""

import datetime as dt
import hashlib
import mmap
from collections import defaultdict
from collections.abc import Iterable
from enum import IntEnum
from functools import reduce
from operator import or_

from django.db.models import Q

from autorun.conf import settings
from autorun.models import Pulse
from autorun.state.clock import DatabaseNow, from_now

PREFIX, ALIVE, QUEUE = "drain:", "alive:", "queue:"
#: The width of the column.
LONGEST_NAME = 64
#: Seconds since its last sign of life in which a worker is listed, and its notes are kept.
LISTED = 600.0
KEPT = 86_400.0
#: A live worker gives a sign of life within so many rounds of upkeep, or so many seconds if longer.
SIGN_TURNS, LEAST_SILENCE = 2, 60.0


class _State(IntEnum):
    STARTING = 0  # a note may still be about the worker that had the name before
    OPEN = 1
    DRAINING = 2


_shared = mmap.mmap(-1, 1)
#: The pulse of the worker that this process belongs to; '' if it belongs to none.
own = ""
_queues: tuple[str, ...] = ()


def prepare(worker: str) -> None:
    """Name the worker that starts in this process, before it forks."""
    global own
    own, _shared[0] = pulse_of(worker), _State.STARTING


def consume_from(queues: Iterable[str]) -> None:
    """Name the queues that the worker consumes from, before it forks."""
    global _queues  # noqa: PLW0603
    _queues = tuple(queues)


def drain(worker: str) -> bool:
    """Stop the worker from starting more chunks; False if it is drained already."""
    noted = {"beat_at": DatabaseNow()}
    return Pulse.objects.get_or_create(name=pulse_of(worker), defaults=noted)[1]


def undrain(worker: str) -> bool:
    """Let the worker start chunks again; False if it was not drained."""
    return bool(Pulse.objects.filter(name=pulse_of(worker)).delete()[0])


def drained() -> set[str]:
    """The pulses of drained workers."""
    noted = Pulse.objects.filter(name__startswith=PREFIX)
    return set(noted.values_list("name", flat=True))


def seen() -> dict[str, tuple[dt.datetime, dt.datetime]]:
    """When each worker was last seen, and the time now, by the name of its pulse."""
    since = from_now(-max(LISTED, 2 * longest_silence()))
    noted = Pulse.objects.filter(name__startswith=ALIVE, beat_at__gt=since)
    found = noted.values_list("name", "beat_at", DatabaseNow())
    return {PREFIX + name.removeprefix(ALIVE): (at, now) for name, at, now in found}


def queues_of_workers() -> dict[str, list[str]]:
    """The queues that each worker consumes from, by the `code_of` its pulse."""
    found = defaultdict(list)
    noted = Pulse.objects.filter(name__startswith=QUEUE, beat_at__gt=from_now(-longest_silence()))
    for name in noted.order_by("name").values_list("name", flat=True):
        _, code, queue = name.split(":", 2)
        found[code].append(queue)
    return found


def code_of(pulse: str) -> str:
    """A short name of a worker, to be followed by that of a queue."""
    return hashlib.sha256(pulse.encode()).hexdigest()[:12]


def pulse_of(worker: str) -> str:
    """The name of a worker's pulse; a digest stands for the worker's own if it is too long."""
    if len(PREFIX + worker) > LONGEST_NAME:
        worker = hashlib.sha256(worker.encode()).hexdigest()[:32]
    return PREFIX + worker


def worker_of(pulse: str) -> str:
    """The worker's name; '' if only its digest is known."""
    name = pulse.removeprefix(PREFIX)
    return name if "@" in name else ""


def heeded() -> str:
    """The name of the pulse that, if it is there, keeps this process from starting a chunk."""
    return "" if _shared[0] == _State.STARTING else own


def begin() -> None:
    """Tell the main process to stop consuming, now that a chunk was refused."""
    _shared[0] = _State.DRAINING


def has_begun() -> bool:
    """Whether this worker is drained; without a query."""
    return _shared[0] == _State.DRAINING


def look() -> None:
    """Note that this worker lives, and heed the note that drains it if it came after the start."""
    if not own:
        return
    names = _signs_of_life()
    found = Pulse.objects.filter(name__in=[*names, own]).update(beat_at=DatabaseNow())
    if found == len(names) + has_begun() and _shared[0] != _State.STARTING:
        return  # one statement as long as nothing changes
    if found < len(names) + has_begun():
        signs = [Pulse(name=name, beat_at=DatabaseNow()) for name in names]
        Pulse.objects.bulk_create(signs, ignore_conflicts=True)
    if _shared[0] == _State.STARTING:
        Pulse.objects.filter(name=own).delete()
        _shared[0] = _State.OPEN
        return
    is_noted = Pulse.objects.filter(name=own).exists()
    _shared[0] = _State.DRAINING if is_noted else _State.OPEN


def end() -> None:
    """Delete the note that this worker is alive."""
    if own:
        Pulse.objects.filter(name__in=_signs_of_life()).delete()


def _signs_of_life() -> list[str]:
    """The names of the pulses that say that this worker is alive, and which queues it has."""
    queues = (f"{QUEUE}{code_of(own)}:{each}"[:LONGEST_NAME] for each in _queues)
    return [ALIVE + own.removeprefix(PREFIX), *dict.fromkeys(queues)]


def longest_silence() -> float:
    """Seconds without a sign of life after which a worker may have died."""
    return max(LEAST_SILENCE, SIGN_TURNS * settings.UPKEEP_INTERVAL)


def forget_ended() -> None:
    """Delete the notes about workers that have ended."""
    is_noted = [Q(name__startswith=prefix) for prefix in (PREFIX, ALIVE, QUEUE)]
    Pulse.objects.filter(reduce(or_, is_noted), beat_at__lt=from_now(-KEPT)).delete()
