"""The unfinished runs of a chunk, and their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Exists, OuterRef

from autorun.models import Chunk, Run
from autorun.planning.rows import Row


@dataclass(frozen=True)
class Assignment:
    """A run of the chunk with its row."""

    run: Run
    row: Row


def load_runs(chunk: Chunk) -> Sequence[Any]:
    """The chunk's pending runs; `has_older` if a superseded run of the row is still running."""
    older = Run.objects.pending().filter(
        node=OuterRef("node"),
        object_id=OuterRef("object_id"),
        object_key=OuterRef("object_key"),
        is_current=None,
        chunk__state=Chunk.State.RUNNING,
    )
    runs = Run.objects.pending().filter(chunk=chunk)
    return list(
        runs.annotate(has_older=Exists(older.exclude(chunk=chunk))).defer("outputs").order_by("pk")
    )
