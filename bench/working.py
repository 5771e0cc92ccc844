"""A real prefork worker on the broker of the benchmarks."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import current_app
from celery.utils.nodenames import host_format
from django.conf import settings
from django.db import connections

from bench import stage
from sample_app.processes import Processes

BROKER = os.environ.get("AUTORUN_BENCH_BROKER", "rabbitmq")


@contextmanager
def real_worker() -> Iterator[None]:
    """Run two worker processes; the queue is empty before and after the block."""
    logs = Path(tempfile.mkdtemp(prefix="autorun-bench-"))
    log = logs / "worker.log"
    _purge()
    with Processes(logs=logs, patience=5) as processes:
        connections.close_all()
        processes.start(
            "worker",
            *("-m", "celery", "-A", "settings", "worker", "--concurrency", "2"),
            *("-n", _name(), "--loglevel", "ERROR"),
        )
        stage.wait_until(lambda: _answers(processes), seconds=60, every=0.2)
        yield
    _purge()
    if text := log.read_text().strip():
        print("\n".join(text.splitlines()[-20:]), file=sys.stderr)


def _answers(processes: Processes) -> bool:
    if processes.ended():
        raise RuntimeError("The worker ended before it was ready.")
    return bool(current_app.control.ping(destination=[_name()], timeout=0.5))


def _name() -> str:
    return host_format(f"bench-{os.getpid()}@%h")


def _purge() -> None:
    with current_app.connection_for_write() as broker:
        channel: Any = broker.default_channel
        channel.queue_delete(settings.CELERY_TASK_DEFAULT_QUEUE)
