"""Rounds of upkeep in a Celery worker, beside its pool: they take no place in it, and no message.

The children of a prefork pool are forked from the worker's main process: a database connection that
is open there would be theirs as well. So upkeep has a process of its own, which is forked as they
are, and before them. Other pools do not fork, and a thread of the worker makes the rounds.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from billiard import Process
from celery import bootsteps, signals
from celery.apps.worker import Worker
from celery.concurrency.prefork import TaskPool
from django.db import InterfaceError, OperationalError, close_old_connections, connections

from autorun.conf import settings
from autorun.dispatch.messages import queues_in_use
from autorun.state import draining
from autorun.state.logs import get_logger

logger = get_logger(__name__)

#: Seconds between two checks by upkeep's process whether the worker is alive.
LOOK_EVERY = 0.5

#: The most seconds in which it notes that the worker was killed.
LONGEST_ENDING = 5.0

#: The most seconds between two checks by a worker that is one of many, if an interval is shorter.
LONGEST_PAUSE = 45.0
#: The bounds of a pause as parts of it, so that workers started together check at different times.
JITTER = (0.8, 1.2)

_stop = threading.Event()
_make_round: Callable[[], bool]


def next_pause(pause: float, *, is_made: bool) -> float:
    """The seconds until this process looks again whether a round is due; the last were `pause`.

    The more workers there are, the more often one finds that another has made the round, and the
    less often it looks; often enough to show that it lives, and to notice that it is drained.
    """
    longest = max(settings.UPKEEP_INTERVAL, LONGEST_PAUSE)
    return min(max(pause / 2, settings.UPKEEP_INTERVAL) if is_made else pause * 1.5, longest)


def add_to(worker: Any, make_round: Callable[[], bool]) -> None:
    """Let a worker that is about to start make rounds of upkeep until it ends."""
    global _make_round  # noqa: PLW0603
    _make_round = make_round
    if not isinstance(worker, Worker):  # a thread of a project's test
        return
    _stop.clear()
    worker.app.steps["consumer"].add(Upkeep)
    signals.worker_shutting_down.connect(_end, weak=False, dispatch_uid="autorun.upkeep.bootstep")


class Upkeep(bootsteps.StartStopStep):
    """Celery's consumer creates it before the pool forks, and starts it at every connection."""

    label = "Autorun's upkeep"

    def create(self, consumer: Any) -> None:
        self._timers: list[Any] = []
        self._left: set[str] = set()  # the queues that it consumed until it was drained
        self._process: Process | None = None
        self._forks = issubclass(consumer.controller.pool_cls, TaskPool)
        draining.consume_from(consumer.app.amqp.queues.consume_from)
        if self._forks:
            self._ensure_alive()
        else:
            _start_rounds()

    def start(self, consumer: Any) -> None:
        self.stop(consumer)
        repeatedly = consumer.timer.call_repeatedly
        self._timers.append(repeatedly(LOOK_EVERY, self._consume, (consumer,)))
        if self._forks:
            every = max(LOOK_EVERY, settings.UPKEEP_INTERVAL)
            self._timers.append(repeatedly(every, self._ensure_alive))

    def stop(self, consumer: Any) -> None:
        while self._timers:
            self._timers.pop().cancel()

    def terminate(self, consumer: Any) -> None:
        self.stop(consumer)

    def _ensure_alive(self) -> None:
        if _stop.is_set() or (self._process is not None and self._process.is_alive()):
            return
        if self._process is not None:
            logger.warning("The process of upkeep has died; another one is started.")
        self._process = Process(target=_live_with, args=(os.getpid(),), name="autorun-upkeep")
        self._process.daemon = True  # ended with the worker
        self._process.start()

    def _consume(self, consumer: Any) -> None:
        """Consume autorun's queues unless the worker is drained."""
        if consumer.task_consumer is None:
            return
        if not draining.has_begun():
            while self._left:
                consumer.call_soon(_consume_again, consumer, self._left.pop())
            return
        for queue in filter(consumer.task_consumer.consuming_from, queues_in_use()):
            self._left.add(queue)
            consumer.call_soon(consumer.cancel_task_queue, queue)


def _consume_again(consumer: Any, queue: str) -> None:
    # Before 5.7, Celery consumes it now, and no longer after the next reconnection.
    queues = consumer.app.amqp.queues
    queues.select_add(queues[queue])
    consumer.add_task_queue(queue)


def _end(**_: Any) -> None:
    _stop.set()


def _live_with(parent: int) -> None:
    """Make rounds for as long as the parent lives, even if it is killed."""
    for each in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    # In a thread with its own connections, because those of this thread are the parent's.
    rounds = _start_rounds()
    while os.getppid() == parent and rounds.is_alive():
        time.sleep(LOOK_EVERY)
    if os.getppid() != parent:
        ending = threading.Thread(target=draining.end, daemon=True)
        ending.start()
        ending.join(LONGEST_ENDING)
    os._exit(0)


def _start_rounds() -> threading.Thread:
    thread = threading.Thread(target=_make_rounds, name="autorun-upkeep", daemon=True)
    thread.start()
    return thread


def _make_rounds() -> None:
    pause = settings.UPKEEP_INTERVAL
    while True:
        try:
            close_old_connections()
            draining.look()
            pause = next_pause(pause, is_made=_make_round())
            close_old_connections()
        except (OperationalError, InterfaceError) as away:
            logger.warning("Upkeep: no database: %s", away)
            connections.close_all()
        except Exception:
            logger.exception("Upkeep: a round failed; the next one tries again.")
            connections.close_all()
        if _stop.wait(pause * random.uniform(*JITTER)):
            connections.close_all()
            return
