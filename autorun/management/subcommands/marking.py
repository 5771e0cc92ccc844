"""retry, adopt and ignore: mark failed or pending rows to run again, or not to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, ClassVar

from django.core.management.base import CommandError
from django.db.models import QuerySet

from autorun.control import interventions
from autorun.declare.base import Runner
from autorun.declare.hooks import as_plain
from autorun.declare.nodes import node_of
from autorun.management.subcommands import parsing
from autorun.management.subcommands.subcommand import OnRows, requested_by
from autorun.management.subcommands.watching import WATCH, require_watchable, watch
from autorun.models import Run
from autorun.observe.failures import classes_of, failed_runs, group_failures
from autorun.observe.listing import RunFilter
from autorun.observe.run_states import describe_batch
from autorun.planning.on_demand import adopt, backfill_now, ignore
from autorun.planning.pending import pending
from autorun.planning.same_input import count_same_input
from autorun.planning.scope import Scope
from autorun.state.counts import progress
from autorun.state.keys import key_kind
from autorun.state.words import counted

Rows = QuerySet[Any] | None

CONFIRMED = (parsing.flag("--dry", help="only count"), parsing.NO_INPUT, parsing.FORMAT)


@dataclass(frozen=True)
class _Found:
    """`number` rows or runs, called `noun`; `mark` marks them and returns how many it marked."""

    number: int
    noun: str
    mark: Callable[[], int]
    hint: str = ""


class _Marking(OnRows):
    question: ClassVar[str]
    outcome: ClassVar[str]
    mark_pending: ClassVar[staticmethod[[Runner, Rows], int]]

    def handle_rows(self, runner: Runner, scope: Scope, **options: Any) -> None:
        found = self.find(runner, scope.queryset(runner), options)
        things = counted(found.number, found.noun)
        if options["dry"] or not found.number:
            self._say(runner, f": {things}.", rows=found.number, is_dry=options["dry"])
            if found.hint:
                self.terminal.hint(found.hint)
            return
        if options["interactive"] and not self._is_confirmed(runner, things):
            self._say(runner, ": nothing was changed.", rows=0)
            return
        number = found.mark()
        marked = counted(number, found.noun.removeprefix("pending "))
        self._say(runner, f": {marked} {self.outcome}.", rows=number)

    def find(self, runner: Runner, queryset: Rows, options: dict[str, Any]) -> _Found:
        """Find what to mark among the rows of `queryset`, or of all rows."""
        number = pending(runner, queryset).count()
        return _Found(number, "pending row", partial(self.mark_pending, runner, queryset))

    def _is_confirmed(self, runner: Runner, things: str) -> bool:
        action = self.question.format(things=things)
        if not self.terminal.can_ask:
            raise CommandError(
                f"{runner.label}: to {action} needs confirmation, and standard input is not a "
                "terminal. Add --no-input to skip the question, or --dry to only count."
            )
        return self.terminal.confirm(f"{runner.label}: {action}?")

    def _say(self, runner: Runner, text: str, *, rows: int, is_dry: bool = False) -> None:
        self.terminal.json({"runner": runner.label, "rows": rows, "dry": is_dry})
        self.terminal.say((runner.label, "bold"), text)


class Adopt(_Marking):
    """Record pending rows as up to date without running them."""

    question = "record {things} as up to date without running them"
    outcome = "recorded as up to date"
    mark_pending = staticmethod(adopt)
    arguments = (
        parsing.FILTER,
        parsing.flag("--same-input", help="only rows unchanged by an earlier INPUT_FIELDS"),
        *CONFIRMED,
    )

    def find(self, runner: Runner, queryset: Rows, options: dict[str, Any]) -> _Found:
        if not options["same_input"]:
            return super().find(runner, queryset, options)
        mark = partial(adopt, runner, queryset, same_input=True)
        return _Found(count_same_input(runner, queryset), "pending row", mark)


class Ignore(_Marking):
    """Ignore pending rows, or failed rows with no attempts left, until their input changes.

    Failed rows include those of the runner's earlier versions.
    """

    question = "ignore {things} until the input changes"
    outcome = "ignored until the input changes"
    mark_pending = staticmethod(ignore)
    arguments = (
        parsing.FILTER,
        parsing.flag("--failed", help="failed rows with no attempts left instead of pending rows"),
        *parsing.FAILURES,
        *CONFIRMED,
    )

    def find(self, runner: Runner, queryset: Rows, options: dict[str, Any]) -> _Found:
        if not (options["failed"] or _has_choice(options)):
            found = super().find(runner, queryset, options)
            if found.number or not progress(node_of(runner)).failed:
                return found
            hint = f"Ignore failed rows: manage.py autorun ignore {runner.label} --failed"
            return replace(found, hint=hint)
        find_runs = partial(
            _chosen_runs, runner, options, queryset=queryset, of_earlier_versions=True
        )
        number = sum(map(len, find_runs()))
        hint = "" if number else _hint_for_none(runner, options["cause"])
        return _Found(number, "failed run", lambda: interventions.ignore_runs(find_runs()), hint)


class Retry(OnRows):
    """Retry failed runs that have no attempts left: all, or those of a cause or a time span.

    With --cause or --within, a worker plans the batch.
    """

    arguments = (*parsing.FAILURES, *WATCH, parsing.FORMAT)

    def handle_rows(self, runner: Runner, scope: Scope, **options: Any) -> None:
        require_watchable(options)
        queryset = scope.queryset(runner)
        if _has_choice(options):
            chosen = _chosen_runs(runner, options, queryset=queryset)
            retried = interventions.retry_runs(chosen, requested_by=requested_by())
            for error in retried.left.values():
                raise error
            batches = list(retried.batches)
            self.terminal.json([describe_batch(batch) for batch in batches])
            self._show_queued(runner, retried, options["cause"])
        else:
            batch = backfill_now(
                runner, Scope(only="failed"), queryset, requested_by=requested_by()
            )
            batches = [batch]
            self.terminal.json(describe_batch(batch))
            runs = counted(batch.planned, "failed run")
            self.terminal.say((runner.label, "bold"), f": batch {batch.pk}, {runs} to retry.")
        if options["watch"]:
            for batch in batches:
                watch(batch, self.terminal, check=options["check"])

    def _show_queued(
        self, runner: Runner, retried: interventions.Retried, exception_class: str | None
    ) -> None:
        text = f"{counted(retried.runs, 'failed run')} to retry"
        if retried.batches:
            numbers = ", ".join(str(batch.pk) for batch in retried.batches)
            of_batch = "batch" if len(retried.batches) == 1 else "batches"
            text = f"{of_batch} {numbers}, {text}; a worker plans them"
        self.terminal.say((runner.label, "bold"), f": {text}.")
        if retried.outdated:
            skipped = counted(len(retried.outdated), "failed run")
            self.terminal.say((f"Skipped {skipped}: no runner uses the version now.", "yellow"))
        if not retried.batches:
            self.terminal.hint(_hint_for_none(runner, exception_class))


def _has_choice(options: dict[str, Any]) -> bool:
    return options["cause"] is not None or options["within"] is not None


def _chosen_runs(
    runner: Runner, options: dict[str, Any], *, queryset: Rows, of_earlier_versions: bool = False
) -> Iterator[list[Run]]:
    """Failed runs that match the options, on rows of `queryset` if it is given, in lists."""
    cause, within = options["cause"], options["within"]
    groups = [] if cause is None else group_failures(runner)
    found: Iterator[list[Run]]
    if keys := [each.key for each in groups if each.cause == cause]:
        if within is not None:
            raise CommandError("With --within, --cause names an exception, not the key of a cause.")
        of_groups = (RunFilter(runner=runner.label, state="failed", group=key) for key in keys)
        found = chain.from_iterable(each.each() for each in of_groups)
    else:
        found = failed_runs(
            runner, exception_class=cause, within=within, of_earlier_versions=of_earlier_versions
        )
    if queryset is None:
        yield from found
        return
    rows = as_plain(runner, queryset)
    kind = key_kind(runner.get_model())
    for runs in found:
        by_pk = {kind.to_pk(kind.of(run)): run for run in runs}
        present = set(rows.filter(pk__in=list(by_pk)).values_list("pk", flat=True))
        yield [run for pk, run in by_pk.items() if pk in present]


def _hint_for_none(runner: Runner, exception_class: str | None) -> str:
    """The hint to print if no failed run matched: the exceptions that were raised."""
    raised = classes_of(runner)
    if exception_class is None or exception_class in raised or not raised:
        return f"Show failed runs: manage.py autorun failures {runner.label}"
    return f"No run failed with {exception_class}. Exceptions raised: {', '.join(raised)}."
