from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autorun.declare import transcript
from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.management.subcommands.batch_list import as_json
from autorun.management.subcommands.subcommand import (
    OnRows,
    add_format,
    add_keys,
    add_runner,
    positive,
    rows_of,
)
from autorun.management.subcommands.terminal import Terminal, plural
from autorun.planning.looks import run_now
from autorun.state.counts import progress


class Run(OnRows):
    """Plan and start what is pending, saying what goes on: RunnerClass().run() of Python code."""

    name = "run"
    summary = "plan and start what is pending, saying what goes on"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_runner(parser)
        add_keys(parser)
        parser.add_argument("--max-total", type=positive, metavar="N", help="start at most N runs")
        parser.add_argument(
            "--dry", action="store_true", help="say what would start, and start nothing"
        )
        add_format(parser)

    def handle_rows(self, runner: Runner, **options: Any) -> None:
        queryset = rows_of(runner, options["keys"])
        if options["format"] == "json":
            batch = run_now(
                runner,
                queryset,
                max_total=options["max_total"],
                dry=options["dry"],
                log_level=logging.DEBUG,
            )
            self.terminal.json(as_json(batch))
            return
        with _shown_on(self.terminal):
            batch = run_now(
                runner,
                queryset,
                max_total=options["max_total"],
                dry=options["dry"],
                log_level=logging.INFO,
            )
        if not options["dry"] and batch.planned:
            self.terminal.hint(
                f"Batch {batch.pk}, {plural(batch.planned, 'run')}. "
                f"Watch: manage.py autorun status {runner.label} --watch"
            )
        if not options["dry"] and queryset is None and progress(node_of(runner)).failed:
            self.terminal.hint(
                f"Run again what failed for good: manage.py autorun retry {runner.label}"
            )


@contextmanager
def _shown_on(terminal: Terminal) -> Iterator[None]:
    """Show the transcript here, once, whatever the project's logging does with its records."""
    logger = transcript.logger
    handler = logging.StreamHandler(terminal.stream)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
        logger.setLevel(level)
