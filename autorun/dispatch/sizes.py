"""How many runs a message carries.

About a second of work: enough that what a message costs is lost in it, and little enough that a
live save is not kept waiting and that a killed worker has little to do again.
"""

from __future__ import annotations

from autorun.conf import settings
from autorun.declare.runner import Runner
from autorun.models import Node

TARGET_SECONDS = 1.0
LARGEST = 500
#: What a chunk holds while nobody knows how long a run takes. Too many does little harm: a worker
#: hands the rest of a slow chunk over, in chunks of the size that it should have had.
UNMEASURED = 100


def chunk_size(runner: Runner, node_id: int, *, seconds: float | None = None) -> int:
    """The runner's BATCH_SIZE, or about a second's worth of runs.

    A run takes `seconds`, where the caller has measured it, or what the node says.
    """
    window = settings.WINDOW
    if runner.BATCH_SIZE is not None:
        return max(1, min(runner.BATCH_SIZE, window))
    seconds = _run_seconds(node_id) if seconds is None else seconds
    size = UNMEASURED if seconds is None else round(TARGET_SECONDS / max(seconds, 1e-6))
    # Several chunks have to fit into the window, or workers would stand idle.
    return max(1, min(size, LARGEST, window // 4 or 1))


def _run_seconds(node_id: int) -> float | None:
    return Node.objects.filter(pk=node_id).values_list("run_seconds", flat=True).first()
