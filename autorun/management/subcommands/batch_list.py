from __future__ import annotations

import argparse
from typing import Any

from autorun.declare import registry
from autorun.management.subcommands.subcommand import Subcommand, add_format, positive
from autorun.management.subcommands.terminal import moment
from autorun.models import Batch
from autorun.observe.listing import EMPTY_SWEEP
from autorun.state.counts import BatchCounts, batch_counts

TRIGGERS = {"code": "run"}
STYLES = {"running": "cyan", "paused": "yellow", "finished": "green", "failed": "red"}


class Batches(Subcommand):
    """Show the latest batches: what was planned by sweep, backfill or code, and what came of it."""

    name = "batches"
    summary = "what sweeps and backfills planned and did"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("runner", metavar="RUNNER", nargs="?", help="its label; else all")
        parser.add_argument("--state", choices=Batch.State.values)
        parser.add_argument(
            "--all",
            action="store_true",
            dest="with_empty",
            help="also sweeps that found nothing to plan",
        )
        parser.add_argument("--limit", type=positive, default=20, metavar="N", help="20 by default")
        add_format(parser)

    def handle(self, **options: Any) -> None:
        found = Batch.objects.defer("scope").order_by("-pk")
        if options["runner"]:
            found = found.filter(runner=registry.get(options["runner"]).label)
        if options["state"]:
            found = found.filter(state=options["state"])
        shown = found if options["with_empty"] else found.exclude(EMPTY_SWEEP)
        batches = list(shown[: options["limit"]])
        counts = batch_counts(batch.pk for batch in batches)
        if options["format"] == "json":
            self.terminal.json([as_json(batch, counts[batch.pk]) for batch in batches])
            return
        is_cut = not options["with_empty"] and found.filter(EMPTY_SWEEP).exists()
        if not batches:
            self.terminal.say("No batches.")
        for batch in batches:
            self._show(batch, counts[batch.pk])
        if any(batch.state in ("running", "paused") for batch in batches):
            self.terminal.hint("manage.py autorun pause, resume or cancel takes a batch's number.")
        if is_cut:
            self.terminal.hint("Sweeps that found nothing to plan are left out: --all shows them.")

    def _show(self, batch: Batch, counts: BatchCounts) -> None:
        """Two lines."""
        state = str(batch.state)
        if state == Batch.State.RUNNING and batch.planned_at is None:
            state = "planning"
        what = f" {TRIGGERS.get(batch.trigger, batch.trigger)} of {batch.runner}"
        gap = self.terminal.layout_width - len(f"{batch.pk}{what}{state}")
        self.terminal.say(
            (str(batch.pk), "bold"), what, " " * max(1, gap), (state, STYLES.get(state, ""))
        )
        words = [f"{moment(batch.created_at)}  {batch.planned:,} planned"]
        words += [f"{counts.succeeded:,} done"] if counts.succeeded else []
        failed = (f", {counts.failed:,} failed", "red") if counts.failed else ""
        ends = [f", {counts.cancelled:,} cancelled"] if counts.cancelled else []
        ends += [f", {counts.left:,} left"] if counts.left else []
        self.terminal.say("  ", ", ".join(words), failed, *ends)
        if batch.reason:
            self.terminal.hint(f"  {batch.reason}")


def as_json(batch: Batch, counts: BatchCounts | None = None) -> dict[str, Any]:
    """The batch for scripts; what came of it is looked up where it is not given."""
    counts = (
        batch_counts([batch.pk]).get(batch.pk, BatchCounts(0, 0, 0, 0))
        if counts is None
        else counts
    )
    return {
        "id": batch.pk,
        "runner": batch.runner,
        "trigger": batch.trigger,
        "state": batch.state,
        "reason": batch.reason,
        "description": batch.description,
        "requested_by": batch.requested_by,
        "candidates": batch.candidates,
        "existing": batch.existing,
        "planned": batch.planned,
        "unprepared": batch.unprepared,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "left": counts.left,
        # What is not saved has no time yet: that is the database's.
        "created_at": None if batch._state.adding else batch.created_at,
        "planned_at": batch.planned_at,
        "finished_at": batch.finished_at,
    }
