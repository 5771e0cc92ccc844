"""Progress of a batch on the terminal, until it finishes or the user stops watching."""

import math
import time
from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

from autorun.management.subcommands import parsing
from autorun.management.subcommands.subcommand import condition_not_met
from autorun.management.subcommands.terminal import Terminal
from autorun.models import Batch, Node
from autorun.observe.activity import activity_of
from autorun.observe.glance import take_tally
from autorun.planning.batches import counts
from autorun.state.counts import BatchCounts
from autorun.state.words import because, counted, estimate

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
        raise CommandError("--watch cannot be combined with --format json.")
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
        TextColumn("[dim]{task.fields[left]}"),
    )
    with Progress(*columns, console=terminal.console, transient=True) as bars:
        bar = bars.add_task(f"batch {batch.pk}", total=batch.planned or None, failed="", left="")
        for found, state in _followed(batch, terminal):
            bars.update(
                bar,
                description=f"batch {batch.pk}{f', {state}' if state else ''}",
                completed=found.finished,
                total=found.total or None,
                failed=f"{found.failed:,} failed" if found.failed else "",
                left="" if state else time_left_of(batch, found),
                refresh=True,
            )


def _watch_by_lines(batch: Batch, terminal: Terminal) -> None:
    shown, shown_at = None, float("-inf")
    for found, _ in _followed(batch, terminal):
        if batch.is_unfinished and found != shown and time.monotonic() - shown_at >= LINE_INTERVAL:
            shown, shown_at = found, time.monotonic()
            numbers = f"{found.finished:,} of {found.total:,}, {found.failed:,} failed"
            terminal.say(", ".join(filter(None, (numbers, time_left_of(batch, found)))))


def _followed(batch: Batch, terminal: Terminal) -> Iterator[tuple[BatchCounts, str]]:
    """Yield the batch's counts, and a state that they do not show, until it is over.

    Announces each reason why it does not go on once, with the command to type. Raises CommandError
    if no worker has started to plan a queued batch in time.
    """
    start_by = time.monotonic() + START_TIMEOUT
    announced = ""
    while True:
        batch.refresh_from_db()
        found = counts(batch)
        state, reason, hint = _held_back(batch) if batch.is_unfinished else ("", "", "")
        if batch.is_unfinished and batch.planned_at is None and not hint:
            state = "planning"
        if batch.tries:
            start_by = math.inf
        elif state in ("planning", "no worker") and time.monotonic() > start_by:
            raise CommandError(
                "No worker has started the backfill. To find out why, run "
                "`manage.py autorun doctor`."
            )
        if hint and hint != announced:
            if reason:
                terminal.say(reason)
            terminal.hint(hint)
        announced = hint
        yield found, state
        if not batch.is_unfinished:
            return
        time.sleep(INTERVAL)


def _held_back(batch: Batch) -> tuple[str, str, str]:
    """A state, a sentence and a hint that say why the batch does not go on; '' if it does."""
    node = Node.objects.get(pk=batch.node_id)
    target: object
    if batch.state == Batch.State.PAUSED:
        name, target, state, reason = f"Batch {batch.pk}", batch.pk, "paused", batch.reason
    elif node.paused_at is not None:
        name = target = batch.runner
        state, reason = "runner paused", node.paused_because
    elif node.pk in take_tally().stuck:
        return "no worker", "", "No worker is picking up tasks: manage.py autorun doctor"
    else:
        return "", "", ""
    sentence = f"{name} is paused{because(reason)}." if reason else ""
    return state, sentence, f"{name} is paused: manage.py autorun resume {target}"


def time_left_of(batch: Batch, found: BatchCounts) -> str:
    """`2 min left`; '' if it is not known."""
    seconds = activity_of(batch).seconds_left(found.left) if batch.is_unfinished else None
    return "" if seconds is None else f"{estimate(seconds)} left"
