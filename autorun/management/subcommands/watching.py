"""Showing a batch's progress until it ends, or until nobody wants to see more."""

from __future__ import annotations

import argparse
import time
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

from autorun.management.subcommands.subcommand import ConditionNotMet, add_check
from autorun.management.subcommands.terminal import Terminal, plural
from autorun.models import Batch, Node
from autorun.planning.batches import counts
from autorun.state.counts import BatchCounts

INTERVAL = 0.5  # seconds
LINE_INTERVAL = 5.0  # where every look is a line of its own
PATIENCE = 30.0
_VERBS: dict[str, str] = {
    Batch.State.FAILED: "failed",
    Batch.State.CANCELLED: "was cancelled",
}


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Whether to watch, and whether what is seen decides the exit code."""
    parser.add_argument(
        "--watch", action="store_true", help="show progress; Ctrl-C stops watching only"
    )
    add_check(parser, "where a run failed; goes with --watch")


def require_watchable(options: dict[str, Any]) -> None:
    """Raise CommandError where the arguments of `add_watch` do not go with the others."""
    if options["watch"] and options["format"] == "json":
        raise CommandError("--watch does not go with --format json.")
    if options["check"] and not options["watch"]:
        raise CommandError("--check looks at how the runs ended: add --watch, to wait for that.")


def last_batch(label: str) -> int:
    """The number of the runner's latest backfill; 0 where there is none."""
    backfills = Batch.objects.filter(runner=label, trigger=Batch.Trigger.BACKFILL)
    return backfills.order_by("-pk").values_list("pk", flat=True).first() or 0


def find_new_batch(label: str, *, after: int) -> Batch | None:
    """The runner's next backfill, which a worker is about to begin; None where none does."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = Batch.objects.filter(runner=label, trigger=Batch.Trigger.BACKFILL, pk__gt=after)
        batch: Batch | None = found.order_by("pk").first()
        if batch is not None:
            return batch
        time.sleep(INTERVAL)
    return None


def watch(batch: Batch, terminal: Terminal, *, check: bool = False) -> None:
    """Show the batch's progress until it ends, or until Ctrl-C, which stops only this.

    Raises CommandError for a batch that failed or was cancelled, and, with `check`, ConditionNotMet
    where a run failed or nobody saw the end.
    """
    try:
        if terminal.is_interactive:
            _watch_by_bar(batch, terminal)
        else:
            _watch_by_lines(batch, terminal)
    except KeyboardInterrupt:
        terminal.hint(
            f"No longer watching; batch {batch.pk} goes on. "
            f"Hold it back: manage.py autorun pause {batch.pk}"
        )
        if check:
            raise ConditionNotMet(f"Batch {batch.pk} has not ended.") from None
        return
    found = counts(batch)
    terminal.say(
        (f"Batch {batch.pk} {batch.state}", "bold"),
        f": {plural(found.succeeded, 'run')} succeeded, {found.failed:,} failed"
        + (f", {found.cancelled:,} cancelled." if found.cancelled else "."),
    )
    if found.failed:
        terminal.hint(f"Why: manage.py autorun failures {batch.runner}")
    if batch.state != Batch.State.FINISHED:
        reason = f": {batch.reason}" if batch.reason else "."
        raise CommandError(f"Batch {batch.pk} {_VERBS[batch.state]}{reason}")
    if check and found.failed:
        raise ConditionNotMet(f"{plural(found.failed, 'run')} of batch {batch.pk} failed.")


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
        hold = _Hold(terminal)
        while True:
            found = _look(batch)
            state = hold.look(batch)
            failed = f"{found.failed:,} failed" if found.failed else ""
            bars.update(
                bar,
                description=f"batch {batch.pk}{f', {state}' if state else ''}",
                completed=_ended(found),
                total=_ended(found) + found.left or None,
                failed=failed,
                refresh=True,
            )
            if _is_over(batch):
                return
            time.sleep(INTERVAL)


def _watch_by_lines(batch: Batch, terminal: Terminal) -> None:
    shown = None
    said_at = float("-inf")
    hold = _Hold(terminal)
    while True:
        found = _look(batch)
        if _is_over(batch):
            return
        hold.look(batch)
        if found != shown and time.monotonic() - said_at >= LINE_INTERVAL:
            shown, said_at = found, time.monotonic()
            total = _ended(found) + found.left
            terminal.say(f"{_ended(found):,} of {total:,}, {found.failed:,} failed")
        time.sleep(INTERVAL)


class _Hold:
    """Says, once each time, that what is watched is held back, and how it goes on."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._held = ""

    def look(self, batch: Batch) -> str:
        """What of the batch's state its numbers do not tell, in a word or two; '' for nothing."""
        held = _held(batch)
        if held and held != self._held:
            self._terminal.hint(f"{held} is paused: manage.py autorun resume {held.split()[-1]}")
        self._held = held
        if held:
            return "paused" if batch.state == Batch.State.PAUSED else "runner paused"
        return "planning" if batch.planned_at is None and not _is_over(batch) else ""


def _held(batch: Batch) -> str:
    """What is paused: the batch, or its runner; '' for neither."""
    if batch.state == Batch.State.PAUSED:
        return f"Batch {batch.pk}"
    is_paused = Node.objects.filter(pk=batch.node_id).exclude(paused_at=None).exists()
    return batch.runner if is_paused and not _is_over(batch) else ""


def _look(batch: Batch) -> BatchCounts:
    batch.refresh_from_db()
    return counts(batch)


def _ended(found: BatchCounts) -> int:
    return found.succeeded + found.failed + found.cancelled


def _is_over(batch: Batch) -> bool:
    return batch.state not in (Batch.State.RUNNING, Batch.State.PAUSED)
