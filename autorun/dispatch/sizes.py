"""The number of runs in a chunk: about a second of work.

That outweighs the cost of a message, while a saved row waits briefly and a killed worker loses
little.
"""

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.dispatch.limiting import calls_at_once, shared
from autorun.exceptions import AutorunError
from autorun.models import Node

TARGET_SECONDS = 1.0
LARGEST = 500
#: The number of chunks that the rest of a slow chunk is divided into, if its node is measured.
PARTS_OF_REST = 8


def chunk_size(runner: Runner, node_id: int, *, seconds: float | None = None) -> int:
    """The runner's BATCH_SIZE, or a second's worth of runs, one of which ends every `seconds`.

    By default, those are the node's run time, divided by the calls that are made at once. Never
    more calls than its limit allows in a moment, so that no chunk keeps others waiting.
    """
    most = None if runner.LIMIT is None else shared(runner.LIMIT).most_calls
    window = min(settings.WINDOW, (most or settings.WINDOW) * rows_a_call(runner))
    if runner.BATCH_SIZE is not None:
        return max(1, min(runner.BATCH_SIZE, window))
    if seconds is None:
        found = Node.objects.filter(pk=node_id).values_list("run_seconds", flat=True).first()
        seconds = None if found is None else found / calls_at_once(runner.label)
    # An unmeasured node has the largest: a worker hands over the rest of a slow chunk.
    size = LARGEST if seconds is None else round(TARGET_SECONDS / max(seconds, 1e-6))
    # Several chunks must fit into the window, or workers would be idle.
    size = max(1, min(size, LARGEST, settings.WINDOW // 4))
    return min(in_full_calls(runner, size), window)


def size_of_rest(runner: Runner, node: Node, moved: int, *, seconds: float | None) -> int:
    """The size of the chunks for so many runs of a chunk, of which one has ended every `seconds`.

    The node's average says more than the few runs of this chunk, one of which was slow. If all
    runs have become slow, several workers get the rest, and hand it over in their turn.
    """
    if node.run_seconds is None:
        return chunk_size(runner, node.pk, seconds=seconds)
    usual = chunk_size(runner, node.pk, seconds=node.run_seconds / calls_at_once(runner.label))
    return min(usual, in_full_calls(runner, -(-moved // PARTS_OF_REST)))


def in_full_calls(runner: Runner, size: int) -> int:
    """`size`, rounded down to what a worker's process works on at once, or that if it is more."""
    rows = max(rows_a_call(runner), calls_at_once(runner.label))
    return max(1, size // rows) * rows


def rows_a_call(runner: Runner) -> int:
    """The rows that a call of the runner's body takes at most."""
    try:
        analysis = runner.get_analysis()
    except AutorunError:  # in an old worker, or a check reports it
        return 1
    return analysis.batch or 1
