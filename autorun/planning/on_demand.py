"""Planning on demand: run(), backfills, sweeps, and marking rows as adopted or ignored."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from django.db.models import QuerySet

from autorun.declare import console, hooks, registry
from autorun.declare.base import Runner
from autorun.declare.nodes import configuration_of, find_node, is_tried, node_of, nodes_of
from autorun.dispatch.publishing import executed_afterwards
from autorun.exceptions import AutorunError, ConfigurationError, NotRegistered, RowsGone
from autorun.models import Batch, Chunk, Run
from autorun.planning import batches, written
from autorun.planning.batches import Outcome
from autorun.planning.passes import Pass
from autorun.planning.planner import Planner
from autorun.planning.rows import eligible, unnameable
from autorun.planning.same_input import adopt_same_input
from autorun.planning.samples import top_up
from autorun.planning.scope import Scope
from autorun.planning.windows import Window, Windows, in_halves, last_key
from autorun.state.logs import get_logger
from autorun.state.transactions import once_committed

logger = get_logger(__name__)
# The last line: the analysis, the number of runs and the model.
STARTED = "🚀Successfully started %s execution over %d %s instances🚀"
WOULD_START = "Would start %s execution over %d %s instances."
RECORDED = "Recorded %s execution over %d %s instances; it starts when a broker answers."


@executed_afterwards()  # executed runs log lines of their own
def run_now(
    runner: Runner,
    queryset: QuerySet[Any] | None,
    *,
    max_total: int | None,
    dry: bool,
    log_level: int,
) -> Batch:
    """Plan and release pending rows with a transcript; the batch, unsaved if `dry`."""
    _require_whole_number("max_total", max_total, least=0)
    transcript = Transcript(runner, level=log_level)
    require_valid(runner)
    rows = transcript.begin(queryset)
    pass_ = Pass(runner, rows, is_given=queryset is not None, counts_undone=transcript.is_heard)
    if dry:
        batch = pass_.counted(limit=max_total)
    else:
        scope = Scope(given=queryset is not None)
        batch = pass_.executed(begin(runner, Batch.Trigger.CODE, scope, limit=max_total))
        _try_out(runner, batch, scope, queryset)
    last_line = WOULD_START if dry else RECORDED if pass_.was_refused else STARTED
    transcript.end(pass_.outcome, last_line, is_limited=max_total is not None)
    return batch


def backfill_now(
    runner: Runner,
    scope: Scope,
    queryset: QuerySet[Any] | None = None,
    *,
    limit: int | None = None,
    window: int | None = None,
    requested_by: str = "",
    trigger: Batch.Trigger = Batch.Trigger.BACKFILL,
) -> Batch:
    """Plan and release the rows of a scope, or of `queryset`, with at most `window` runs in flight.

    Raises ValueError for an unknown `only`, NotRegistered for an unknown filter.
    """
    _require_whole_number("limit", limit, least=1)
    _require_whole_number("window", window, least=1)
    require_valid(runner)
    selection = scope.selection
    if queryset is None:
        queryset = scope.queryset(runner)
    else:
        scope = replace(scope, given=True)
    rows = eligible(runner, queryset, log_level=logging.DEBUG)
    batch = begin(runner, trigger, scope, limit=limit, window=window, requested_by=requested_by)
    pass_ = Pass(runner, rows, is_given=queryset is not None, selection=selection)
    batch = pass_.executed(batch)
    _try_out(runner, batch, scope, queryset)
    return batch


@dataclass(frozen=True)
class Swept:
    """The batch of a sweep; of the rows it left alone, how many have failed or are in progress."""

    batch: Batch
    failed: int
    under_way: int


def sweep_now(runner: Runner) -> Batch | None:
    """Plan and release all pending rows. None if the runner is held or another sweep is running."""
    swept = sweep_counting_undone(runner, counts_undone=False)
    return None if swept is None else swept.batch


def sweep_counting_undone(runner: Runner, *, counts_undone: bool = True) -> Swept | None:
    """`sweep_now`, and a count of the rows neither planned nor done, which reads every run.

    None if the runner's sweeps are held, or if another sweep is in progress.
    """
    require_valid(runner)
    if (held_at := find_node(runner).held_at) is not None:
        logger.info("%s: not swept, because it has been held since %s.", runner.label, held_at)
        return None
    rows = eligible(runner, None, log_level=logging.DEBUG)
    batch = batches.begin_alone(
        runner,
        Batch.Trigger.SWEEP,
        limit=runner.MAX_PER_SWEEP,
        upper_bound=last_key(runner),
        description=str(Scope()),
    )
    if batch is None:
        return None
    if keys := unnameable(runner):
        words = "%s: rows are skipped because their keys cannot be stored or read, such as %s."
        logger.warning(words, runner.label, keys)
    pass_ = Pass(runner, rows, counts_undone=counts_undone)
    pass_.executed(batch)
    _try_out(runner, batch, Scope(), None)
    return Swept(batch, pass_.outcome.failed, pass_.outcome.under_way)


def go_on(batch: Batch) -> Batch:
    """Plan the rest of a batch that another process started, after `take_over`."""
    # It fails only after several processes (old workers during a rollout) have lacked its runner.
    try:
        scope = Scope.read(batch.scope)
        if scope.given:
            batches.fail(batch, "The process that planned it ended; only it had the queryset.")
            return batch
        runner = registry.get(batch.runner)
        if is_tried(runner, batch.node_id):
            runner = registry.trial_of(runner) or runner
        if node_of(runner).pk != batch.node_id:
            raise NotRegistered(
                f"{runner.label} has another version or configuration here than {batch.node}, "
                "which the batch is about. Request it again for the version that is deployed."
            )
        written.retire_deleted(runner, batch)
        queryset = scope.queryset(runner)
        rows = eligible(runner, queryset, log_level=logging.DEBUG)
        among = queryset if batch.trigger == Batch.Trigger.WRITE else None
        is_given = queryset is not None
        pass_ = Pass(runner, rows, is_given=is_given, selection=scope.selection, among=among)
    except NotRegistered as missing:
        if not isinstance(missing, RowsGone) and batches.put_off(batch):
            logger.info("%s: %s is left to another worker: %s", batch.runner, batch, missing)
        else:
            batches.fail(batch, str(missing))
        return batch
    except Exception as error:
        batches.break_off(batch, error)
        raise
    batch = pass_.executed(batch)
    if Batch.objects.filter(pk=batch.pk, token=batch.token).exclude(planned_at=None).exists():
        _try_out(runner, batch, scope, queryset, among=among)
    written.drop_rows(batch)
    return batch


def _try_out(
    runner: Runner,
    batch: Batch,
    scope: Scope,
    queryset: QuerySet[Any] | None,
    *,
    among: QuerySet[Any] | None = None,
) -> None:
    """Plan the sample of the runner's candidate version, in a batch of its own, like `batch`."""
    trial = registry.trial_of(runner)
    is_retry = scope.source is not None and batch.trigger == Batch.Trigger.BACKFILL
    if trial is None or is_retry:
        return
    try:
        require_valid(trial)
        top_up(trial)
        rows = eligible(trial, queryset, log_level=logging.DEBUG)
        like = {name: getattr(batch, name) for name in ("limit", "window", "requested_by")}
        own = begin(trial, Batch.Trigger(batch.trigger), scope, **like)
        is_given = queryset is not None
        Pass(trial, rows, is_given=is_given, selection=scope.selection, among=among).executed(own)
    except AutorunError:  # the next sweep tries again
        logger.exception("%s: its candidate version was not planned.", runner.label)


def adopt(runner: Runner, queryset: QuerySet[Any] | None, *, same_input: bool = False) -> int:
    """Record pending rows as succeeded without running them.

    Return how many. They keep the outputs of their last success, even of an earlier version or
    configuration. With `same_input`, keep only successes whose input has not changed by an earlier
    definition.
    """
    if same_input:
        return adopt_same_input(runner, queryset)
    outputs_from = nodes_of(runner)
    return _recorded(runner, queryset, Run.Status.SUCCEEDED, outputs_from=outputs_from)


def ignore(runner: Runner, queryset: QuerySet[Any] | None) -> int:
    """Ignore pending rows until their input changes. Return how many."""
    return _recorded(runner, queryset, Run.Status.CANCELLED)


def begin(runner: Runner, trigger: Batch.Trigger, scope: Scope, **limits: Any) -> Batch:
    """Create a batch of that scope, with its limits, that this process plans."""
    return batches.begin(
        runner,
        trigger,
        scope=scope.written(),
        description=str(scope)[:255],
        upper_bound="" if scope.given else last_key(runner),
        **limits,
    )


def require_valid(runner: Runner) -> None:
    """Raise the ConfigurationError that every run would otherwise fail with."""
    problems = runner.get_analysis().check(configuration_of(runner), *runner.receivers)
    if problems:
        raise ConfigurationError(
            f"{runner.label}: " + " ".join(f"{each.message} {each.hint}" for each in problems)
        )


def _require_whole_number(name: str, value: Any, *, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}: it must be a number from {least} on, or None.")


def _recorded(
    runner: Runner, queryset: QuerySet[Any] | None, status: Run.Status, **options: Any
) -> int:
    rows = eligible(runner, queryset, log_level=logging.DEBUG)
    node_id = node_of(runner).pk
    priority = Chunk.Priority.BACKFILL
    planner = Planner(runner, node_id=node_id, priority=priority, status=status, **options)

    def recorded(of_window: Callable[[Window], Outcome]) -> int:
        number = 0

        def add(window: Window) -> None:
            nonlocal number
            number += of_window(window).planned

        for window in Windows(runner, rows, node_id):
            in_halves(runner, rows, window, add)
        return number

    return once_committed(
        partial(recorded, planner.plan), meanwhile=partial(recorded, planner.count)
    )


class Transcript:
    def __init__(self, runner: Runner, *, level: int) -> None:
        self.runner = runner
        self.title = str(runner.get_analysis())
        self.model_name = runner.get_model().__name__
        self.level = level
        #: If not, nothing need be counted for it.
        self.is_heard = console.is_heard(level)

    def begin(self, queryset: QuerySet[Any] | None) -> QuerySet[Any]:
        """The eligible rows of `queryset`, or of the runner's base queryset."""
        self._say("%s: Batch Execution", self.title)
        if queryset is not None:
            self._say_apart("🔎 Input queryset validation:")
        else:
            self._say_apart("🔎 Default execution queryset generation:")
            self._say("Querying %s instances...", self.model_name)
            queryset = hooks.base_queryset(self.runner)
            if self.is_heard:
                self._say("%d instances found.", queryset.count())
        rows = eligible(self.runner, queryset, log_level=self.level)
        self._say_apart("⚖ Checking execution status for the input queryset:")
        self._say("Filtering existing runs...")
        return rows

    def end(self, outcome: Outcome, last_line: str, *, is_limited: bool) -> None:
        pending = outcome.candidates - outcome.existing - outcome.unprepared
        self._say("%d existing runs found.", outcome.existing)
        if outcome.failed:
            self._say("%d of them failed and will not be retried.", outcome.failed)
        self._say("%d instances pending execution.", pending)
        if not outcome.candidates:
            self._say_apart("No %s instances to process.", self.model_name)
            return
        if not pending and not outcome.unprepared:
            self._nothing_pending(outcome)
            return
        self._say_apart("🔀 Generating input specifications:")
        if outcome.unprepared:
            self._say("The input of %d instances could not be prepared.", outcome.unprepared)
        self._say("%d input specifications prepared.", pending)
        if is_limited and outcome.planned < pending:
            self._say("%d of them in this batch, as its limit says.", outcome.planned)
        self._say_apart(last_line, self.title, outcome.planned, self.model_name)

    def _nothing_pending(self, outcome: Outcome) -> None:
        number = outcome.candidates
        if outcome.under_way == number:
            line = "Nothing pending: all %d %s instances are in progress."
            self._say_apart(line, number, self.model_name)
            return
        up_to_date = number - outcome.failed - outcome.under_way
        share = "all" if up_to_date == number else f"{up_to_date} of"
        line = f"Nothing pending: {share} %d %s instances are up to date"
        if outcome.under_way:
            line += f", {outcome.under_way} in progress"
        if outcome.failed:
            line += f", {outcome.failed} failed: retry() runs these"
        self._say_apart(f"{line}.", number, self.model_name)

    def _say(self, line: str, *args: Any) -> None:
        console.say(line, *args, level=self.level)

    def _say_apart(self, line: str, *args: Any) -> None:
        self._say("")
        self._say(line, *args)
