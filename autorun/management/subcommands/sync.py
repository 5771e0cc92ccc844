"""sync and prune: upkeep by hand."""

from dataclasses import asdict
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from autorun.conf import settings
from autorun.management.subcommands.parsing import FORMAT, check, flag
from autorun.management.subcommands.subcommand import Subcommand, condition_not_met
from autorun.state.words import counted
from autorun.triggers import on_schedule
from autorun.upkeep import pruning

UP_TO_DATE = "Schedules are up to date."
NOT_UP_TO_DATE = "Schedules were not up to date."


class Sync(Subcommand):
    """Update beat's schedule entries to match the runners; edits made in the admin are kept.

    With --remove, delete all entries that send autorun's tasks: before autorun is uninstalled, or
    when something other than django-celery-beat sends the sweeps from now on.
    """

    arguments = (
        flag("--dry", help="only show what would change"),
        flag("--remove", help="delete all of autorun's entries, edited ones included"),
        FORMAT,
        check("if an entry had to change or, with --dry, would have to"),
    )

    def handle(self, **options: Any) -> None:
        change = on_schedule.remove if options["remove"] else on_schedule.sync
        try:
            report = change(dry=options["dry"])
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        self.terminal.json(asdict(report))
        would = "would be " if options["dry"] else ""
        for outcome, names in asdict(report).items():
            for name in names:
                verb = "kept as edited" if outcome == "kept" else f"{would}{outcome}"
                self.terminal.say((name, "bold"), f": {verb}")
        if not report.is_change:
            in_order = "Beat has no entries of autorun." if options["remove"] else UP_TO_DATE
            self.terminal.say((in_order, "green"))
        elif options["check"]:
            changed = "Beat had entries of autorun." if options["remove"] else NOT_UP_TO_DATE
            raise condition_not_met(changed)


class Prune(Subcommand):
    """Delete superseded and cancelled runs that are older than AUTORUN["RETENTION"].

    Upkeep does this every hour. Current runs, which record what is done, are kept.
    """

    def handle(self, **options: Any) -> None:
        if settings.RETENTION is None:
            self.terminal.say('AUTORUN["RETENTION"] is None: everything is kept.')
            return
        number = last = pruning.prune(at_most=pruning.MOST_RUNS)
        while last >= pruning.MOST_RUNS:
            last = pruning.prune(at_most=pruning.MOST_RUNS)
            number += last
        self.terminal.say(
            f"Deleted {counted(number, 'run')} superseded or cancelled more than "
            f"{counted(settings.RETENTION.days, 'day')} ago."
        )
