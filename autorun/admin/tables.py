"""Batches as lists show them, with their progress from one query for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import Sum
from django.db.models.functions import Coalesce

from autorun.admin.charts import Segment, stacked
from autorun.batches import BatchCounts
from autorun.models import Batch, Chunk


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
    sums: Any = (
        Chunk.objects.filter(batch__in=[batch.pk for batch in found])
        .values("batch_id")
        .annotate(
            n_succeeded=Coalesce(Sum("succeeded"), 0),
            n_failed=Coalesce(Sum("failed"), 0),
            n_cancelled=Coalesce(Sum("cancelled"), 0),
            n_left=Coalesce(Sum(Chunk.runs_left()), 0),
        )
        .order_by()
    )
    counts = {
        row.pop("batch_id"): BatchCounts(
            **{name.removeprefix("n_"): number for name, number in row.items()}
        )
        for row in sums
    }
    nothing = BatchCounts(0, 0, 0, 0)
    return [BatchLine(batch, counts.get(batch.pk, nothing)) for batch in found]
