from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandError

from autorun import registry
from autorun.commands.subcommand import Subcommand, add_queue, chosen_runners
from autorun.commands.terminal import plural
from autorun.conf import settings
from autorun.publishing import Message, publish
from autorun.triggers.backfill import sweep_counting_failed


class Sweep(Subcommand):
    """Plan and start whatever is pending, as beat does on the runner's schedule."""

    name = "sweep"
    summary = "plan and start whatever is pending"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("runners", metavar="RUNNER", nargs="*", help="labels")
        parser.add_argument("--all", action="store_true", dest="everything", help="every runner")
        add_queue(parser)

    def handle(self, **options: Any) -> None:
        if not options["runners"] and not options["everything"]:
            known = ", ".join(runner.label for runner in registry.runners()) or "none"
            raise CommandError(f"Which runner? Name one, or --all. Registered: {known}.")
        for runner in chosen_runners(options["runners"]):
            if options["queue"]:
                publish([Message("autorun.sweep", (runner.label,), queue=settings.QUEUE)])
                self.terminal.say((runner.label, "bold"), ": a worker will sweep it.")
                continue
            swept = sweep_counting_failed(runner)
            if swept is None:
                self.terminal.say(
                    (runner.label, "bold"), ": another sweep of it is at work; nothing to do."
                )
                continue
            batch, failed = swept.batch, swept.failed
            self.terminal.say(
                (runner.label, "bold"),
                f": {plural(batch.candidates, 'candidate')}, "
                f"{batch.existing - failed:,} up to date, ",
                (f"{failed:,} failed for good, ", "red") if failed else "",
                f"{plural(batch.planned, 'run')} planned.",
            )
            if failed:
                self.terminal.hint(f"Run these again: manage.py autorun retry {runner.label}")
