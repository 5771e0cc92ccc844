"""What happened to a run, in order, and why it ran or does not run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autorun.declare.hooks import every_row
from autorun.declare.nodes import node_of
from autorun.declare.registry import dependencies_of
from autorun.declare.runner import Runner
from autorun.exceptions import AutorunError
from autorun.models import UNPREPARED, Batch, Chunk, Failure, Run
from autorun.observe.explanation import WORKER_LOST, explain
from autorun.observe.run_states import state_of
from autorun.state.keys import key_kind


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


MOST_OTHERS = 20
_ROW_OR_UPSTREAM = "Its row, or what it depends on,"
#: Of earlier attempts nothing is kept but how they failed: a run is in one chunk only, its latest.
PLANNED_AGAIN = (
    "planned again, for another attempt; when the earlier ones were planned and started is not kept"
)
#: What is said of an explanation that quotes a message, to those who may not see messages.
_WITHOUT_MESSAGE = {
    "failed": "It failed for good; nothing runs it again until it is retried or its row changes.",
    "retrying": "It failed, and another attempt is due.",
    "unprepared": "The input of its row cannot be prepared.",
}


def other_runs(run: Run) -> list[Run]:
    """The newest other runs of the run's row, without their outputs."""
    return list(
        Run.objects.filter(node_id=run.node_id, object_id=run.object_id, object_key=run.object_key)
        .exclude(pk=run.pk)
        .select_related("chunk")
        .defer("outputs")
        .order_by("-pk")[:MOST_OTHERS]
    )


def story_of(
    run: Run,
    runner: Runner | None,
    instance: Any,
    *,
    others: Sequence[Run],
    shows_messages: bool,
    is_hidden: bool = False,
) -> Story:
    """The story of a run; `others` are its row's.

    `instance` is the row, None where that is gone, or hidden.
    """
    failures = list(run.failures.order_by("attempt"))
    if is_hidden:
        now = "Its row is one that you may not see, so nothing more is told about it."
    else:
        now = _now(run, runner, instance, others=others, shows_messages=shows_messages)
    return Story(_why(run, runner, others), now, _events(run, failures), failures)


def runs_behind(runner: Runner, instance: Any) -> list[Run]:
    """The current runs of the row that its explanation is about: upstream, and the runner's."""
    kind = key_kind(runner.get_model())
    try:
        nodes = [node_of(each).pk for each in (*dependencies_of(runner), runner)]
        rows = every_row(runner).filter(pk=instance.pk)
        key = rows.annotate(_autorun_key=kind.expression()).values_list("_autorun_key").first()
    except AutorunError:  # the explanation says what is wrong
        return []
    if key is None:
        return []
    runs = Run.objects.current().filter(node_id__in=nodes).of_row(kind, key[0])
    return list(runs.select_related("node", "chunk").defer("outputs").order_by("pk"))


def explanation_of(runner: Runner, instance: Any, *, shows_messages: bool) -> str:
    """Why the row is pending or not, in a sentence that quotes no message unless it may."""
    try:
        explanation = explain(runner, instance)
    except Exception as error:  # noqa: BLE001  a project's own hooks
        return f"It cannot be explained: {type(error).__name__}"
    run = explanation.run
    quotes = run is not None and run.attempts > 0 and run.status == Run.Status.PENDING
    if not shows_messages and (quotes or explanation.code in _WITHOUT_MESSAGE):
        word = explanation.code.replace("_", " ").capitalize()
        return _WITHOUT_MESSAGE.get(explanation.code, f"{word}.")
    return explanation.reason


def _why(run: Run, runner: Runner | None, others: Sequence[Run]) -> str:
    """Who looked and found the row pending, and what was new about it."""
    if run.fingerprint == UNPREPARED:
        return "Its input could not be prepared, so it failed without being started."
    batch, is_live = run.chunk.batch, run.chunk.priority == Chunk.Priority.LIVE
    if batch is None and not is_live and not run.attempts:
        if run.status == Run.Status.SUCCEEDED:
            return "Somebody recorded its row as done without running it."
        if run.status == Run.Status.CANCELLED:
            return "Somebody set its row aside, to be left alone until its input changes."
    if batch is not None:
        occasion = {
            Batch.Trigger.SWEEP: "A sweep found its row pending.",
            Batch.Trigger.BACKFILL: f"A backfill asked for it: {batch.description}.",
            Batch.Trigger.CODE: "Code called run() and its row was pending.",
        }[Batch.Trigger(batch.trigger)]
    elif is_live:
        occasion = "Its row was saved."
        if runner is None or runner.DEPENDS_ON:
            occasion = "Its row was saved, or what it depends on had a new success."
    else:
        occasion = f"What its runner depends on ({_upstream(runner)}) had a new success on the row."
    return f"{occasion} {_what_was_new(run, runner, others)}".rstrip()


def _what_was_new(run: Run, runner: Runner | None, others: Sequence[Run]) -> str:
    """What set its row apart from the run of the row before it."""
    earlier = [each for each in others if each.pk < run.pk and not _is_unstarted(each)]
    if not earlier:
        is_known = len(others) < MOST_OTHERS
        return "It is the first run of the row on record." if is_known else ""
    before = max(earlier, key=lambda each: each.pk)
    if before.fingerprint == UNPREPARED:
        return f"In run {before.pk} the row's input could not be prepared."
    if before.fingerprint != run.fingerprint:
        what = "Its row" if runner is not None and not runner.DEPENDS_ON else _ROW_OR_UPSTREAM
        return f"{what} had changed since run {before.pk}."
    return {
        Run.Status.SUCCEEDED: f"It was forced: run {before.pk} had succeeded on the same input.",
        Run.Status.FAILED: f"It was retried: run {before.pk} had failed on the same input.",
        Run.Status.CANCELLED: f"Run {before.pk} on the same input had been given up.",
    }.get(Run.Status(before.status), f"It took the place of run {before.pk}.")


def _is_unstarted(run: Run) -> bool:
    """Whether nobody ever started it: such a run says nothing about its row."""
    return run.status == Run.Status.CANCELLED and not run.attempts


def _now(
    run: Run,
    runner: Runner | None,
    instance: Any,
    *,
    others: Sequence[Run],
    shows_messages: bool,
) -> str:
    """What is the case with the run's row at the moment."""
    if runner is None:
        return f"The runner {run.chunk.runner} is no longer registered."
    if instance is None:
        return "Its row has been deleted."
    if not run.is_current:
        if state_of(run) == "cancelled":
            return "It was cancelled, so it counts for nothing: its row may have a later run."
        return _superseded(run, others)
    node = node_of(runner)
    if node.pk != run.node_id:
        return f"{runner.label} now is at {node}; this run is of an earlier version."
    return explanation_of(runner, instance, shows_messages=shows_messages)


def _superseded(run: Run, others: Sequence[Run]) -> str:
    """What is to be said of a run that another one has taken the place of."""
    how = {Run.Status.SUCCEEDED: "It succeeded", Run.Status.FAILED: "It failed for good"}.get(
        Run.Status(run.status), "It had not ended"
    )
    current = next((each for each in others if each.is_current), None)
    if current is None:
        return f"{how}. A later run has taken its place."
    if current.fingerprint == run.fingerprint:
        return f"{how}. Run {current.pk} on the same input has taken its place."
    return f"{how}, on an earlier input: run {current.pk} has taken its place."


def _upstream(runner: Runner | None) -> str:
    """The labels of what the runner depends on."""
    if runner is None:
        return "another runner"
    try:
        return " and ".join(each.label for each in dependencies_of(runner)) or "another runner"
    except AutorunError:  # a system check says what is wrong with it
        return "another runner"


def _events(run: Run, failures: Sequence[Failure]) -> list[Event]:
    chunk = run.chunk
    is_over = run.status != Run.Status.PENDING
    is_retry = any(each.attempt < run.attempts + (not is_over) for each in failures if each.attempt)
    events = [
        Event(
            chunk.created_at,
            "waiting",
            PLANNED_AGAIN if is_retry else "planned",
        )
    ]
    if chunk.published_at:
        events.append(Event(chunk.published_at, "queued", "handed to Celery"))
    if chunk.started_at:
        events.append(Event(chunk.started_at, "running", f"its chunk started on {chunk.worker}"))
    events += [Event(each.failed_at, "failed", _how_it_failed(each)) for each in failures]
    if chunk.not_before:
        events.append(Event(chunk.not_before, "waiting", "next attempt not before"))
    if run.finished_at and run.status != Run.Status.FAILED:
        word = Run.Status(run.status).name.lower()
        events.append(Event(run.finished_at, state_of(run), word))
    elif run.finished_at:
        events.append(Event(run.finished_at, "failed", "failed for good"))
    return sorted(events, key=lambda each: each.at)


def _how_it_failed(failure: Failure) -> str:
    what = f"attempt {failure.attempt}" if failure.attempt else "before its first attempt it"
    # Of a lost worker another one tells.
    is_told = bool(failure.worker) and failure.exception_class != WORKER_LOST
    where = f" on {failure.worker}" if is_told else ""
    return f"{what} failed{where}: {failure.exception_class}"
