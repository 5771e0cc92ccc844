from __future__ import annotations

from typing import Any

from autorun.control import interventions
from autorun.declare.runner import Runner
from autorun.management.subcommands.batch_list import as_json
from autorun.management.subcommands.choosing import chosen_runs, has_choice, hint_for_none
from autorun.management.subcommands.parsing import FAILURES, FORMAT, KEYS, RUNNER
from autorun.management.subcommands.subcommand import OnRows, requested_by, rows_of
from autorun.management.subcommands.watching import WATCH, require_watchable, watch
from autorun.planning.looks import backfill_now
from autorun.planning.scope import Scope
from autorun.state.words import counted


class Retry(OnRows):
    """Retry failed runs that have no attempts left: all, or limited to an exception or a time span.

    With --exception or --within a worker plans the batch, as it does for the admin's pages.
    """

    name = "retry"
    summary = "retry failed runs that have no attempts left"
    arguments = (RUNNER, KEYS, *FAILURES, *WATCH, FORMAT)

    def handle_rows(self, runner: Runner, **options: Any) -> None:
        require_watchable(options)
        queryset = rows_of(runner, options["keys"])
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
        runs = counted(retried.runs, "failed run")
        if retried.batches:
            numbers = ", ".join(str(batch.pk) for batch in retried.batches)
            of_batch = "batch" if len(retried.batches) == 1 else "batches"
            text = f": {of_batch} {numbers}, {runs} to retry; a worker plans them."
        else:
            text = f": {runs} to retry."
        self.terminal.say((runner.label, "bold"), text)
        if retried.outdated:
            skipped = counted(len(retried.outdated), "failed run")
            self.terminal.say((f"Skipped {skipped}: no runner uses the version now.", "yellow"))
        if not retried.batches:
            self.terminal.hint(hint_for_none(runner, exception_class))
