"""Named points between two writes, or between a write and a message.

Nothing happens at them in production. Tests listen, and crash the process or let another act first.
"""

from __future__ import annotations

from collections.abc import Callable

Listener = Callable[[str], object]

#: Each point, and the event that has just happened there.
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
    """Call the listener, if a test has set one."""
    if _listener is not None:
        _listener(name)


def listen(listener: Listener | None) -> Listener | None:
    """Call `listener` at each point from now on; return the previous listener."""
    global _listener
    before, _listener = _listener, listener
    return before


_listener: Listener | None = None
