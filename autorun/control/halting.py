"""Pause, hold and resume a whole runner, and cancel its planned runs."""

from collections.abc import Callable

from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.nodes import node_of
from autorun.dispatch.releasing import release
from autorun.exceptions import AutorunError
from autorun.models import Batch, Chunk, Node
from autorun.planning import batches
from autorun.state.clock import DatabaseNow
from autorun.state.transactions import once_committed, update_once_committed


def pause_runner(runner: Runner) -> bool:
    """Start no more runs of the runner's node; False if it was paused already.

    Runs in progress finish, and rows are still planned. Runners that share the node are paused too.
    """
    running = Node.objects.filter(pk=node_of(runner).pk, paused_at=None)
    return update_once_committed(running, paused_at=DatabaseNow(), paused_because="")


def resume_runner(runner: Runner) -> bool:
    """Resume the runner's node; False if it was not paused."""
    node_id = node_of(runner).pk
    paused = Node.objects.filter(pk=node_id).exclude(paused_at=None)

    def resume() -> bool:
        resumed = bool(paused.update(paused_at=None, paused_because=""))
        if resumed:
            release(node_id)
        return resumed

    return once_committed(resume, meanwhile=paused.exists)


def hold_runner(runner: Runner, *, by: str = "") -> bool:
    """Leave pending what sweeps and saves would plan; False if the runner's node is held already.

    Written and related rows and DEPENDS_ON plan nothing either; backfills, retries and `run()` do.
    """
    free = Node.objects.filter(pk=node_of(runner).pk, held_at=None)
    return update_once_committed(free, held_at=DatabaseNow(), held_by=by[:255])


def lift_hold(runner: Runner) -> bool:
    """Let sweeps and saves plan again, which the next sweep does; False if nothing was held."""
    held = Node.objects.filter(pk=node_of(runner).pk).exclude(held_at=None)
    return update_once_committed(held, held_at=None, held_by="")


def change_all(change: Callable[[Runner], bool]) -> tuple[list[Runner], dict[str, AutorunError]]:
    """Apply `pause_runner` or `resume_runner` to all runners.

    Returns those that it changed, and the errors of those that it left as they were, by label.
    """
    changed, left = [], {}
    for runner in registry.runners():
        try:
            if change(runner):
                changed.append(runner)
        except AutorunError as error:
            left[runner.label] = error
    return changed, left


def cancel_runner(label: str, *, reason: str = "") -> int:
    """Cancel the runner's runs that have not started, as `batches.cancel_all` does.

    Return how many. The runner need not be registered.
    """
    unfinished = Batch.objects.unfinished().filter(runner=label)
    return batches.cancel_all(unfinished, Chunk.objects.filter(runner=label), reason=reason)
