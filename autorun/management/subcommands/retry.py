from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db.models import QuerySet

from autorun.control import interventions
from autorun.declare.hooks import as_plain
from autorun.declare.runner import Runner
from autorun.management.subcommands.batch_list import as_json
from autorun.management.subcommands.parsing import FAILURES, FORMAT, KEYS, RUNNER
from autorun.management.subcommands.subcommand import OnRows, requested_by
from autorun.management.subcommands.watching import WATCH, require_watchable, watch
from autorun.models import Run
from autorun.observe.failures import classes_of, failed_runs
from autorun.planning.looks import backfill_now
from autorun.planning.scope import Scope
from autorun.state.keys import key_kind
from autorun.state.words import counted


class Retry(OnRows):
    """Retry failed runs that have no attempts left: all, or limited to an exception or a time span.

    With --exception or --within a worker plans the batch, as it does for the admin's pages.
    """

    summary = "retry failed runs that have no attempts left"
    arguments = (RUNNER, KEYS, *FAILURES, *WATCH, FORMAT)

    def handle_rows(self, runner: Runner, **options: Any) -> None:
        require_watchable(options)
        queryset = Scope(pks=tuple(options["keys"]) or None).queryset(runner)
        if has_choice(options):
            chosen = chosen_runs(runner, options, queryset=queryset)
            retried = interventions.retry_runs(chosen, requested_by=requested_by())
            batches = list(retried.batches)
            self.terminal.json([as_json(batch) for batch in batches])
            self._show_queued(runner, retried, options["exception"])
        else:
            batch = backfill_now(
                runner, Scope(only="failed"), queryset, requested_by=requested_by()
            )
            batches = [batch]
            self.terminal.json(as_json(batch))
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
            self.terminal.hint(hint_for_none(runner, exception_class))


def has_choice(options: dict[str, Any]) -> bool:
    return options["exception"] is not None or options["within"] is not None


def chosen_runs(
    runner: Runner, options: dict[str, Any], *, queryset: QuerySet[Any] | None
) -> Iterator[list[Run]]:
    """Failed runs that match the options, on rows of `queryset` if it is given, in lists."""
    found = failed_runs(runner, exception_class=options["exception"], within=options["within"])
    if queryset is None:
        yield from found
        return
    rows = as_plain(runner, queryset)
    kind = key_kind(runner.get_model())
    for runs in found:
        by_pk = {kind.to_pk(kind.of(run)): run for run in runs}
        present = set(rows.filter(pk__in=list(by_pk)).values_list("pk", flat=True))
        yield [run for pk, run in by_pk.items() if pk in present]


def hint_for_none(runner: Runner, exception_class: str | None) -> str:
    """The hint to print if no failed run matched: the exceptions that were raised."""
    raised = classes_of(runner)
    if exception_class is None or exception_class in raised or not raised:
        return f"Show failed runs: manage.py autorun failures {runner.label}"
    return f"No run failed with {exception_class}. Exceptions raised: {', '.join(raised)}."
