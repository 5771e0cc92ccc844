from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from autorun.conf import settings
from autorun.declare import registry
from autorun.dispatch.publishing import Message, publish
from autorun.management.subcommands.batch_list import as_json
from autorun.management.subcommands.parsing import FORMAT, QUEUE, argument, flag
from autorun.management.subcommands.subcommand import Subcommand, chosen_runners
from autorun.planning.looks import Swept, sweep_counting_undone
from autorun.state.words import counted


class Sweep(Subcommand):
    """Plan and start all pending rows, as beat does on the runner's schedule."""

    summary = "plan and start all pending rows"
    arguments = (
        argument("runners", metavar="RUNNER", nargs="*", help="runner labels"),
        flag("--all", dest="everything", help="every runner"),
        QUEUE,
        FORMAT,
    )

    def handle(self, **options: Any) -> None:
        if not options["runners"] and not options["everything"]:
            known = ", ".join(runner.label for runner in registry.runners()) or "none"
            raise CommandError(f"Which runner? Name one, or --all. Registered: {known}.")
        if options["runners"] and options["everything"]:
            raise CommandError("Name runners or give --all, not both.")
        is_queued = options["queue"]
        done = []
        for runner in chosen_runners(options["runners"]):
            swept = None if is_queued else sweep_counting_undone(runner)
            if is_queued:
                publish([Message("autorun.sweep", (runner.label,), queue=settings.QUEUE)])
            done.append(
                {
                    "runner": runner.label,
                    "queued": is_queued,
                    "failed_for_good": swept and swept.failed,
                    "under_way": swept and swept.under_way,
                    "batch": swept and as_json(swept.batch),
                }
            )
            self._show(runner.label, swept, is_queued=is_queued)
        self.terminal.json(done)

    def _show(self, label: str, swept: Swept | None, *, is_queued: bool) -> None:
        if swept is None:
            fate = "sweep queued." if is_queued else "skipped: another sweep of it is running."
            self.terminal.say((label, "bold"), f": {fate}")
            return
        batch, failed, under_way = swept.batch, swept.failed, swept.under_way
        done = batch.existing - failed - under_way
        self.terminal.say(
            (label, "bold"),
            f": {counted(batch.candidates, 'candidate')}, {done:,} up to date, ",
            f"{under_way:,} in progress, " if under_way else "",
            (f"{failed:,} failed, ", "red") if failed else "",
            f"{counted(batch.planned, 'run')} planned.",
        )
        if failed:
            self.terminal.hint(f"Retry failed runs: manage.py autorun retry {label}")
