"""Showing a batch's progress until it ends, or until nobody wants to see more."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from autorun.batches import BatchCounts, counts
from autorun.commands.terminal import Terminal, plural
from autorun.models import Batch

INTERVAL = 0.5  # seconds
LINE_INTERVAL = 5.0  # where every look is a line of its own
PATIENCE = 30.0


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


def watch(batch: Batch, terminal: Terminal) -> None:
    """Show the batch's progress until it ends, or until Ctrl-C, which stops only this."""
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
        return
    found = counts(batch)
    terminal.say(
        (f"Batch {batch.pk} {batch.state}", "bold"),
        f": {plural(found.succeeded, 'run')} succeeded, {found.failed:,} failed"
        + (f", {found.cancelled:,} cancelled." if found.cancelled else "."),
    )
    if found.failed:
        terminal.hint(f"Why: manage.py autorun failures {batch.runner}")


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
        while True:
            found = _look(batch)
            failed = f"{found.failed:,} failed" if found.failed else ""
            bars.update(
                bar,
                completed=_ended(found),
                total=_ended(found) + found.left or None,
                failed=failed,
            )
            if _is_over(batch):
                return
            time.sleep(INTERVAL)


def _watch_by_lines(batch: Batch, terminal: Terminal) -> None:
    shown = None
    said_at = float("-inf")
    while True:
        found = _look(batch)
        if _is_over(batch):
            return
        if found != shown and time.monotonic() - said_at >= LINE_INTERVAL:
            shown, said_at = found, time.monotonic()
            total = _ended(found) + found.left
            terminal.say(f"{_ended(found):,} of {total:,}, {found.failed:,} failed")
        time.sleep(INTERVAL)


def _look(batch: Batch) -> BatchCounts:
    batch.refresh_from_db()
    return counts(batch)


def _ended(found: BatchCounts) -> int:
    return found.succeeded + found.failed + found.cancelled


def _is_over(batch: Batch) -> bool:
    return batch.state not in (Batch.State.RUNNING, Batch.State.PAUSED)
