"""Progress of a batch on the terminal, until it finishes or the user stops watching."""

import math
import time
from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from autorun.management.subcommands import parsing
from autorun.management.subcommands.subcommand import condition_not_met
from autorun.management.subcommands.terminal import Terminal
from autorun.models import Batch, Node
from autorun.planning.batches import counts
from autorun.state.counts import BatchCounts
from autorun.state.words import because, counted

INTERVAL = 0.5  # seconds
LINE_INTERVAL = 5.0  # seconds between lines, if the terminal cannot redraw one
START_TIMEOUT = 30.0  # seconds to wait for a worker to start planning

#: Arguments: whether to watch, and whether the result decides the exit code.
WATCH = (
    parsing.flag("--watch", help="show progress; Ctrl-C only stops watching"),
    parsing.check("if a run failed; requires --watch"),
)


def require_watchable(options: dict[str, Any]) -> None:
    """Raise CommandError if the arguments WATCH conflict with others."""
    if options["watch"] and options["format"] == "json":
        raise CommandError("--watch does not go with --format json.")
    if options["check"] and not options["watch"]:
        raise CommandError("--check needs the result of the runs: add --watch to wait for it.")


def watch(batch: Batch, terminal: Terminal, *, check: bool = False) -> None:
    """Show the batch's progress until it finishes, or until Ctrl-C, which only stops watching.

    Raises CommandError for a batch that failed or was cancelled, or that no worker starts. With
    `check`, raises ConditionNotMet if a run failed or Ctrl-C came first.
    """
    try:
        show = _watch_by_bar if terminal.is_interactive else _watch_by_lines
        show(batch, terminal)
    except KeyboardInterrupt:
        terminal.hint(f"Stopped watching; batch {batch.pk} continues.")
        terminal.hint(f"Pause: manage.py autorun pause {batch.pk}")
        if check:
            raise condition_not_met(f"Batch {batch.pk} has not finished.") from None
        return
    found = counts(batch)
    terminal.say(
        (f"Batch {batch.pk} {batch.state}", "bold"),
        f": {counted(found.succeeded, 'run')} succeeded, {found.failed:,} failed"
        + (f", {found.not_applicable:,} not applicable" if found.not_applicable else "")
        + (f", {found.cancelled:,} cancelled." if found.cancelled else "."),
    )
    if found.failed:
        terminal.hint(f"Show why: manage.py autorun failures {batch.runner}")
    if batch.state != Batch.State.FINISHED:
        verb = "failed" if batch.state == Batch.State.FAILED else "was cancelled"
        reason = f": {batch.reason}" if batch.reason else "."
        raise CommandError(f"Batch {batch.pk} {verb}{reason}")
    if check and found.failed:
        raise condition_not_met(f"{counted(found.failed, 'run')} of batch {batch.pk} failed.")


def _watch_by_bar(batch: Batch, terminal: Terminal) -> None:
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("[red]{task.fields[failed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal.console, transient=True) as bars:
        bar = bars.add_task(f"batch {batch.pk}", total=batch.planned or None, failed="")
        for found, state in _followed(batch, terminal):
            bars.update(
                bar,
                description=f"batch {batch.pk}{f', {state}' if state else ''}",
                completed=found.finished,
                total=found.total or None,
                failed=f"{found.failed:,} failed" if found.failed else "",
                refresh=True,
            )


def _watch_by_lines(batch: Batch, terminal: Terminal) -> None:
    shown, shown_at = None, float("-inf")
    for found, _ in _followed(batch, terminal):
        if batch.is_unfinished and found != shown and time.monotonic() - shown_at >= LINE_INTERVAL:
            shown, shown_at = found, time.monotonic()
            terminal.say(f"{found.finished:,} of {found.total:,}, {found.failed:,} failed")


def _followed(batch: Batch, terminal: Terminal) -> Iterator[tuple[BatchCounts, str]]:
    """Yield the batch's counts, and a state that they do not show, until it is over.

    Announces each pause of the batch or its runner once, with the command that resumes it. Raises
    CommandError if no worker has started to plan a queued batch in time.
    """
    start_by = time.monotonic() + START_TIMEOUT
    announced = ""
    paused_node = Node.objects.filter(pk=batch.node_id, paused_at__isnull=False)
    while True:
        found = _refreshed_counts(batch)
        paused = state = reason = ""
        if batch.state == Batch.State.PAUSED:
            paused, state, reason = f"Batch {batch.pk}", "paused", batch.reason
        elif batch.is_unfinished and (node := paused_node.first()) is not None:
            paused, state, reason = batch.runner, "runner paused", node.paused_because
        elif batch.is_unfinished and batch.planned_at is None:
            state = "planning"
            if batch.tries:
                start_by = math.inf
            elif time.monotonic() > start_by:
                raise CommandError(
                    "No worker has started the backfill. To find out why, run "
                    "`manage.py autorun doctor`."
                )
        if paused and paused != announced:
            target = paused.split()[-1]
            if reason:
                terminal.say(f"{paused} is paused{because(reason)}.")
            terminal.hint(f"{paused} is paused: manage.py autorun resume {target}")
        announced = paused
        yield found, state
        if not batch.is_unfinished:
            return
        time.sleep(INTERVAL)


def _refreshed_counts(batch: Batch) -> BatchCounts:
    batch.refresh_from_db()
    return counts(batch)
