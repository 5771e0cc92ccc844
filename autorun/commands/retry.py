from __future__ import annotations

import argparse
from typing import Any

from autorun import registry
from autorun.commands.subcommand import Subcommand, add_keys, add_runner, requested_by, rows_of
from autorun.commands.terminal import plural
from autorun.commands.watching import watch


class Retry(Subcommand):
    """Run again what has failed for good."""

    name = "retry"
    summary = "run again what has failed for good"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_runner(parser)
        add_keys(parser)
        parser.add_argument(
            "--watch", action="store_true", help="show progress; Ctrl-C stops watching only"
        )

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        batch = runner.retry(rows_of(runner, options["keys"]), requested_by=requested_by())
        self.terminal.say(
            (runner.label, "bold"),
            f": batch {batch.pk}, {plural(batch.planned, 'failed run')} to try again.",
        )
        if options["watch"]:
            watch(batch, self.terminal)
