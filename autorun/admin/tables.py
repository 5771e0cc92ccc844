"""Batches as lists show them, with their progress from one query for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autorun.admin.charts import Segment, stacked
from autorun.models import Batch
from autorun.state.counts import BatchCounts, batch_counts


@dataclass(frozen=True)
class BatchLine:
    """A batch and what came of its runs so far."""

    batch: Batch
    counts: BatchCounts

    @property
    def is_unfinished(self) -> bool:
        return self.batch.state in (Batch.State.RUNNING, Batch.State.PAUSED)

    @property
    def ended(self) -> int:
        return self.counts.succeeded + self.counts.failed + self.counts.cancelled

    @property
    def total(self) -> int:
        return self.ended + self.counts.left

    @property
    def bar(self) -> list[Segment]:
        return stacked(self.parts)

    @property
    def parts(self) -> list[tuple[str, str, int]]:
        return [
            ("succeeded", "succeeded", self.counts.succeeded),
            ("failed", "failed", self.counts.failed),
            ("cancelled", "cancelled", self.counts.cancelled),
            ("waiting", "still to end", self.counts.left),
        ]


def batch_lines(batches: Iterable[Batch]) -> list[BatchLine]:
    """A line for each batch; one query for all, and that of the batches."""
    found = list(batches)
    counts = batch_counts(batch.pk for batch in found)
    nothing = BatchCounts(0, 0, 0, 0)
    return [BatchLine(batch, counts.get(batch.pk, nothing)) for batch in found]
