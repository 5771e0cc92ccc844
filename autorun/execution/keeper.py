"""A thread beside the one that works: holds the lease, and takes away what takes too long."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

from billiard.process import current_process
from django.db import DatabaseError, InterfaceError, connections

from autorun.conf import settings
from autorun.dispatch.releasing import release
from autorun.exceptions import LeaseLost, RunTimeout
from autorun.execution.assignments import Assignment
from autorun.execution.work import Work
from autorun.state.leases import extend

logger = logging.getLogger(__name__)

#: How often the keeper looks, in seconds.
INTERVAL = 0.5
#: A chunk that takes longer than this gives what it has not started to other workers.
HAND_OVER_AFTER = 2.0
#: A body that does not react to its time limit is given up after so many seconds more.
GRACE = 5.0


class Keeper:
    """Keeps the lease of `work` for the length of a `with` block.

    `follow_up` does what the end of a chunk gives rise to, where its thread never gets there.
    """

    def __init__(self, work: Work, *, follow_up: Callable[[], object] = lambda: None) -> None:
        self.work = work
        self.follow_up = follow_up
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="autorun-keeper", daemon=True)
        self._extended_at = time.monotonic()

    def __enter__(self) -> Keeper:
        # What an open transaction of the caller's has written no other connection can see. It is
        # so in tests and in eager mode, where nobody else can take the lease either.
        if not connections[settings.DATABASE].in_atomic_block:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        interval = min(INTERVAL, settings.HEARTBEAT)
        try:
            while not self._stop.wait(interval):
                try:
                    self._look()
                except LeaseLost:
                    self.work.abandon()
                    return
                except (DatabaseError, InterfaceError) as error:
                    # The lease runs out only after several beats; the next one may get through.
                    logger.warning("%s: no heartbeat: %s", self._name(), error)
                    connections[settings.DATABASE].close()
                except Exception:
                    # Without a keeper the lease would run out, and the chunk be run twice.
                    logger.exception("%s: its keeper goes on.", self._name())
        finally:
            connections.close_all()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._extended_at >= settings.HEARTBEAT:
            if not extend(self.work.lease):
                logger.warning("%s: the lease went to another worker.", self._name())
                raise LeaseLost
            self._extended_at = now
        if (overdue := self._overdue(now)) is not None and self._give_up(overdue):
            raise LeaseLost
        is_adaptive = self.work.runner.BATCH_SIZE is None
        if (
            is_adaptive
            and now - self.work.began_at >= HAND_OVER_AFTER
            and self.work.has_unstarted()
        ):
            number = self.work.hand_over()
            logger.info("%s: handed %d runs over.", self._name(), number)
            self._release()

    def _overdue(self, now: float) -> Assignment | None:
        """The run that should have been stopped long ago, if there is one."""
        with self.work.lock:
            if self.work.timeout is None:
                return None
            is_late = now - self.work.current_since > self.work.timeout + GRACE
            return self.work.current if is_late else None

    def _give_up(self, assignment: Assignment) -> bool:
        """Fail the run that does not come back; where it has a process to itself, end that.

        False where it did come back.
        """
        error = RunTimeout(
            f"The run took longer than {self.work.timeout:g} s, the runner's TIMEOUT, "
            "and did not react to being stopped."
        )
        if not self.work.give_up(assignment, error):
            return False
        logger.error("%s: a run did not react to its time limit; it is given up.", self._name())
        try:
            self._release()
            self.work.announce()
            self.follow_up()
        finally:
            if _is_pool_child():
                os.kill(os.getpid(), signal.SIGKILL)
        return True

    def _release(self) -> None:
        """Let the node's next chunks go; where the database is away, upkeep does."""
        try:
            release(self.work.lease.chunk.node_id)
        except (DatabaseError, InterfaceError) as error:
            logger.warning("%s: nothing was released: %s", self._name(), error)
            connections[settings.DATABASE].close()

    def _name(self) -> str:
        return f"{self.work.runner.label}, chunk {self.work.lease.chunk.pk}"


def _is_pool_child() -> bool:
    """Whether this process is one of a prefork pool, which replaces it when it dies."""
    return bool(getattr(current_process(), "_daemonic", False) or current_process().daemon)
