"""The keeper: a second thread that extends a chunk's lease and ends runs that take too long."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from billiard.process import current_process
from django.db import DatabaseError, InterfaceError, connections

from autorun.conf import settings
from autorun.dispatch.releasing import release_after
from autorun.exceptions import LeaseLost, RunTimeout
from autorun.execution.calls import Call
from autorun.execution.giving_way import gives_way
from autorun.execution.work import Work
from autorun.state.leases import extend, extend_unasked
from autorun.state.logs import get_logger

logger = get_logger(__name__)

#: Seconds between two checks.
INTERVAL = 0.5
#: Seconds between two while the chunk may give way to saved rows.
LOOK_EVERY = 0.05
#: Seconds after which a chunk gives its unstarted runs to other workers.
HAND_OVER_AFTER = 2.0
#: Seconds after its time limit at which a body that ignores it has failed.
GRACE = 5.0
#: Seconds before a chunk that a process cannot keep is sent again.
PAUSE = 1.0


@dataclass
class Keeper:
    """Keeps the lease of `work` for the length of a `with` block.

    `follow_up` does what follows a chunk if the working thread does not get there.
    """

    work: Work
    follow_up: Callable[[], object]
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _may_give_way: bool = False
    _extended_at: float = field(default_factory=time.monotonic)

    def __enter__(self) -> Keeper:
        # In tests and in eager mode an open transaction hides the chunk from the keeper's
        # connection, and from other workers, too.
        if not connections[settings.DATABASE].in_atomic_block:
            try:
                keeper = threading.Thread(target=self._keep, name="autorun-keeper", daemon=True)
                keeper.start()
            except RuntimeError as error:  # there are too many threads
                name = self._name()
                logger.error("%s: its lease cannot be kept: %s. It is given back.", name, error)
                self.work.assign()
                self.work.give_back(again_in=PAUSE)
                _end_pool_process()
                raise LeaseLost(str(error)) from error
            self._thread = keeper
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _keep(self) -> None:
        chunk, is_adaptive = self.work.lease.chunk, self.work.runner.BATCH_SIZE is None
        is_urgent = chunk.priority >= chunk.Priority.LIVE
        self._may_give_way = is_adaptive and chunk.size > 1 and not is_urgent
        try:
            while True:
                try:
                    if self._stop.wait(self._interval()):
                        return
                    self._check()
                except LeaseLost:
                    self.work.abandon()
                    return
                except (DatabaseError, InterfaceError) as error:
                    # The lease outlasts several heartbeats; the next one may succeed.
                    logger.warning("%s: no heartbeat: %s", self._name(), error)
                    connections[settings.DATABASE].close()
                except BaseException:  # which a body may have raised in this thread
                    # Without a keeper the lease would run out, and the chunk would run twice.
                    logger.exception("%s: its keeper continues.", self._name())
        finally:
            connections.close_all()

    def _interval(self) -> float:
        return min(LOOK_EVERY if self._may_give_way else INTERVAL, settings.HEARTBEAT)

    def _check(self) -> None:
        now = time.monotonic()
        if now - self._extended_at >= settings.HEARTBEAT:
            if not self._extend():
                logger.warning("%s: the lease went to another worker.", self._name())
                raise LeaseLost
            self._extended_at = now
        if self.work.body.stop:
            self.work.cancel()  # once more: code may have swallowed the exception
        if (overdue := self._overdue(now)) is not None and self._fail(overdue):
            raise LeaseLost
        if self.work.runner.BATCH_SIZE is not None:
            return
        if now - self.work.began_at >= HAND_OVER_AFTER:
            self._may_give_way = False
            if number := self.work.hand_over():
                logger.info("%s: handed %d runs over.", self._name(), number)
                self._release()
        elif self._may_give_way and gives_way(self.work.lease.chunk, self.work.began_at):
            self._may_give_way = False
            # Its end, which is near, releases the next chunks.
            number = self.work.hand_over(in_one_chunk=True)
            logger.info("%s: %d runs give way to saved rows.", self._name(), number)

    def _extend(self) -> bool:
        """Extend the lease, and cancel the runs that should be.

        Return whether it was still held.
        """
        work = self.work
        changes: dict[str, Any] = {} if work.doing is None else {"doing": work.doing}
        if extend_unasked(work.lease, **changes):
            return True
        work.cancelled = set(work.lease.held().values_list("cancelling", flat=True).first() or ())
        if not extend(work.lease, **changes):
            return False
        work.cancel()
        return True

    def _overdue(self, now: float) -> Call | None:
        """A call that ignored its time limit or its cancellation."""
        with self.work.lock:
            if self.work.body.stop and now - self.work.stopped_at > GRACE:
                return next(iter(self.work.calls), None)
            if self.work.body.timeout is None:
                return None
            latest = now - self.work.body.timeout - GRACE
            return next((each for each in self.work.calls if each.since < latest), None)

    def _fail(self, call: Call) -> bool:
        """Fail the call; False if it has returned. End the process if it belongs to a pool."""
        error = RunTimeout(
            f"The run took longer than {self.work.body.timeout or 0:g} s, the runner's TIMEOUT, "
            "and did not react to being stopped."
        )
        if not self.work.fail_call(call, error):
            return False
        problem = "that it was cancelled" if self.work.body.stop else "its time limit, and failed"
        logger.error("%s: a run did not react to %s.", self._name(), problem)
        try:
            self.work.announce()
            self.follow_up()
        finally:
            _end_pool_process()
        return True

    def _release(self) -> None:
        """Release the next chunks; upkeep does if the database is unreachable."""
        try:
            release_after(self.work.lease.chunk)
        except (DatabaseError, InterfaceError) as error:
            logger.warning("%s: nothing was released: %s", self._name(), error)
            connections[settings.DATABASE].close()

    def _name(self) -> str:
        return f"{self.work.runner.label}, chunk {self.work.lease.chunk.pk}"


def _end_pool_process() -> None:
    """End this process if it belongs to a prefork pool, which replaces it."""
    if getattr(process := current_process(), "_daemonic", False) or process.daemon:
        os.kill(os.getpid(), signal.SIGKILL)
