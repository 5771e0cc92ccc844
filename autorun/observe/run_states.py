"""The states of runs, as the pages and the command line name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import F, Q

from autorun.models import Chunk, Run


@dataclass(frozen=True)
class RunState:
    """One state of runs: the chunks that may hold some, the runs themselves, their number."""

    chunks: Q
    runs: Q
    number: Any


def _unfinished(state: Chunk.State) -> RunState:
    pending = Q(status=Run.Status.PENDING, is_current=True)
    return RunState(Q(state=state), pending, Chunk.runs_left())


def _finished(status: Run.Status, *, is_current: bool | None = True) -> RunState:
    counter = status.name.lower()
    chunks = Q(**{f"{counter}__gt": 0})
    if status != Run.Status.CANCELLED:
        # Among a million waiting chunks the index finds the few that can have finished runs.
        chunks &= Q(state__in=(Chunk.State.RUNNING, Chunk.State.FINISHED))
    return RunState(chunks, Q(status=status, is_current=is_current), F(counter))


STATES: Mapping[str, RunState] = {
    "waiting": _unfinished(Chunk.State.WAITING),
    "queued": _unfinished(Chunk.State.QUEUED),
    "running": _unfinished(Chunk.State.RUNNING),
    "parked": _unfinished(Chunk.State.PARKED),
    "succeeded": _finished(Run.Status.SUCCEEDED),
    "failed": _finished(Run.Status.FAILED),
    "ignored": _finished(Run.Status.CANCELLED),
    "cancelled": _finished(Run.Status.CANCELLED, is_current=None),
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
