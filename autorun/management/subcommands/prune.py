from __future__ import annotations

from typing import Any

from autorun.conf import settings
from autorun.management.subcommands.subcommand import Subcommand
from autorun.state.words import counted
from autorun.upkeep import pruning


class Prune(Subcommand):
    """Delete superseded and cancelled runs that are older than AUTORUN["RETENTION"].

    Upkeep does this every hour. Current runs, which record what is done, are kept.
    """

    name = "prune"
    summary = "delete old history now; upkeep does it every hour"

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
