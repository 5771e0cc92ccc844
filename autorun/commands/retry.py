from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError

from autorun.commands.batches import as_json
from autorun.commands.subcommand import (
    OnRows,
    add_format,
    add_keys,
    add_runner,
    requested_by,
    rows_of,
)
from autorun.commands.terminal import plural
from autorun.commands.watching import watch

if TYPE_CHECKING:
    from autorun.runner import QuerySetRunner


class Retry(OnRows):
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
        add_format(parser)

    def handle_rows(self, runner: QuerySetRunner, **options: Any) -> None:
        is_json = options["format"] == "json"
        if is_json and options["watch"]:
            raise CommandError("--watch does not go with --format json.")
        batch = runner.retry(rows_of(runner, options["keys"]), requested_by=requested_by())
        if is_json:
            self.terminal.json(as_json(batch))
            return
        self.terminal.say(
            (runner.label, "bold"),
            f": batch {batch.pk}, {plural(batch.planned, 'failed run')} to try again.",
        )
        if options["watch"]:
            watch(batch, self.terminal)
