"""Retry, ignore or cancel many runs at once; pause and hold a runner, or cancel all its runs."""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import Exists, F, OuterRef, QuerySet
from django.utils import timezone

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.hooks import database_of, every_row
from autorun.declare.nodes import node_of
from autorun.dispatch.messages import message_to_plan_on
from autorun.dispatch.publishing import publish
from autorun.dispatch.releasing import release
from autorun.exceptions import AutorunError, BrokerUnavailable
from autorun.models import Batch, Chunk, Node, Run
from autorun.observe.listing import RunFilter
from autorun.planning import batches
from autorun.planning.cancelling import ask_running, cancel_unstarted, count_by_chunk
from autorun.planning.on_demand import begin, require_valid
from autorun.planning.scope import SOURCES, Scope
from autorun.state.clock import DatabaseNow
from autorun.state.keys import key_kind
from autorun.state.logs import get_logger
from autorun.state.managers import UNFINISHED, ChunkQuerySet
from autorun.state.transactions import once_committed, repeated_on_conflict, update_once_committed

logger = get_logger(__name__)

#: Keys that the scope of one batch holds; SQLite takes 32,766 parameters a statement.
KEYS_IN_SCOPE = 30_000
#: The source of a scope whose rows are those of runs that match a filter.
KIND = "runs"

#: How a run has ended that can be retried.
RETRYABLE = (Run.Status.FAILED, Run.Status.CANCELLED, Run.Status.NOT_APPLICABLE)
#: Runs that match a filter, some at a time.
Matching = Iterable[Sequence[Run]]


@dataclass(frozen=True)
class Retried:
    """The batches that retry `runs` runs, `ignored` of them ignored or not applicable.

    `outdated` are the ids of runs that no runner would run now, and `left` has the error of each
    runner whose runs are as they were, by its label.
    """

    batches: Sequence[Batch] = field(default_factory=tuple)
    runs: int = 0
    ignored: int = 0
    outdated: Sequence[int] = field(default_factory=tuple)
    left: Mapping[str, AutorunError] = field(default_factory=dict)


def request_backfill(
    runner: Runner,
    scope: Scope,
    *,
    limit: int | None = None,
    window: int | None = None,
    requested_by: str = "",
) -> Batch:
    """Record a batch that a worker plans, so that the caller need not wait.

    Its message is sent on commit; if no broker takes it, upkeep sends it again. Raises ValueError,
    NotRegistered or ConfigurationError if it could not be planned.
    """
    require_valid(runner)
    _ = scope.selection, scope.queryset(runner)
    batch = begin(
        runner, Batch.Trigger.BACKFILL, scope, limit=limit, window=window, requested_by=requested_by
    )
    # An expired lease: the worker that gets the message takes the batch over.
    Batch.objects.filter(pk=batch.pk).update(expires_at=DatabaseNow(), tries=0)

    def send() -> None:
        try:
            publish([message_to_plan_on(batch)])
        except BrokerUnavailable as error:
            logger.warning("%s: %s waits for upkeep: %s", runner.label, batch, error)

    transaction.on_commit(send, using=settings.DATABASE, robust=True)
    return batch


def retry_runs(
    found: Iterable[Sequence[Run]], *, requested_by: str = "", asked: dict[str, Any] | None = None
) -> Retried:
    """Retry the failed runs without attempts left, and those left alone, among those found.

    Each runner gets one batch or more. Runs of a version or configuration that their runner no
    longer has are skipped. Workers check again whether those who `asked` may retry runs.
    """
    keys: dict[_Alike, list[Any]] = defaultdict(list)
    outdated: list[int] = []
    for runs in found:
        _sort_retryable(runs, keys, outdated)
    begun: list[Batch] = []
    left: dict[str, AutorunError] = {}
    numbers = {True: 0, False: 0}
    for alike, of_runner in keys.items():
        for first in range(0, len(of_runner), KEYS_IN_SCOPE):
            some = of_runner[first : first + KEYS_IN_SCOPE]
            # Such a run counts as done, so only force runs its row again.
            scope = Scope(
                pks=tuple(some),
                only=None if alike.is_ignored else "failed",
                force=alike.is_ignored,
                beyond_base=alike.is_beyond_base,
                asked=asked,
            )
            try:
                runner = registry.get(alike.label)
                begun.append(request_backfill(runner, scope, requested_by=requested_by))
            except AutorunError as error:
                left[alike.label] = error
            else:
                numbers[alike.is_ignored] += len(some)
    return Retried(begun, sum(numbers.values()), numbers[True], outdated, left)


class _Alike(NamedTuple):
    """The runs that batches of one kind retry."""

    label: str
    is_ignored: bool
    is_beyond_base: bool


def _sort_retryable(
    runs: Sequence[Run], keys: dict[_Alike, list[Any]], outdated: list[int]
) -> None:
    """Add the rows of the runs that can be retried to `keys`, or the run to those `outdated`."""
    runners = _runners_of(runs)
    beyond = _chunks_of(runs).filter(batch__is_beyond_base=True)
    beyond_base = set(beyond.values_list("pk", flat=True))
    finished = Run.objects.current().filter(pk__in=[run.pk for run in runs], status__in=RETRYABLE)
    for run in finished.defer("outputs"):
        runner = runners.get((run.node_id, run.chunk_id))
        if runner is None:
            outdated.append(run.pk)
        else:
            is_ignored = run.status != Run.Status.FAILED
            alike = _Alike(runner.label, is_ignored, run.chunk_id in beyond_base)
            keys[alike].append(key_kind(runner.get_model()).of(run))


def retry_matching(
    chosen: RunFilter,
    *,
    requested_by: str = "",
    asked: dict[str, Any] | None = None,
    narrowing: Callable[[Runner, RunFilter], Matching | None] = lambda _runner, _chosen: None,
) -> Retried:
    """Leave it to workers to find the failed runs that match, however many, and retry them.

    There is one batch for each runner that may have some; its runs are not counted. Runs of a
    version or configuration that their runner no longer has are skipped. If `narrowing` returns the
    runs that the caller may retry, those are retried at once.
    """
    begun: list[Batch] = []
    left: dict[str, AutorunError] = {}
    for runner in registry.runners():
        of_runner = replace(chosen, runner=runner.label, state="failed")
        if chosen.runner not in ("", runner.label) or not any(of_runner.each()):
            continue
        found = narrowing(runner, of_runner)
        try:
            if found is None and database_of(runner) != settings.DATABASE:
                found = of_runner.each()  # not to be joined with runs
            if found is None:
                scope = Scope(
                    only="failed", source=_source_of(of_runner, asked_for=chosen), asked=asked
                )
                begun.append(request_backfill(runner, scope, requested_by=requested_by))
            else:
                retried = retry_runs(found, requested_by=requested_by, asked=asked)
                begun += retried.batches
                left |= retried.left
        except AutorunError as error:
            left[runner.label] = error
    return Retried(begun, left=left)


def _source_of(chosen: RunFilter, *, asked_for: RunFilter) -> dict[str, Any]:
    """The source of a scope that finds these failed runs of a runner in any process."""
    # The names alone: a key or an exception may contain the data of a row.
    narrowed = ", ".join(asked_for.written()) or "nothing"
    return {
        "kind": KIND,
        "words": f"of failed runs, filtered by {narrowed}",
        "filter": chosen.written(),
        "at": timezone.now().isoformat(),
    }


def rows_of_runs(runner: Runner, source: Mapping[str, Any]) -> QuerySet[Any]:
    """The rows whose current run had failed and matched the filter at the time of the request."""
    chosen = replace(RunFilter.read(source["filter"]), at=dt.datetime.fromisoformat(source["at"]))
    kind = key_kind(runner.get_model())
    runs = chosen.runs().filter(node_id=node_of(runner).pk, **kind.lookup(OuterRef("_autorun_key")))
    # Rows beyond the base queryset as well: they were chosen explicitly when they ran.
    rows: QuerySet[Any] = every_row(runner).alias(_autorun_key=kind.expression())
    return rows.filter(Exists(runs))


SOURCES[KIND] = rows_of_runs


def ignore_runs(found: Iterable[Sequence[Run]]) -> int:
    """Ignore the failed runs without attempts left among those found, until their input changes."""
    return sum(_changed(_ignore, runs, _ignorable(runs)) for runs in found)


def cancel_runs(found: Iterable[Sequence[Run]]) -> int:
    """Cancel the unfinished runs among those found. Return how many.

    The worker of one that is running ends its body when it next extends its lease, and then it is
    cancelled. A row has its last result for the same input back, or is pending, so a later sweep
    plans it.
    """
    return sum(_changed(_cancel, runs, _cancellable(runs)) for runs in found)


def stop_running(chunks: ChunkQuerySet[Chunk]) -> int:
    """Have the workers of running chunks cancel all of their runs. Return how many runs."""
    ask = partial(repeated_on_conflict, partial(ask_running, chunks))
    expected = Run.objects.current().pending().filter(chunk__in=chunks.running())
    return once_committed(ask, meanwhile=expected.count)


def _changed(
    change: Callable[[Sequence[Run]], int], runs: Sequence[Run], expected: QuerySet[Run]
) -> int:
    """How many runs were changed; in the caller's transaction, how many are `expected` to be."""
    work = partial(repeated_on_conflict, partial(change, runs))
    return once_committed(work, meanwhile=expected.count)


def _ignorable(runs: Sequence[Run]) -> QuerySet[Run]:
    return Run.objects.current().failed().filter(pk__in=[run.pk for run in runs])


def _cancellable(runs: Sequence[Run]) -> QuerySet[Run]:
    pending = Run.objects.pending().filter(pk__in=[run.pk for run in runs])
    return pending.filter(chunk__state__in=UNFINISHED)


def _runners_of(runs: Sequence[Run]) -> dict[tuple[int, int], Runner]:
    """The runner of each run, by node and chunk, if it still belongs to that node."""
    labels = dict(_chunks_of(runs).values_list("pk", "runner"))
    nodes = {label: _node_id(label) for label in set(labels.values())}
    found = {}
    for run in runs:
        runner = registry.find(labels.get(run.chunk_id, ""))
        if runner is not None and nodes[runner.label] == run.node_id:
            found[run.node_id, run.chunk_id] = runner
    return found


def _node_id(label: str) -> int | None:
    try:
        return node_of(registry.get(label)).pk
    except AutorunError:
        return None


def _ignore(runs: Sequence[Run]) -> int:
    chunks = _chunks_of(runs).select_for_update().order_by("pk")
    failed = _ignorable(runs).filter(chunk_id__in=list(chunks.values_list("pk", flat=True)))
    counts = count_by_chunk(failed)
    number = failed.update(status=Run.Status.CANCELLED)
    for amount, chunk_ids in counts.items():
        Chunk.objects.filter(pk__in=chunk_ids).update(
            failed=F("failed") - amount, cancelled=F("cancelled") + amount
        )
    return number


def _cancel(runs: Sequence[Run]) -> int:
    chunks, run_ids = _chunks_of(runs), [run.pk for run in runs]
    number = cancel_unstarted(chunks, run_ids=run_ids) + ask_running(chunks, run_ids=run_ids)
    batch_ids = chunks.exclude(batch=None).values_list("batch_id")
    for (batch_id,) in list(batch_ids.distinct()):
        batches.finish_if_done(batch_id)
    return number


def _chunks_of(runs: Sequence[Run]) -> ChunkQuerySet[Chunk]:
    return Chunk.objects.filter(pk__in={run.chunk_id for run in runs})


def pause_runner(runner: Runner) -> bool:
    """Start no more runs of the runner's node; False if it was paused already.

    Runs in progress finish, and rows are still planned. Runners that share the node are paused too.
    """
    running = Node.objects.filter(pk=node_of(runner).pk, paused_at=None)
    return update_once_committed(running, paused_at=DatabaseNow(), paused_because="")


def resume_runner(runner: Runner) -> bool:
    """Resume the runner's node; False if it was not paused."""
    node_id = node_of(runner).pk
    paused = Node.objects.filter(pk=node_id).exclude(paused_at=None)

    def resume() -> bool:
        resumed = bool(paused.update(paused_at=None, paused_because=""))
        if resumed:
            release(node_id)
        return resumed

    return once_committed(resume, meanwhile=paused.exists)


def hold_runner(runner: Runner, *, by: str = "") -> bool:
    """Leave pending what sweeps and saves would plan; False if the runner's node is held already.

    Written and related rows and DEPENDS_ON plan nothing either; backfills, retries and `run()` do.
    """
    free = Node.objects.filter(pk=node_of(runner).pk, held_at=None)
    return update_once_committed(free, held_at=DatabaseNow(), held_by=by[:255])


def lift_hold(runner: Runner) -> bool:
    """Let sweeps and saves plan again; False if nothing was held.

    The next sweep finds what was left pending.
    """
    held = Node.objects.filter(pk=node_of(runner).pk).exclude(held_at=None)
    return update_once_committed(held, held_at=None, held_by="")


def change_all(change: Callable[[Runner], bool]) -> tuple[list[Runner], dict[str, AutorunError]]:
    """Apply `pause_runner` or `resume_runner` to all runners.

    Returns those that it changed, and the errors of those that it left as they were, by label.
    """
    changed, left = [], {}
    for runner in registry.runners():
        try:
            if change(runner):
                changed.append(runner)
        except AutorunError as error:
            left[runner.label] = error
    return changed, left


def cancel_runner(label: str, *, reason: str = "") -> int:
    """Cancel the runner's runs that have not started, as `batches.cancel_all` does.

    Return how many. The runner need not be registered.
    """
    unfinished = Batch.objects.unfinished().filter(runner=label)
    chunks = Chunk.objects.filter(runner=label)
    loose = chunks.exclude(batch__in=unfinished)
    return batches.cancel_all(unfinished, chunks, loose=loose, reason=reason)
