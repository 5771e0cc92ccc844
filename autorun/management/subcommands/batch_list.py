from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autorun.declare import registry
from autorun.management.subcommands.parsing import FORMAT, RUNNER_OR_ALL, argument, count, flag
from autorun.management.subcommands.subcommand import Subcommand
from autorun.models import Batch
from autorun.observe.listing import EMPTY_SWEEP
from autorun.state.counts import BatchCounts, batch_counts
from autorun.state.words import moment

STATE_STYLES = {"running": "cyan", "paused": "yellow", "finished": "green", "failed": "red"}
JSON_FIELDS = (
    *("runner", "trigger", "state", "reason", "description", "requested_by"),
    *("candidates", "existing", "planned", "unprepared"),
)


class Batches(Subcommand):
    """Show recent batches: what sweeps, backfills and run() planned, and the results so far."""

    name = "batches"
    summary = "recent batches and their results"
    arguments = (
        RUNNER_OR_ALL,
        argument("--state", choices=Batch.State.values),
        flag("--all", dest="with_empty", help="include sweeps that found nothing"),
        argument("--limit", type=count, default=20, metavar="N", help="default: 20"),
        FORMAT,
    )

    def handle(self, **options: Any) -> None:
        found = Batch.objects.defer("scope").order_by("-pk")
        if options["runner"]:
            found = found.filter(runner=registry.get(options["runner"]).label)
        if options["state"]:
            found = found.filter(state=options["state"])
        shown = found if options["with_empty"] else found.exclude(EMPTY_SWEEP)
        batches = list(shown[: options["limit"]])
        counts = batch_counts(batch.pk for batch in batches)
        self.terminal.json([as_json(batch, counts[batch.pk]) for batch in batches])
        if not batches:
            self.terminal.say("No batches.")
        for batch in batches:
            self._show(batch, counts[batch.pk])
        if any(batch.state in ("running", "paused") for batch in batches):
            self.terminal.hint("Pause, resume or cancel a batch: manage.py autorun pause NUMBER")
        if not options["with_empty"] and found.filter(EMPTY_SWEEP).exists():
            self.terminal.hint("Sweeps that found nothing are hidden; --all shows them.")

    def _show(self, batch: Batch, counts: BatchCounts) -> None:
        state = str(batch.state)
        if state == Batch.State.RUNNING and batch.planned_at is None:
            state = "planning"
        trigger = "run" if batch.trigger == Batch.Trigger.CODE else batch.trigger
        name = f" {trigger} of {batch.runner}"
        gap = self.terminal.layout_width - len(f"{batch.pk}{name}{state}")
        self.terminal.say(
            (str(batch.pk), "bold"), name, " " * max(1, gap), (state, STATE_STYLES.get(state, ""))
        )
        numbers = (
            (counts.succeeded, "done", ""),
            (counts.failed, "failed", "red"),
            (counts.cancelled, "cancelled", ""),
            (counts.left, "remaining", ""),
        )
        parts = [(f", {number:,} {word}", style) for number, word, style in numbers if number]
        self.terminal.say(f"  {moment(batch.created_at)}  {batch.planned:,} planned", *parts)
        if batch.reason:
            self.terminal.hint(f"  {batch.reason}")


def as_json(batch: Batch, counts: BatchCounts | None = None) -> dict[str, Any]:
    """The batch for scripts; its counts are looked up unless they are given."""
    counts = counts or batch_counts([batch.pk]).get(batch.pk, BatchCounts(0, 0, 0, 0))
    return {
        "id": batch.pk,
        **{name: getattr(batch, name) for name in JSON_FIELDS},
        **asdict(counts),
        # The database sets the time, so an unsaved batch has none.
        "created_at": None if batch._state.adding else batch.created_at,
        "planned_at": batch.planned_at,
        "finished_at": batch.finished_at,
    }
