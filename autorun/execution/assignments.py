"""What a chunk is about: its runs that are still to be done, and their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Exists, OuterRef

from autorun.declare.runner import Runner
from autorun.declare.transcript import SILENT
from autorun.models import Chunk, Run
from autorun.planning.rows import Row, load
from autorun.state.keys import Key


@dataclass(frozen=True)
class Assignment:
    """A run of the chunk with the row it is about."""

    run: Run
    row: Row


def load_runs(chunk: Chunk) -> Sequence[Any]:
    """The chunk's pending runs; `has_older` where a superseded run is still at the same row."""
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


def load_rows(runner: Runner, chunk: Chunk, keys: Sequence[Key]) -> dict[Key, Row]:
    """The rows of those keys that are still eligible for the chunk, by key."""
    is_beyond_base = chunk.batch is not None and chunk.batch.is_beyond_base
    return load(runner, keys, within_base=not is_beyond_base, log_level=SILENT)
