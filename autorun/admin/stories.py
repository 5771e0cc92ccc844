"""What happened to a run, in order, and why it ran or does not run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autorun.listing import state_of
from autorun.models import UNPREPARED, Batch, Chunk, Failure, Run

if TYPE_CHECKING:
    from autorun.runner import QuerySetRunner


@dataclass(frozen=True)
class Event:
    """Something that happened, or is due, at a time; `state` gives its colour."""

    at: dt.datetime
    state: str
    words: str


@dataclass(frozen=True)
class Story:
    """`why` it ran; `now`, what is the case with its row at the moment."""

    why: str
    now: str
    events: Sequence[Event]
    failures: Sequence[Failure]


#: What is said of an explanation that quotes a message, to those who may not see messages.
_WITHOUT_MESSAGE = {
    "failed": "It failed for good; nothing runs it again until it is retried or its row changes.",
    "retrying": "It failed, and another attempt is due.",
    "unprepared": "The input of its row cannot be prepared.",
}


def story_of(
    run: Run,
    runner: QuerySetRunner | None,
    instance: Any,
    *,
    shows_messages: bool,
    is_hidden: bool = False,
) -> Story:
    """The story of a run; `instance` is its row, None where that is gone, or hidden."""
    failures = list(run.failures.order_by("attempt"))
    if is_hidden:
        now = "Its row is one that you may not see, so nothing more is told about it."
    else:
        now = _now(run, runner, instance, shows_messages=shows_messages)
    return Story(_why(run), now, _events(run, failures), failures)


def explanation_of(runner: QuerySetRunner, instance: Any, *, shows_messages: bool) -> str:
    """Why the row is pending or not, in a sentence that quotes no message unless it may."""
    try:
        explanation = runner.explain(instance)
    except Exception as error:  # noqa: BLE001  a project's own hooks
        return f"It cannot be explained: {type(error).__name__}"
    quotes = explanation.run is not None and explanation.run.attempts > 0
    if not shows_messages and (quotes or explanation.code in _WITHOUT_MESSAGE):
        word = explanation.code.replace("_", " ").capitalize()
        return _WITHOUT_MESSAGE.get(explanation.code, f"{word}.")
    return explanation.reason


def _why(run: Run) -> str:
    """Who looked and found the row pending."""
    chunk, batch = run.chunk, run.chunk.batch
    if run.fingerprint == UNPREPARED:
        return "Its input could not be prepared, so it failed without being started."
    if batch is not None:
        reasons = {
            Batch.Trigger.SWEEP: "A sweep found its row pending.",
            Batch.Trigger.BACKFILL: f"A backfill asked for it: {batch.description}.",
            Batch.Trigger.CODE: "Code called run() and its row was pending.",
        }
        return reasons.get(Batch.Trigger(batch.trigger), "")
    if chunk.priority == Chunk.Priority.LIVE:
        return "Its row was saved, or what it depends on had a new success."
    return "Somebody recorded its row as done without running it."


def _now(run: Run, runner: QuerySetRunner | None, instance: Any, *, shows_messages: bool) -> str:
    """What is the case with the run's row at the moment."""
    if runner is None:
        return f"The runner {run.chunk.runner} is no longer registered."
    if instance is None:
        return "Its row has been deleted."
    if not run.is_current:
        if state_of(run) == "cancelled":
            return "It was cancelled, so it counts for nothing: its row may have a later run."
        return "A later run has taken its place; its outputs are those of an earlier input."
    node = runner.get_node()
    if node.pk != run.node_id:
        return f"{runner.label} now is at {node}; this run is of an earlier version."
    return explanation_of(runner, instance, shows_messages=shows_messages)


def _events(run: Run, failures: Sequence[Failure]) -> list[Event]:
    chunk = run.chunk
    is_retry = any(each.failed_at < chunk.created_at for each in failures)
    events = [
        Event(
            chunk.created_at,
            "waiting",
            "planned again, for another attempt" if is_retry else "planned",
        )
    ]
    if chunk.published_at:
        events.append(Event(chunk.published_at, "queued", "handed to Celery"))
    if chunk.started_at:
        events.append(Event(chunk.started_at, "running", f"its chunk started on {chunk.worker}"))
    events += [
        Event(each.failed_at, "failed", f"attempt {each.attempt} failed: {each.exception_class}")
        for each in failures
    ]
    if chunk.not_before:
        events.append(Event(chunk.not_before, "waiting", "next attempt not before"))
    if run.finished_at and run.status != Run.Status.FAILED:
        word = Run.Status(run.status).name.lower()
        events.append(Event(run.finished_at, state_of(run), word))
    elif run.finished_at:
        events.append(Event(run.finished_at, "failed", "failed for good"))
    return sorted(events, key=lambda each: each.at)
