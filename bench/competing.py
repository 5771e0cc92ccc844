"""Prints how often in a second one process, and several together, release one node.

Each ends a chunk that it executes, releases the node as a worker does, and starts another chunk,
over and over. The time of its own statements is left out.
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
        list(pool.map(partial(_release, node_id), [0.1] * processes))  # they have started
        return sum(pool.map(partial(_release, node_id), [SECONDS] * processes))


def _release(node_id: int, seconds: float) -> float:
    from autorun.dispatch import releasing
    from autorun.dispatch.publishing import redirected
    from autorun.models import Chunk, Node

    digest = Node.objects.get(pk=node_id).digest
    releases, releasing_for, began_at = 0, 0.0, time.monotonic()
    with redirected(lambda messages: None):
        while time.monotonic() < began_at + seconds:
            mine = _start(node_id)
            Chunk.objects.filter(pk=mine).update(state=Chunk.State.FINISHED)
            ended_at = time.monotonic()
            releasing.release(node_id, digest)
            releases += 1
            releasing_for += time.monotonic() - ended_at
    return releases / releasing_for


def _start(node_id: int) -> int:
    """Start a queued chunk, or else a waiting one, that no other process starts; its id."""
    from autorun.models import Chunk
    from bench import stage

    for state in (Chunk.State.QUEUED, Chunk.State.WAITING):
        found = stage.execute(
            f"UPDATE autorun_chunk SET state = {Chunk.State.RUNNING:d} WHERE id = ("
            f"SELECT id FROM autorun_chunk WHERE node_id = %s AND state = {state:d} "
            "ORDER BY priority DESC, id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id",
            [node_id],
        )
        if found:
            return int(found[0])
    raise LookupError("No chunk is left.")


if __name__ == "__main__":
    django.setup()
    print(*(together(int(sys.argv[1]), number) for number in (1, PROCESSES)))
