"""The number of runs in a chunk: about a second of work.

That outweighs the cost of a message, yet a saved row waits little and a killed worker loses little.
"""

from autorun.conf import settings
from autorun.declare.runner import Runner
from autorun.dispatch.limiting import shared
from autorun.models import Node

TARGET_SECONDS = 1.0
LARGEST = 500
#: Runs in a chunk of an unmeasured node; a worker hands over the rest of a slow chunk.
UNMEASURED = 100


def chunk_size(runner: Runner, node_id: int, *, seconds: float | None = None) -> int:
    """The runner's BATCH_SIZE, or a second's worth of runs of `seconds`, by default the node's.

    Never more calls than its limit allows in a moment, so that no chunk keeps others waiting.
    """
    most = None if runner.LIMIT is None else shared(runner.LIMIT).most_calls
    window = min(settings.WINDOW, most or settings.WINDOW)
    if runner.BATCH_SIZE is not None:
        return max(1, min(runner.BATCH_SIZE, window))
    if seconds is None:
        seconds = Node.objects.filter(pk=node_id).values_list("run_seconds", flat=True).first()
    size = UNMEASURED if seconds is None else round(TARGET_SECONDS / max(seconds, 1e-6))
    # Several chunks must fit into the window, or workers would be idle.
    return max(1, min(size, LARGEST, window, settings.WINDOW // 4))
