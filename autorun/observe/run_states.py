"""Runs: their states as pages and commands name them, pages of them, and what scripts get."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Self

from django.db.models import F, Q

from autorun.declare import registry
from autorun.exceptions import AutorunError
from autorun.models import Batch, Chunk, Run
from autorun.planning import batches
from autorun.planning.pending import stale
from autorun.state.counts import IS_POSTPONED, BatchCounts
from autorun.state.keys import key_kind
from autorun.state.parameters import read_number

#: Columns that lists of runs do not load: a scope holds up to 30,000 keys.
LONG = ("outputs", "chunk__batch__scope")
#: The columns of a run that name its row and its runner.
NAMES = ("pk", "node_id", "chunk_id", "object_id", "object_key")
#: The cancelled runs of a chunk, without those that are not applicable.
CANCELLED = F("cancelled") - F("not_applicable")


@dataclass(frozen=True)
class Cursor:
    """A place in the list: runs of older chunks, or older runs of the same one, come after it.

    In a failure group it is the id of a failure: the runs of older ones come after it.
    """

    chunk_id: int
    run_id: int

    def __str__(self) -> str:
        return f"{self.chunk_id}-{self.run_id}"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The cursor in `text`, or None if it is not one."""
        chunk_id, run_id = map(read_number, text.partition("-")[::2])
        return None if chunk_id is None or run_id is None else cls(chunk_id, run_id)

    @classmethod
    def of(cls, run: Run) -> Self:
        return cls(run.chunk_id, run.pk)


@dataclass(frozen=True)
class Page:
    """Some runs, and the place where the next ones begin; None at the end.

    A page that is neither full nor the last one ran out of its bounded number of queries.
    """

    runs: list[Run]
    after: Cursor | None


@dataclass(frozen=True)
class RunState:
    """One state of runs: the chunks that may hold some, the runs themselves, their number."""

    chunks: Q
    runs: Q
    number: Any


def _unfinished(chunks: Q) -> RunState:
    pending = Q(status=Run.Status.PENDING, is_current=True)
    return RunState(chunks, pending, Chunk.RUNS_LEFT)


def _finished(status: Run.Status, *, is_current: bool | None = True) -> RunState:
    counter = status.name.lower()
    runs = Q(status=status, is_current=is_current)
    if status == Run.Status.CANCELLED:
        return RunState(Q(cancelled__gt=F("not_applicable")), runs, CANCELLED)
    # Among a million waiting chunks the index finds the few that can have finished runs.
    chunks = Q(state__in=(Chunk.State.RUNNING, Chunk.State.FINISHED))
    return RunState(chunks & Q(**{f"{counter}__gt": 0}), runs, F(counter))


STATES: Mapping[str, RunState] = {
    "waiting": _unfinished(Q(state=Chunk.State.WAITING, postponed_by="")),
    "postponed": _unfinished(IS_POSTPONED),
    "queued": _unfinished(Q(state=Chunk.State.QUEUED)),
    "running": _unfinished(Q(state=Chunk.State.RUNNING)),
    "parked": _unfinished(Q(state=Chunk.State.PARKED)),
    "succeeded": _finished(Run.Status.SUCCEEDED),
    "failed": _finished(Run.Status.FAILED),
    "not_applicable": _finished(Run.Status.NOT_APPLICABLE),
    "ignored": _finished(Run.Status.CANCELLED),
    "cancelled": _finished(Run.Status.CANCELLED, is_current=None),
    "superseded": RunState(
        Q(), Q(is_current=None) & ~Q(status=Run.Status.CANCELLED), F("size") - F("moved")
    ),
}
#: States whose runs are in chunks that are not folded.
UNFOLDED = ("waiting", "postponed", "queued", "running", "parked", "failed")
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
    "not_applicable": (
        F("folded_not_applicable"),
        F("not_applicable") - F("superseded_not_applicable"),
    ),
    "ignored": (
        F("folded_ignored") - F("folded_not_applicable"),
        CANCELLED - F("superseded_cancelled") + F("superseded_not_applicable"),
    ),
}


def state_of(run: Run) -> str:
    """The run's state, one of STATES; its chunk should have been loaded with it."""
    if run.status == Run.Status.CANCELLED:
        return "ignored" if run.is_current else "cancelled"
    if not run.is_current:
        return "superseded"
    if run.status == Run.Status.PENDING:
        state = Chunk.State(run.chunk.state)
        is_postponed = state == Chunk.State.WAITING and run.chunk.postponed_by
        return "postponed" if is_postponed else state.name.lower()
    return Run.Status(run.status).name.lower()


def stale_among(runs: Iterable[Run]) -> set[int]:
    """The ids of the stale runs among `runs`, with one query at most."""
    found = Run.objects.none()
    successes = [run for run in runs if state_of(run) == "succeeded"]
    by_runner = sorted(successes, key=_label_of)
    for label, of_runner in groupby(by_runner, key=_label_of):
        runner = registry.find(label)
        if runner is not None and runner.depends_on:
            kind = key_kind(runner.get_model())
            with suppress(AutorunError):  # it cannot run, which its own page says
                found |= stale(runner, [kind.of(run) for run in of_runner])
    return {run.pk for run in successes} & set(found.values_list("pk", flat=True))


def _label_of(run: Run) -> str:
    return run.chunk.runner


BATCH_FIELDS = (
    *("runner", "trigger", "state", "reason", "description", "requested_by"),
    *("candidates", "existing", "planned", "unprepared"),
)


def describe_run(run: Run) -> dict[str, Any]:
    """The run, without its outputs."""
    return {
        "id": run.pk,
        "runner": run.chunk.runner,
        "row": run.key_text,
        "state": state_of(run),
        "analysis": run.node.title,
        "version": run.node.version,
        "worker": run.chunk.worker,
        "batch": run.chunk.batch_id,
        "attempts": run.attempts,
        "seconds": run.seconds,
        "finished_at": run.finished_at,
    }


def describe_batch(batch: Batch, counts: BatchCounts | None = None) -> dict[str, Any]:
    """The batch; its counts are looked up unless they are given."""
    counts = counts or batches.counts(batch)
    return {
        "id": batch.pk,
        **{name: getattr(batch, name) for name in BATCH_FIELDS},
        **asdict(counts),
        # The database sets the time, so an unsaved batch has none.
        "created_at": None if batch._state.adding else batch.created_at,
        "planned_at": batch.planned_at,
        "finished_at": batch.finished_at,
    }
