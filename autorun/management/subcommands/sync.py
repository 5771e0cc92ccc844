from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from autorun.management.subcommands.subcommand import (
    ConditionNotMet,
    Subcommand,
    add_check,
    add_format,
)
from autorun.triggers import on_schedule


class Sync(Subcommand):
    """Bring the schedule entries of beat in line with the runners; edits in the admin are kept."""

    name = "sync"
    summary = "bring beat's schedule entries in line with the runners"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dry", action="store_true", help="say what would change")
        add_format(parser)
        add_check(parser, "where something had to change; with --dry, where it would have to")

    def handle(self, **options: Any) -> None:
        try:
            report = on_schedule.sync(dry=options["dry"])
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        if options["format"] == "json":
            self.terminal.json(asdict(report))
        else:
            would = "would be " if options["dry"] else ""
            for outcome, names in asdict(report).items():
                for name in names:
                    verb = "kept as edited" if outcome == "kept" else f"{would}{outcome}"
                    self.terminal.say((name, "bold"), f": {verb}")
            if not report.is_change:
                self.terminal.say(("Schedules are up to date.", "green"))
        if options["check"] and report.is_change:
            raise ConditionNotMet("Schedules were not up to date.")
