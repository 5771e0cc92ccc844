"""sync, triggers and prune: by hand, what autorun otherwise does by itself."""

from dataclasses import asdict, replace
from itertools import chain
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import connections

from autorun.conf import settings
from autorun.management.subcommands.parsing import FORMAT, check, flag
from autorun.management.subcommands.subcommand import Subcommand, condition_not_met
from autorun.state.words import counted
from autorun.triggers import installing, on_schedule
from autorun.upkeep import folding

UP_TO_DATE = "Schedules are up to date."
NOT_UP_TO_DATE = "Schedules were not up to date."
STYLES = {"installed": "green", "removed": "green", "not needed": "yellow"}


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


class Triggers(Subcommand):
    """Show the triggers of runners with ON_WRITE in the database, and install or remove them.

    `migrate` installs them. Remove them before autorun is uninstalled.
    """

    arguments = (
        flag("--install", help="create what is missing or outdated, and drop what is not needed"),
        flag("--remove", help="drop all of autorun's triggers"),
        flag("--sql", help="print the statements that create them, for a database administrator"),
        FORMAT,
        check("if a trigger is missing, outdated, disabled or not needed"),
    )

    def handle(self, **options: Any) -> None:
        if options["install"] and options["remove"]:
            raise CommandError("Choose one of --install and --remove.")
        if options["sql"]:
            # A trigger of MariaDB has semicolons inside; its client would split it at them.
            is_mysql = connections[settings.DATABASE].vendor == "mysql"
            printed = chain.from_iterable(each.statements for each in installing.wanted())
            script = [f"{statement}{';;' if is_mysql else ';'}\n" for statement in printed]
            for line in ["DELIMITER ;;", *script, "DELIMITER ;"] if is_mysql else script:
                self.terminal.say(line)
            return
        errors = []
        if options["install"] or options["remove"]:
            errors = installing.install() if options["install"] else installing.remove()
        found = installing.statuses()
        if options["remove"]:
            gone = {"missing": "removed"}
            found = [replace(each, state=gone.get(each.state, each.state)) for each in found]
        self.terminal.json([{"table": each.table, "state": each.state} for each in found])
        for each in found:
            style = STYLES.get(each.state, "red")
            self.terminal.say((each.table, "bold"), ": ", (each.state, style))
        if not found:
            self.terminal.say("No runner has ON_WRITE, and the database has no triggers for it.")
        if errors:
            raise CommandError("\n".join(errors))
        if options["check"] and any(each.state != "installed" for each in found):
            raise condition_not_met("The triggers do not match the runners.")


class Prune(Subcommand):
    """Delete superseded and cancelled runs that are older than AUTORUN["RETENTION"].

    Upkeep does this every hour. Current runs, which record what is done, are kept.
    """

    def handle(self, **options: Any) -> None:
        if settings.RETENTION is None:
            self.terminal.say('AUTORUN["RETENTION"] is None: everything is kept.')
            return
        number = last = folding.prune(at_most=folding.MOST_RUNS)
        while last >= folding.MOST_RUNS:
            last = folding.prune(at_most=folding.MOST_RUNS)
            number += last
        self.terminal.say(
            f"Deleted {counted(number, 'run')} superseded or cancelled more than "
            f"{counted(settings.RETENTION.days, 'day')} ago."
        )
