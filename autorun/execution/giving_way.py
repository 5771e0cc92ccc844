"""Chunks of backfills and sweeps give way to saved rows whose message waits in the same worker.

A worker fetches messages ahead, and its processes take them in their order. So the message about a
saved row would wait for whole chunks. Only the worker's main process sees it wait: it notes since
when in memory that it shares with the processes it forks.
"""

import mmap
import threading
import time
from typing import Any

from celery.worker.request import Request

from autorun.models import Chunk

#: Seconds that a message has waited, and a chunk has been executed, before the chunk gives way:
#: an idle process takes the message at once, and ending a chunk costs as much as starting one.
LEAST_WAIT = 0.02
LEAST_WORK = 0.1
#: Seconds after which a message that seems to wait has been lost.
LONGEST_WAIT = 10.0

#: Since when the oldest message has been waiting, by the monotonic clock that all processes share,
#: or 0; and whether a message has arrived since a chunk gave way last.
_shared = memoryview(mmap.mmap(-1, 16)).cast("d")
#: The arrivals of the messages that wait, by their ids.
_waiting: dict[str, float] = {}
_lock = threading.Lock()


class SavedRows(Request):
    """A message about saved rows, in the worker's main process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.eta:
            _note(self.id, time.monotonic())
            _shared[1] = 1.0

    def on_accepted(self, *args: Any, **kwargs: Any) -> None:
        _note(self.id, None)
        super().on_accepted(*args, **kwargs)


def are_rows_waiting(chunk: Chunk) -> bool:
    """Whether saved rows wait in this worker, and the chunk has none."""
    if not _shared[0] or chunk.priority >= Chunk.Priority.LIVE:
        return False
    return LEAST_WAIT <= time.monotonic() - _shared[0] < LONGEST_WAIT


def gives_way(chunk: Chunk, since: float) -> bool:
    """Whether the chunk that this process has executed `since` then has to end.

    One chunk for each message: its process becomes free, and passes chunks on that come first.
    """
    if not _shared[1] or not are_rows_waiting(chunk) or time.monotonic() - since < LEAST_WORK:
        return False
    _shared[1] = 0.0
    return True


def _note(message_id: str, arrived_at: float | None) -> None:
    with _lock:
        if arrived_at is None:
            _waiting.pop(message_id, None)
        else:
            _waiting[message_id] = arrived_at
        lost_before = time.monotonic() - LONGEST_WAIT
        for each in [each for each, since in _waiting.items() if since < lost_before]:
            del _waiting[each]
        _shared[0] = min(_waiting.values(), default=0.0)
