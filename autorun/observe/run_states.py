"""The states of runs, as the pages and the command line name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import F, Q

from autorun.models import Chunk, Run

_CURRENT = Q(is_current=True)
_PENDING = Q(status=Run.Status.PENDING)


@dataclass(frozen=True)
class RunState:
    """One state of runs: the chunks that may hold some, the runs themselves, their number."""

    chunks: Q
    runs: Q
    number: Any


def _unfinished(state: Chunk.State) -> RunState:
    return RunState(Q(state=state), _PENDING & _CURRENT, Chunk.runs_left())


#: Among a million waiting chunks the index finds the few that can have finished runs.
_STARTED = Q(state__in=(Chunk.State.RUNNING, Chunk.State.FINISHED))

STATES: Mapping[str, RunState] = {
    "waiting": _unfinished(Chunk.State.WAITING),
    "queued": _unfinished(Chunk.State.QUEUED),
    "running": _unfinished(Chunk.State.RUNNING),
    "parked": _unfinished(Chunk.State.PARKED),
    "succeeded": RunState(
        _STARTED & Q(succeeded__gt=0),
        Q(status=Run.Status.SUCCEEDED) & _CURRENT,
        F("succeeded"),
    ),
    "failed": RunState(
        _STARTED & Q(failed__gt=0), Q(status=Run.Status.FAILED) & _CURRENT, F("failed")
    ),
    "ignored": RunState(
        Q(cancelled__gt=0), Q(status=Run.Status.CANCELLED) & _CURRENT, F("cancelled")
    ),
    "cancelled": RunState(
        Q(cancelled__gt=0), Q(status=Run.Status.CANCELLED, is_current=None), F("cancelled")
    ),
    "superseded": RunState(
        Q(), Q(is_current=None) & ~Q(status=Run.Status.CANCELLED), F("size") - F("moved")
    ),
}
#: States whose runs are in chunks that are not folded.
UNFOLDED = ("waiting", "queued", "running", "parked", "failed")
#: The current runs of a state, or of all: their number in the folded chunks of a node, and in one
#: chunk that is not folded.
FOLDED: Mapping[str, tuple[Any, Any]] = {
    "": (
        F("folded_succeeded") + F("folded_failed") + F("folded_ignored"),
        F("size")
        - F("moved")
        - F("superseded_succeeded")
        - F("superseded_failed")
        - F("superseded_cancelled"),
    ),
    "succeeded": (F("folded_succeeded"), F("succeeded") - F("superseded_succeeded")),
    "ignored": (F("folded_ignored"), F("cancelled") - F("superseded_cancelled")),
}


def state_of(run: Run) -> str:
    """The run's state, one of STATES; its chunk should have been loaded with it."""
    if run.status == Run.Status.CANCELLED:
        return "ignored" if run.is_current else "cancelled"
    if not run.is_current:
        return "superseded"
    if run.status == Run.Status.PENDING:
        return Chunk.State(run.chunk.state).name.lower()
    return Run.Status(run.status).name.lower()
