from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from autorun.management.subcommands.parsing import FORMAT, check, flag
from autorun.management.subcommands.subcommand import Subcommand, condition_not_met
from autorun.triggers import on_schedule


class Sync(Subcommand):
    """Update beat's schedule entries to match the runners; edits made in the admin are kept."""

    name = "sync"
    summary = "update beat's schedule entries to match the runners"
    arguments = (
        flag("--dry", help="only show what would change"),
        FORMAT,
        check("if an entry had to change or, with --dry, would have to"),
    )

    def handle(self, **options: Any) -> None:
        try:
            report = on_schedule.sync(dry=options["dry"])
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        self.terminal.json(asdict(report))
        would = "would be " if options["dry"] else ""
        for outcome, names in asdict(report).items():
            for name in names:
                verb = "kept as edited" if outcome == "kept" else f"{would}{outcome}"
                self.terminal.say((name, "bold"), f": {verb}")
        if not report.is_change:
            self.terminal.say(("Schedules are up to date.", "green"))
        if options["check"] and report.is_change:
            raise condition_not_met("Schedules were not up to date.")
