"""Probes: where tests and tracers watch the code. In production they do almost nothing.

A crash point lies between two writes, or between a write and a message. Tests listen there, and
crash the process or let another one act first. A span surrounds a step that takes time; see
`autorun.contrib.otel`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from autorun.state.exception_text import ExceptionText

Listener = Callable[[str], object]

#: Each point, and the event that has just happened there.
POINTS = {
    "save.committed": "a save has committed; its rows are not handed over",
    "spill.written": "saved rows that no broker took are in the database",
    "plan.superseded": "runs are no longer current; their successors are not inserted",
    "plan.inserted": "runs are inserted; their chunks are not",
    "plan.chunked": "chunks are inserted; the batch's counts are as before",
    "plan.unprepared": "runs of rows without an input are inserted; their failures are not",
    "plan.booked": "a window is planned and counted; the transaction is open",
    "plan.committed": "a window is planned; none of its chunks is released",
    "backfill.begun": "a batch exists; none of it is planned",
    "backfill.window": "a window is planned and released; another may follow",
    "backfill.unfinished": "all windows are planned; the batch does not say so",
    "dispatch.claimed": "chunks are marked as queued; the transaction is open",
    "dispatch.unsent": "chunks are queued; their messages are not sent",
    "dispatch.sending": "a message is sent; others may follow",
    "dispatch.refused": "the broker took no message; the chunks are still queued",
    "dispatch.sent": "the messages are sent",
    "start.leased": "a chunk is started; its runs are not loaded",
    "start.assigned": "runs and rows are loaded; no body has started",
    "finish.unwritten": "a body has returned; its result is not recorded",
    "finish.updated": "the chunk's counts and its runs are written; failures are not",
    "finish.landed": "outputs are in the project's rows; failures are not written",
    "finish.failures": "failures are written; runs with attempts left have no chunk",
    "finish.moved": "runs with attempts left have a chunk; the transaction is open",
    "finish.committed": "results are recorded, and the lease kept; dependent rows are not planned",
    "finish.dependents": "dependent rows are planned; the lease has not ended",
    "rescue.taken": "an expired lease is taken over; its runs are in the same chunk",
    "rescue.recorded": "rescued runs are in new chunks; dependent rows are not planned",
    "spilled.leased": "saved rows from the database are leased; their message is not sent",
    "spilled.planned": "saved rows from the database are planned, and still in it",
    "writes.copied": "notes of written rows are copied for a batch or upkeep; they are still there",
    "writes.taken": "a portion of the notes has become rows of a batch; more may follow",
    "upkeep.counted": "messages are counted as sent again; they are not sent",
    "cancel.batch": "a batch is cancelled, and chunks of none are held; no run is cancelled",
    "cancel.runs": "runs of a chunk are cancelled; earlier results are not current again",
    "cancel.started": "running runs that are to be cancelled are; the chunk's counts are as before",
    "cancel.undone": "earlier results are current again; the chunk's counts are as before",
    "retire.runs": "runs of deleted rows are retired; no chunk counts that",
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


class Span:
    """A step of work in a `with` block; this one records nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """End the span; an exception propagates."""

    def note(self, **attributes: str | int | float) -> None:
        """Add attributes to the span."""

    def fail(self, failure: ExceptionText) -> None:
        """Mark the span as failed, although nothing is raised."""


#: Makes the span of that name.
Tracer = Callable[[str], Span]

_SILENT = Span()
_tracer: Tracer | None = None


def install(tracer: Tracer | None) -> None:
    """Let `tracer` make the spans from now on; None turns tracing off."""
    global _tracer  # noqa: PLW0603
    _tracer = tracer


def span(name: str) -> Span:
    """A span to open in a `with` statement."""
    return _SILENT if _tracer is None else _tracer(name)
