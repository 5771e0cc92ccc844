"""Holding a runner back as a whole, letting it go on, and giving up what it has planned."""

from __future__ import annotations

from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.dispatch.releasing import release
from autorun.models import Batch, Node
from autorun.planning import batches
from autorun.state.clock import DatabaseNow


def pause(runner: Runner) -> bool:
    """Start no more runs of the runner's node; what is in flight goes on. False where it was so.

    Rows are still planned meanwhile. Runners that share the node are paused with it.
    """
    nodes = Node.objects.filter(pk=node_of(runner).pk, paused_at=None)
    return bool(nodes.update(paused_at=DatabaseNow()))


def resume(runner: Runner) -> bool:
    """Let the runner's node go on; whether it was paused."""
    node_id = node_of(runner).pk
    resumed = Node.objects.filter(pk=node_id).exclude(paused_at=None).update(paused_at=None)
    if resumed:
        release(node_id)
    return bool(resumed)


def is_paused(runner: Runner) -> bool:
    """Whether the runner's node is paused."""
    return Node.objects.filter(pk=node_of(runner).pk).exclude(paused_at=None).exists()


def cancel(label: str, *, reason: str = "") -> int:
    """Give up all that was planned for the runner of that label and not started; how many runs.

    The runner need not be registered any more. Its rows are pending again.
    """
    unfinished = Batch.objects.unfinished().filter(runner=label).order_by("pk")
    number = sum(batches.cancel(batch, reason=reason) for batch in unfinished)
    return number + batches.cancel_unstarted(label)
