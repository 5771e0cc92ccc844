"""triggers: those in the database that note written rows."""

from dataclasses import replace
from itertools import chain
from typing import Any

from django.core.management.base import CommandError
from django.db import connections

from autorun.conf import settings
from autorun.management.subcommands.parsing import FORMAT, check, flag
from autorun.management.subcommands.subcommand import Subcommand, condition_not_met
from autorun.triggers import installing

STYLES = {"installed": "green", "removed": "green", "not needed": "yellow"}


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
