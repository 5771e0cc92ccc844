"""The number of runs in a chunk: about a second of work.

That is long compared with the cost of a message, and short enough that a saved row need not wait
and that a killed worker loses little.
"""

from __future__ import annotations

from autorun.conf import settings
from autorun.declare.runner import Runner
from autorun.models import Node

TARGET_SECONDS = 1.0
LARGEST = 500
#: Runs in a chunk of a node without a measured run. Too many does little harm: a worker hands over
#: the rest of a slow chunk, in chunks of the right size.
UNMEASURED = 100


def chunk_size(runner: Runner, node_id: int, *, seconds: float | None = None) -> int:
    """The runner's BATCH_SIZE, or about a second's worth of runs.

    A run takes the caller's measured `seconds`, or else the node's.
    """
    window = settings.WINDOW
    if runner.BATCH_SIZE is not None:
        return max(1, min(runner.BATCH_SIZE, window))
    seconds = _run_seconds(node_id) if seconds is None else seconds
    size = UNMEASURED if seconds is None else round(TARGET_SECONDS / max(seconds, 1e-6))
    # Several chunks must fit into the window, or workers would be idle.
    return max(1, min(size, LARGEST, window // 4 or 1))


def _run_seconds(node_id: int) -> float | None:
    return Node.objects.filter(pk=node_id).values_list("run_seconds", flat=True).first()
