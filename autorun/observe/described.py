"""Runs and batches as scripts and the API get them."""

from dataclasses import asdict
from typing import Any

from autorun.models import Batch, Run
from autorun.observe.run_states import state_of
from autorun.planning import batches
from autorun.state.counts import BatchCounts

BATCH_FIELDS = (
    *("runner", "trigger", "state", "reason", "description", "requested_by"),
    *("candidates", "existing", "planned", "unprepared"),
)


def describe_run(run: Run) -> dict[str, Any]:
    """The run, without its outputs."""
    return {
        "id": run.pk,
        "runner": run.chunk.runner,
        "row": run.key_text,
        "state": state_of(run),
        "analysis": run.node.title,
        "version": run.node.version,
        "worker": run.chunk.worker,
        "batch": run.chunk.batch_id,
        "attempts": run.attempts,
        "seconds": run.seconds,
        "finished_at": run.finished_at,
    }


def describe_batch(batch: Batch, counts: BatchCounts | None = None) -> dict[str, Any]:
    """The batch; its counts are looked up unless they are given."""
    counts = counts or batches.counts(batch)
    return {
        "id": batch.pk,
        **{name: getattr(batch, name) for name in BATCH_FIELDS},
        **asdict(counts),
        # The database sets the time, so an unsaved batch has none.
        "created_at": None if batch._state.adding else batch.created_at,
        "planned_at": batch.planned_at,
        "finished_at": batch.finished_at,
    }
