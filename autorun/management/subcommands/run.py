from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autorun.declare import transcript
from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.management.subcommands.batch_list import as_json
from autorun.management.subcommands.parsing import FORMAT, KEYS, RUNNER, argument, count, flag
from autorun.management.subcommands.subcommand import OnRows
from autorun.management.subcommands.terminal import Terminal
from autorun.planning.looks import run_now
from autorun.planning.scope import Scope
from autorun.state.counts import progress
from autorun.state.words import counted


class RunPending(OnRows):
    """Plan and start pending rows, and print each step: RunnerClass().run() on the command line."""

    name = "run"
    summary = "plan and start pending rows, and print each step"
    arguments = (
        RUNNER,
        KEYS,
        argument("--max-total", type=count, metavar="N", help="start at most N runs"),
        flag("--dry", help="print what would start, and start nothing"),
        FORMAT,
    )

    def handle_rows(self, runner: Runner, **options: Any) -> None:
        queryset = Scope(pks=tuple(options["keys"]) or None).queryset(runner)
        with _transcript_on(self.terminal):
            batch = run_now(
                runner,
                queryset,
                max_total=options["max_total"],
                dry=options["dry"],
                log_level=logging.DEBUG if self.terminal.as_json else logging.INFO,
            )
        self.terminal.json(as_json(batch))
        if options["dry"]:
            return
        if batch.planned:
            self.terminal.hint(
                f"Watch batch {batch.pk} ({counted(batch.planned, 'run')}): "
                f"manage.py autorun status {runner.label} --watch"
            )
        if queryset is None and progress(node_of(runner)).failed:
            self.terminal.hint(f"Retry failed runs: manage.py autorun retry {runner.label}")


@contextmanager
def _transcript_on(terminal: Terminal) -> Iterator[None]:
    """Print the transcript here, once, whatever the project's logging does with its records."""
    logger = transcript.logger
    handler = logging.StreamHandler(terminal.stream)
    level, propagates = logger.level, logger.propagate
    if not terminal.as_json:
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
        logger.setLevel(level)
