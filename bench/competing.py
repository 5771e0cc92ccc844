"""Prints how often in a second one process, and several together, release one node.

Each ends a queued chunk and releases the node, over and over.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import django

PROCESSES = 8
SECONDS = 5.0


def together(node_id: int, processes: int) -> float:
    """Releases per second by so many processes."""
    workers = ProcessPoolExecutor(processes, get_context("spawn"), initializer=django.setup)
    with workers as pool:
        list(pool.map(partial(_release, node_id, 0.1), range(processes)))  # they have started
        return sum(pool.map(partial(_release, node_id, SECONDS), range(processes))) / SECONDS


def _release(node_id: int, seconds: float, number: int) -> int:
    from autorun.dispatch import releasing
    from autorun.dispatch.publishing import redirected
    from autorun.models import Chunk

    releases, ends_at = 0, time.monotonic() + seconds
    mine = Chunk.objects.queued().filter(node_id=node_id).order_by("pk")
    with redirected(lambda messages: None):
        while time.monotonic() < ends_at:
            ids = mine.values_list("pk", flat=True)[number : number + 1]
            Chunk.objects.filter(pk__in=list(ids)).update(state=Chunk.State.FINISHED)
            releasing.release(node_id)
            releases += 1
    return releases


if __name__ == "__main__":
    django.setup()
    print(*(together(int(sys.argv[1]), number) for number in (1, PROCESSES)))
