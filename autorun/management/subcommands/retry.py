from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from autorun.control import interventions
from autorun.declare.runner import Runner
from autorun.management.subcommands.batch_list import as_json
from autorun.management.subcommands.choosing import (
    add_choice,
    chosen_runs,
    is_choice,
    what_else_failed,
)
from autorun.management.subcommands.subcommand import (
    OnRows,
    add_format,
    add_keys,
    add_runner,
    requested_by,
    rows_of,
)
from autorun.management.subcommands.terminal import plural
from autorun.management.subcommands.watching import add_watch, require_watchable, watch
from autorun.planning.looks import backfill_now
from autorun.planning.scope import Scope

if TYPE_CHECKING:
    from autorun.control.interventions import Retried


class Retry(OnRows):
    """Run again what has failed for good: all of it, or what one exception or one time is about.

    With --exception and --within a worker plans it, as it does for the pages of the admin.
    """

    name = "retry"
    summary = "run again what has failed for good"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_runner(parser)
        add_keys(parser)
        add_choice(parser)
        add_watch(parser)
        add_format(parser)

    def handle_rows(self, runner: Runner, **options: Any) -> None:
        require_watchable(options)
        if is_choice(options):
            self._retry_chosen(runner, options)
            return
        batch = backfill_now(
            runner,
            Scope(only="failed"),
            rows_of(runner, options["keys"]),
            requested_by=requested_by(),
        )
        if options["format"] == "json":
            self.terminal.json(as_json(batch))
            return
        self.terminal.say(
            (runner.label, "bold"),
            f": batch {batch.pk}, {plural(batch.planned, 'failed run')} to try again.",
        )
        if options["watch"]:
            watch(batch, self.terminal, check=options["check"])

    def _retry_chosen(self, runner: Runner, options: dict[str, Any]) -> None:
        chosen = chosen_runs(runner, options, queryset=rows_of(runner, options["keys"]))
        retried = interventions.retry(chosen, requested_by=requested_by())
        if options["format"] == "json":
            self.terminal.json([as_json(batch) for batch in retried.batches])
            return
        self._say_retried(runner.label, retried)
        if not retried.batches:
            self.terminal.hint(what_else_failed(runner, options["exception"]))
        if options["watch"]:
            for batch in retried.batches:
                watch(batch, self.terminal, check=options["check"])

    def _say_retried(self, label: str, retried: Retried) -> None:
        numbers = ", ".join(str(batch.pk) for batch in retried.batches)
        of_batch = "batch" if len(retried.batches) == 1 else "batches"
        self.terminal.say(
            (label, "bold"),
            f": {of_batch} {numbers}" if numbers else "",
            ", " if numbers else ": ",
            f"{plural(retried.runs, 'failed run')} to try again",
            "; a worker plans them." if numbers else ".",
        )
        if retried.outdated:
            runs = plural(len(retried.outdated), "failed run")
            self.terminal.say((f"{runs} of a runner that is gone: left as before.", "yellow"))
