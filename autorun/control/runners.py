"""Holding a runner back as a whole, letting it go on, and giving up what it has planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autorun.dispatch.releasing import release
from autorun.models import Batch, Node
from autorun.planning import batches
from autorun.state.clock import DatabaseNow

if TYPE_CHECKING:
    from autorun.runner import QuerySetRunner


def pause(runner: QuerySetRunner) -> bool:
    """Start no more runs of the runner's node; what is in flight goes on. False where it was so.

    Rows are still planned meanwhile. Runners that share the node are paused with it.
    """
    nodes = Node.objects.filter(pk=runner.get_node().pk, paused_at=None)
    return bool(nodes.update(paused_at=DatabaseNow()))


def resume(runner: QuerySetRunner) -> bool:
    """Let the runner's node go on; whether it was paused."""
    node_id = runner.get_node().pk
    resumed = Node.objects.filter(pk=node_id).exclude(paused_at=None).update(paused_at=None)
    if resumed:
        release(node_id)
    return bool(resumed)


def is_paused(runner: QuerySetRunner) -> bool:
    """Whether the runner's node is paused."""
    return Node.objects.filter(pk=runner.get_node().pk).exclude(paused_at=None).exists()


def cancel(label: str, *, reason: str = "") -> int:
    """Give up all that was planned for the runner of that label and not started; how many runs.

    The runner need not be registered any more. Its rows are pending again.
    """
    open_batches = Batch.objects.filter(
        runner=label, state__in=(Batch.State.RUNNING, Batch.State.PAUSED)
    )
    number = sum(batches.cancel(batch, reason=reason) for batch in open_batches.order_by("pk"))
    return number + batches.cancel_unstarted(label)
