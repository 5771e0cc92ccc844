"""Small chunks that were planned while bodies were slow are joined once the bodies are quick.

A chunk has the size that was right when it was planned. If its bodies have become slower since, its
worker hands over the rest. If they have become quicker, executing many small chunks costs more than
their runs do, so the next one to be released takes over the runs of those that follow it.
"""

from collections.abc import Mapping
from typing import Any

from django.db.models import (
    BooleanField,
    Exists,
    ExpressionWrapper,
    F,
    OuterRef,
    Q,
    QuerySet,
)

from autorun.conf import settings
from autorun.declare import registry
from autorun.dispatch.limiting import calls_at_once
from autorun.dispatch.sizes import chunk_size
from autorun.models import Chunk, Run
from autorun.state.clock import DatabaseNow
from autorun.state.transactions import unlocked

#: Chunks are joined up to this part of the right size; joining larger ones would gain little.
SMALL = 1 / 4


def join_small(page: list[Any]) -> list[Any]:
    """The first waiting chunks of a node, once the first one has taken over the runs of others.

    The caller holds the node's lock.
    """
    if len(page) < 2 or page[0].run_seconds is None:
        return page
    first, second = page[:2]
    kind = {name: getattr(first, name) for name in ("node_id", "runner", "batch_id", "priority")}
    if any(getattr(second, name) != value for name, value in kind.items()):
        return page
    size = min(_right_size(first), first.window or settings.WINDOW)
    if max(first.size, second.size) > size * SMALL:
        return page
    joined, total = [], 0
    for pk, is_plain, runs in unlocked(_from(first, kind)[:size]):
        total += runs
        if not is_plain or total > size:
            break
        joined.append(pk)
    if len(joined) < 2 or joined[0] != first.pk:  # which another process may lock
        return page
    others = Chunk.objects.filter(pk__in=joined[1:])
    moved = Run.objects.pending().filter(chunk__in=joined[1:]).update(chunk=first.pk)
    ended = {"state": Chunk.State.FINISHED, "finished_at": DatabaseNow()}
    others.update(moved=F("moved") + Chunk.RUNS_LEFT, **ended)
    Chunk.objects.filter(pk=first.pk).update(size=F("size") + moved)
    first.size += moved
    return [chunk for chunk in page if chunk is first or chunk.pk not in joined]


def _from(first: Any, kind: Mapping[str, Any]) -> QuerySet[Any, Any]:
    """The chunk and those after it: whether they can be joined, and how many runs they have left.

    A run that was retried or put off may have to stay alone.
    """
    retried = Run.objects.filter(chunk=OuterRef("pk"), attempts__gt=0)
    is_plain = ~Exists(retried) & Q(not_before=None, reason="", postponed_by="", expires_at=None)
    chunks = Chunk.objects.waiting().filter(pk__gte=first.pk, **kind).order_by("pk")
    return chunks.values_list("pk", ExpressionWrapper(is_plain, BooleanField()), Chunk.RUNS_LEFT)


def _right_size(chunk: Any) -> int:
    runner = registry.find(chunk.runner)
    seconds = chunk.run_seconds / calls_at_once(chunk.runner)
    return 0 if runner is None else chunk_size(runner, chunk.node_id, seconds=seconds)
