"""run and sweep: plan and start pending rows."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import CommandError

from autorun.conf import settings
from autorun.declare import console, registry
from autorun.declare.base import Runner
from autorun.declare.nodes import find_node, node_of
from autorun.dispatch.publishing import Message, publish
from autorun.management.subcommands import parsing
from autorun.management.subcommands.batch_list import as_json
from autorun.management.subcommands.subcommand import OnRows, Subcommand, chosen_runners
from autorun.management.subcommands.terminal import Terminal
from autorun.observe.new_versions import held
from autorun.planning.on_demand import Swept, run_now, sweep_counting_undone
from autorun.planning.scope import Scope
from autorun.state.counts import progress
from autorun.state.words import counted


class RunPending(OnRows):
    """Plan and start pending rows, and print each step: RunnerClass().run() on the command line."""

    name = "run"
    arguments = (
        parsing.number("--max-total", help="start at most N runs"),
        parsing.flag("--dry", help="print what would start, and start nothing"),
        parsing.FORMAT,
    )

    def handle_rows(self, runner: Runner, scope: Scope, **options: Any) -> None:
        queryset = scope.queryset(runner)
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
    logger = console.logger
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


class Sweep(Subcommand):
    """Plan and start all pending rows, as beat does on the runner's schedule."""

    arguments = (
        parsing.argument("runners", metavar="RUNNER", nargs="*", help="runner labels"),
        parsing.flag("--all", dest="everything", help="every runner"),
        parsing.QUEUE,
        parsing.FORMAT,
    )

    def handle(self, **options: Any) -> None:
        if not options["runners"] and not options["everything"]:
            known = ", ".join(runner.label for runner in registry.runners()) or "none"
            raise CommandError(f"Which runner? Name one, or --all. Registered: {known}.")
        if options["runners"] and options["everything"]:
            raise CommandError("Name runners or give --all, not both.")
        done = []
        for runner in chosen_runners(options["runners"]):
            node = find_node(runner)
            is_held = node.held_at is not None
            is_queued = options["queue"] and not is_held
            swept = None if is_queued else sweep_counting_undone(runner)
            if is_queued:
                publish([Message("autorun.sweep", (runner.label,), queue=settings.QUEUE)])
            done.append(
                {
                    "runner": runner.label,
                    "queued": is_queued,
                    "failed_for_good": swept and swept.failed,
                    "under_way": swept and swept.under_way,
                    "batch": swept and as_json(swept.batch),
                }
            )
            why = held(node) if is_held else ""
            self._show(runner.label, swept, is_queued=is_queued, held=why)
        self.terminal.json(done)

    def _show(self, label: str, swept: Swept | None, *, is_queued: bool, held: str) -> None:
        if swept is None:
            fate = "sweep queued." if is_queued else "skipped: another sweep of it is running."
            if held:
                fate = f"skipped: {held}."
            self.terminal.say((label, "bold"), f": {fate}")
            return
        batch, failed, under_way = swept.batch, swept.failed, swept.under_way
        done = batch.existing - failed - under_way
        self.terminal.say(
            (label, "bold"),
            f": {counted(batch.candidates, 'candidate')}, {done:,} up to date, ",
            f"{under_way:,} in progress, " if under_way else "",
            (f"{failed:,} failed, ", "red") if failed else "",
            f"{counted(batch.planned, 'run')} planned.",
        )
        if failed:
            self.terminal.hint(f"Retry failed runs: manage.py autorun retry {label}")
