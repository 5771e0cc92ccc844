from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandError

from autorun.conf import settings
from autorun.declare import registry
from autorun.dispatch.publishing import Message, publish
from autorun.management.subcommands.batch_list import as_json
from autorun.management.subcommands.subcommand import (
    Subcommand,
    add_format,
    add_queue,
    chosen_runners,
)
from autorun.management.subcommands.terminal import plural
from autorun.planning.looks import Swept, sweep_counting_undone

AT_WORK = "another sweep of it is at work"


class Sweep(Subcommand):
    """Plan and start whatever is pending, as beat does on the runner's schedule."""

    name = "sweep"
    summary = "plan and start whatever is pending"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("runners", metavar="RUNNER", nargs="*", help="labels")
        parser.add_argument("--all", action="store_true", dest="everything", help="every runner")
        add_queue(parser)
        add_format(parser)

    def handle(self, **options: Any) -> None:
        if not options["runners"] and not options["everything"]:
            known = ", ".join(runner.label for runner in registry.runners()) or "none"
            raise CommandError(f"Which runner? Name one, or --all. Registered: {known}.")
        if options["runners"] and options["everything"]:
            raise CommandError("Name runners, or give --all: not both.")
        is_json = options["format"] == "json"
        done = []
        for runner in chosen_runners(options["runners"]):
            swept = None
            if options["queue"]:
                publish([Message("autorun.sweep", (runner.label,), queue=settings.QUEUE)])
            else:
                swept = sweep_counting_undone(runner)
            if is_json:
                done.append(_as_json(runner.label, swept, is_queued=options["queue"]))
            else:
                self._show(runner.label, swept, is_queued=options["queue"])
        if is_json:
            self.terminal.json(done)

    def _show(self, label: str, swept: Swept | None, *, is_queued: bool) -> None:
        if swept is None:
            fate = "a worker will sweep it." if is_queued else f"{AT_WORK}; nothing to do."
            self.terminal.say((label, "bold"), f": {fate}")
            return
        batch, failed, under_way = swept.batch, swept.failed, swept.under_way
        done = batch.existing - failed - under_way
        self.terminal.say(
            (label, "bold"),
            f": {plural(batch.candidates, 'candidate')}, {done:,} up to date, ",
            f"{under_way:,} on their way, " if under_way else "",
            (f"{failed:,} failed for good, ", "red") if failed else "",
            f"{plural(batch.planned, 'run')} planned.",
        )
        if failed:
            self.terminal.hint(f"Run these again: manage.py autorun retry {label}")


def _as_json(label: str, swept: Swept | None, *, is_queued: bool) -> dict[str, Any]:
    return {
        "runner": label,
        "queued": is_queued,
        "failed_for_good": None if swept is None else swept.failed,
        "under_way": None if swept is None else swept.under_way,
        "batch": None if swept is None else as_json(swept.batch),
    }
