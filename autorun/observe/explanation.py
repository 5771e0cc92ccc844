"""Why one row is pending for a runner, or why it is not."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autorun.declare import hooks
from autorun.declare.hooks import every_row
from autorun.declare.nodes import node_of
from autorun.declare.registry import dependencies_of
from autorun.declare.runner import Runner
from autorun.dispatch.messages import queue_of
from autorun.exceptions import WorkerLost
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.planning.rows import Row, load
from autorun.state.clock import as_told
from autorun.state.keys import Key, key_kind

QUIET = 1  # below every level of logging: filters say nothing
LONGEST_MESSAGE = 200
WORKER_LOST = f"{WorkerLost.__module__}.{WorkerLost.__qualname__}"


@dataclass(frozen=True)
class Explanation:
    """What is the case with one row, in a stable word and in a sentence.

    `is_pending` is what `runner.pending()` would say. Rows that are pending: "never_ran",
    "changed" (since its last run), "unprepared" (its input raises). On their way: "waiting",
    "queued", "running", "retrying", "parked", "paused". Ended: "succeeded", "failed", "ignored".
    Not to be processed: "unsaved", "deleted", "not_in_base_query", "filtered_out", "dependency".
    `run` is the row's current one, where it has one.
    """

    is_pending: bool
    code: str
    reason: str
    run: Run | None = None

    def __str__(self) -> str:
        return self.reason


def explain(runner: Runner, instance: Any) -> Explanation:
    """Why `instance` is pending or not. Raises TypeError for an instance of another model."""
    model = runner.get_model()
    if not isinstance(instance, model._meta.concrete_model or model):
        raise TypeError(
            f"{runner.label} processes rows of {model._meta.label}, not {instance!r}. Give the "
            "instance itself: no primary key, and no collection."
        )
    if instance.pk is None:
        return Explanation(False, "unsaved", "The row has not been saved, so it has no key yet.")
    key = _key(runner, instance.pk)
    if key is None:
        return _absent(instance)
    run = _current_run(runner, key)
    if run is None or run.status != Run.Status.PENDING:
        row = load(runner, [key], within_base=True).get(key)
    else:
        is_chosen = run.chunk.batch is not None and run.chunk.batch.is_beyond_base
        row = load(runner, [key], within_base=not is_chosen).get(key)
        if row is None or row.fingerprint == run.fingerprint or is_chosen:
            return _under_way(runner, run, is_eligible=row is not None)
    if row is None:
        return _not_eligible(runner, instance, key, run)
    if run is None or run.fingerprint != row.fingerprint:
        return _pending(runner, row, run)
    return _ended(runner, run)


def _key(runner: Runner, pk: Any) -> Key | None:
    """The row's key, or None where the database has no such row."""
    rows = every_row(runner).filter(pk=pk)
    found = rows.annotate(_autorun_key=key_kind(runner.get_model()).expression())
    key: Key | None = found.values_list("_autorun_key", flat=True).first()
    return key


def _current_run(runner: Runner, key: Key) -> Any:
    runs = Run.objects.current().of(node_of(runner)).of_row(key_kind(runner.get_model()), key)
    return runs.select_related("chunk", "chunk__batch", "node").defer("chunk__batch__scope").first()


def _absent(instance: Any) -> Explanation:
    if instance._state.adding:
        return Explanation(False, "unsaved", "The row has not been saved.")
    return Explanation(False, "deleted", "The row has been deleted.")


# Rows that are pending


def _pending(runner: Runner, row: Row, run: Any) -> Explanation:
    if row.error is not None:
        code = "unprepared"
        reason = f"Its input cannot be prepared: {_error(row.error)}. Planning records that"
    elif run is None:
        code, reason = "never_ran", f"{_title(runner)} has not run on this row"
    elif run.status == Run.Status.PENDING:
        code, reason = "changed", "The row has changed since the run that is on its way was planned"
    else:
        code = "changed"
        reason = (
            f"The row has changed since {_title(runner)} {_verb(run)} at {_time(run.finished_at)}"
        )
    node = node_of(runner) if run is None else run.node
    paused_at = Node.objects.filter(pk=node.pk).values_list("paused_at", flat=True).first()
    if paused_at is not None:
        return Explanation(
            True, code, f"{reason}; the runner has been paused since {_time(paused_at)}.", run
        )
    return Explanation(True, code, f"{reason}; {next_look(runner)}.", run)


def next_look(runner: Runner) -> str:
    """What plans the pending rows of a runner that is not paused."""
    if runner.get_schedule() is None:
        return f"it is on no schedule: `manage.py autorun sweep {runner.label}` plans it"
    return f"the next sweep plans it, or `manage.py autorun sweep {runner.label}` now"


# Runs on their way


def _under_way(runner: Runner, run: Any, *, is_eligible: bool) -> Explanation:
    code, reason = _stage(runner, run)
    if run.attempts:
        reason += f", for attempt {run.attempts + 1} of {runner.MAX_ATTEMPTS}"
    if not is_eligible:
        reason += "; it will be cancelled, because the row is no longer to be processed"
    failure = _last_failure(run) if run.attempts else None
    if failure is not None:
        reason += (
            f". Attempt {failure.attempt} failed{_place(failure)}: "
            f"{_short(failure.exception_class, failure.message)}"
        )
    return Explanation(False, code, f"{reason}.", run)


def _stage(runner: Runner, run: Any) -> tuple[str, str]:
    chunk = run.chunk
    if chunk.state == Chunk.State.RUNNING:
        return "running", f"Worker {chunk.worker} has been at it since {_time(chunk.started_at)}"
    if chunk.state == Chunk.State.QUEUED:
        queue = queue_of(runner)
        where = f"queue {queue!r}" if queue else "Celery's default queue"
        return "queued", f"It has waited for a worker in {where} since {_time(chunk.published_at)}"
    if chunk.state == Chunk.State.PARKED:
        return "parked", f"It is parked: {chunk.reason.rstrip('.')}"
    return _held_back(runner, run)


def _held_back(runner: Runner, run: Any) -> tuple[str, str]:
    batch, not_before = run.chunk.batch, run.chunk.not_before
    if run.node.paused_at is not None:
        return "paused", f"The runner has been paused since {_time(run.node.paused_at)}"
    if batch is not None and batch.state == Batch.State.PAUSED:
        return "paused", f"Its batch {batch.pk} is paused"
    if not_before is not None:
        return "retrying", f"It waits until {_time(not_before)}"
    return "waiting", f"It is planned, and waits for room among the runs of {_title(runner)}"


# Runs that ended


def _ended(runner: Runner, run: Any) -> Explanation:
    at = _time(run.finished_at)
    if run.status == Run.Status.SUCCEEDED:
        if not run.attempts:
            return Explanation(False, "succeeded", f"It was adopted as up to date at {at}.", run)
        return Explanation(
            False,
            "succeeded",
            f"{_title(runner)} succeeded on it at {at}; it has not changed.",
            run,
        )
    if run.status == Run.Status.FAILED:
        failure = _last_failure(run)
        attempts = f"{run.attempts} attempt{'s' * (run.attempts != 1)}" if run.attempts else ""
        how = "failed for good" + (f" after {attempts}," if attempts else "") + f" at {at}"
        if failure is not None:
            where = f",{_place(failure)}" if _place(failure) else ""
            how += f"{where}: {_short(failure.exception_class, failure.message)}"
        again = f"`manage.py autorun retry {runner.label}`"
        # What was thrown ends its sentence: nothing of this one's reads as part of the message.
        return Explanation(
            False, "failed", f"It {how}. {again}, or a change of the row, runs it again.", run
        )
    return Explanation(False, "ignored", f"It was set aside at {at}, until the row changes.", run)


# Rows that are not to be processed


def _not_eligible(runner: Runner, instance: Any, key: Key, run: Any) -> Explanation:
    history = ""
    if run is not None and run.finished_at is not None:
        history = f"; {_title(runner)} {_verb(run)} on it at {_time(run.finished_at)}"
    base = hooks.base_queryset(runner).filter(pk=instance.pk)
    if not base.exists():
        return Explanation(
            False,
            "not_in_base_query",
            f"The row is not in the base queryset of {runner.label}{history}.",
            run,
        )
    if not hooks.filtered(runner, base, log_level=QUIET).exists():
        return Explanation(
            False,
            "filtered_out",
            f"filter_queryset() of {runner.label} leaves the row out{history}.",
            run,
        )
    waits = " and ".join(_unmet(runner, key)) or "what it depends on"
    return Explanation(False, "dependency", f"It waits for {waits}{history}.", run)


def _unmet(runner: Runner, key: Key) -> Iterator[str]:
    """The runners in DEPENDS_ON without a success on the row, and what is with them."""
    dependencies = {node_of(each).pk: each for each in dependencies_of(runner)}
    runs = Run.objects.current().filter(node_id__in=dependencies)
    runs = runs.of_row(key_kind(runner.get_model()), key)
    statuses = dict(runs.values_list("node_id", "status"))
    states = {
        Run.Status.PENDING: "is on its way",
        Run.Status.FAILED: "failed on the row",
        Run.Status.CANCELLED: "was told to ignore the row",
    }
    for node_id, dependency in dependencies.items():
        status = statuses.get(node_id)
        if status != Run.Status.SUCCEEDED:
            state = "has not run on the row" if status is None else states[Run.Status(status)]
            yield f"{dependency.label}, which {state}"


# Words


def _title(runner: Runner) -> str:
    return str(runner.get_analysis())


def _verb(run: Run) -> str:
    return {
        Run.Status.SUCCEEDED: "succeeded",
        Run.Status.FAILED: "failed",
        Run.Status.CANCELLED: "was told to ignore it",
    }.get(Run.Status(run.status), "was planned")


def _time(value: dt.datetime | None) -> str:
    if value is None:
        return "an unknown time"
    return as_told(value)


def _last_failure(run: Run) -> Failure | None:
    failure: Failure | None = Failure.objects.filter(run=run).order_by("-attempt").first()
    return failure


def _place(failure: Failure) -> str:
    """ " on WORKER"; '' for a lost worker, which the message names: another recorded that."""
    if not failure.worker or failure.exception_class == WORKER_LOST:
        return ""
    return f" on {failure.worker}"


def _error(error: Exception) -> str:
    return _short(type(error).__name__, str(error))


def _short(name: str, message: str) -> str:
    first = message.strip().partition("\n")[0]
    if len(first) > LONGEST_MESSAGE:
        first = f"{first[:LONGEST_MESSAGE]}..."
    return f"{name}: {first.rstrip('.')}" if first else name
