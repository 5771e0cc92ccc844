"""Named points at which a test kills the process: between two writes, or a write and a send.

They are off, and cost one comparison, unless `AUTORUN_CRASH_AT` in the process's environment names
one: `AUTORUN_CRASH_AT=finish.counted`, or `finish.counted:3` for the third time it is passed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = "AUTORUN_CRASH_AT"

#: What has just happened at each point.
POINTS = {
    "save.committed": "a save has committed; nobody has been told",
    "spill.written": "saved rows that no broker took are written down",
    "plan.superseded": "runs are no longer current; those that follow them are not inserted",
    "plan.inserted": "runs are inserted; their chunks are not",
    "plan.chunked": "chunks are inserted; the batch has not been told",
    "plan.unprepared": "runs of unprepared rows are inserted; what was wrong with them is not",
    "plan.booked": "a window is planned and booked; the transaction is open",
    "plan.committed": "a window is planned; nothing of it is released",
    "backfill.begun": "a batch exists; none of it is planned",
    "backfill.window": "a window is planned and released; another may follow",
    "backfill.unfinished": "all windows are planned; the batch has not been told",
    "dispatch.claimed": "chunks are claimed; the transaction is open",
    "dispatch.unsent": "chunks are queued; their messages are not sent",
    "dispatch.sending": "a message is sent; others may follow",
    "dispatch.refused": "the broker took no message; the chunks still say queued",
    "dispatch.sent": "the messages are sent",
    "start.leased": "a chunk is started; its runs are not loaded",
    "start.assigned": "runs and rows are loaded; no body has begun",
    "finish.unwritten": "a body has returned; nothing of it is written",
    "finish.counted": "the chunk's counts are written; its runs are not",
    "finish.updated": "runs are written; what they threw is not",
    "finish.failures": "failures are written; the runs that go on have no chunk",
    "finish.moved": "runs that go on have a chunk; the transaction is open",
    "finish.committed": "results are recorded; nothing follows from them yet",
    "finish.dependents": "what depends on a success is planned; nothing more is released",
    "rescue.taken": "an expired lease is taken; its runs are where they were",
    "rescue.recorded": "rescued runs are in new chunks, which nobody has released",
    "drain.planned": "spilled rows are planned; they are still written down",
    "upkeep.counted": "messages are counted as sent again; they are not sent",
    "cancel.batch": "a batch is cancelled; its chunks are not",
    "cancel.runs": "runs of a chunk are cancelled; the chunk does not know",
}


def crash_point(name: str) -> None:
    """Kill this process if it is armed for this point."""
    if _armed is not None:
        _armed.passes(name)


@contextmanager
def armed(name: str) -> Iterator[None]:
    """Arm this process, as the environment would, for the length of a `with` block."""
    global _armed  # noqa: PLW0603
    before, _armed = _armed, _Point(name)
    try:
        yield
    finally:
        _armed = before


class _Point:
    def __init__(self, text: str) -> None:
        name, _, nth = text.partition(":")
        if name not in POINTS:
            raise ValueError(f"There is no crash point {name!r}. There are: {', '.join(POINTS)}.")
        self.name = name
        self.left = int(nth or 1)

    def passes(self, name: str) -> None:
        if name != self.name:
            return
        self.left -= 1
        if not self.left:
            kill()


def kill() -> None:
    """End this process as a power cut would: nothing is unwound, flushed or closed."""
    os.kill(os.getpid(), signal.SIGKILL)


_armed = _Point(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None
