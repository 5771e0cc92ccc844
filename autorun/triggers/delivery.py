"""Hands saved rows to the broker from a thread, so that no save waits for it.

Rows saved during a delivery, or within a few milliseconds of each other, go out together. If no
broker takes them, they are written to the database (`SpilledTrigger`) for upkeep.
"""

import atexit
import multiprocessing
import multiprocessing.util
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from celery import _state, current_app, signals
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.hooks import call, timeout_of
from autorun.declare.sets import RELATED, Related, label_of_related
from autorun.dispatch import publishing
from autorun.exceptions import AutorunError
from autorun.models import SpilledTrigger
from autorun.state.keys import is_storable
from autorun.state.logs import get_logger
from autorun.state.probes import crash_point

logger = get_logger(__name__)

PLAN = "autorun.plan"
PLAN_SPILLED = "autorun.plan_spilled"
#: Begins the label of deleted rows.
DELETED = "deleted:"
#: Begins the label of rows that triggers in the database have noted.
WRITTEN = "written:"
KEYS_PER_MESSAGE = 1_000
SOME_KEYS = 5  # that a line of the log names

CAPACITY = 10_000  # primary keys that may wait before a save moves them to the database
LINGER = 0.02  # seconds, or as long as leaves the thread a fortieth of the time
LONGEST_LINGER = 0.25  # seconds
QUIET = 0.05  # seconds without a delivery, after which the next one does not linger
LINGER_AFTER_FAILURE = 0.5  # seconds: with the broker away every delivery is a database write
EXIT_DEADLINE = 3.0  # seconds

#: Primary keys by the label of their model.
Saved = dict[str, set[Any]]


def connect() -> None:
    """Deliver the waiting rows before a Celery worker, or one of its pool's processes, ends."""
    for signal in (signals.worker_process_shutdown, signals.worker_shutdown):
        signal.connect(_deliver_at_shutdown, weak=False, dispatch_uid="autorun.delivery")
    # Otherwise only the thread that created the project's Celery app would know it: all others
    # would publish to Celery's default broker on localhost. If it is created later, Celery sees to
    # that, unless asking for the app has made one in its place.
    if _state._tls.current_app is not None:  # type: ignore[attr-defined]
        current_app.set_default()


@cache
def subscriptions() -> dict[str, list[Runner]]:
    """The runners with ON_SAVE by the label of their model, until others are registered."""
    found: dict[str, list[Runner]] = {}
    for runner in registry.runners():
        with suppress(AutorunError):  # a system check says what is wrong with it
            if runner.ON_SAVE:
                found.setdefault(call(runner, "get_model")._meta.label, []).append(runner)
    return found


class Dependents(NamedTuple):
    """Runners of one model with ON_SAVE, and the related rows that name rows of theirs."""

    runners: list[Runner]
    sources: list[Related]


@cache
def dependents() -> dict[str, Dependents]:
    """Dependents by the label under which their rows are delivered, as `subscriptions`."""
    found: dict[str, Dependents] = {}
    for label, runners in subscriptions().items():
        for runner in runners:
            with suppress(AutorunError):  # as above
                for source in call(runner, "related"):
                    name = label_of_related(label, source.lookup)
                    known = found.setdefault(name, Dependents([], []))
                    if runner not in known.runners:
                        known.runners.append(runner)
                    if source not in known.sources:
                        known.sources.append(source)
    return found


@cache
def runners_of(label: str) -> Sequence[Runner]:
    """Return the runners of this process that plan the rows delivered under that label."""
    if label.startswith(RELATED):
        return dependents()[label].runners if label in dependents() else ()
    return subscriptions().get(label.rpartition(":")[2], ())


for _known in (subscriptions, dependents, runners_of):
    registry.on_change(_known.cache_clear)


def label_of_deleted(label: str, using: str = DEFAULT_DB_ALIAS) -> str:
    """The label under which deleted rows of a model, in that database, are delivered."""
    # A worker of an older version does not know it, and leaves the rows to other workers, as it
    # does if it has no runner for them.
    return f"{DELETED}{using}:{label}"


def submit(saved: Saved) -> None:
    """Have the rows planned soon, or now if delivery is immediate. The sets must not be reused."""
    crash_point("save.committed")
    if settings.PUBLISH == "inline" or publishing.is_immediate():
        deliver(saved)
    else:
        _deliverer.put(saved)


def wait_until_idle(timeout: float = 5.0) -> bool:
    """Wait until this process has delivered all, for tests; False after `timeout` seconds."""
    return _deliverer.wait_until_idle(timeout)


def deliver_waiting(timeout: float = EXIT_DEADLINE) -> None:
    """Deliver the waiting rows; write to the database those left after `timeout` seconds."""
    _deliverer.deliver_waiting(timeout)


def deliver(saved: Mapping[str, set[Any]]) -> bool:
    """Publish or spill; return whether the broker took all rows. Never raises an Exception."""
    try:
        publishing.publish(_messages(saved))
    except Exception as error:  # noqa: BLE001
        _warn("%s: no broker took %d saved rows. Upkeep plans them. %s", saved, error)
        spill(saved)
        return False
    return True


def spill(saved: Mapping[str, set[Any]]) -> None:
    """Write the rows down for upkeep, in one INSERT. Never raises an Exception."""
    try:
        write_down(saved)
    except Exception:
        line = "%s: %d saved rows could not be stored. The next sweep finds them."
        logger.exception(line, _labels(saved), _count(saved))


def storable(label: object, keys: object) -> set[Any]:
    """Those of a message's keys that the database can store; logs the others.

    Raises ValueError for a message that no process of autorun has sent.
    """
    longest = SpilledTrigger._meta.get_field("model_label").max_length or 0
    is_label = isinstance(label, str) and 0 < len(label) <= longest and "\0" not in label
    if not (is_label and is_storable(label)) or not isinstance(keys, (list, tuple, set)):
        raise ValueError(f"{label!a:.100} and {keys!a:.100} do not name saved rows.")
    if others := [key for key in keys if not is_storable(key)]:
        logger.warning("%s: some keys are of no row, such as %.200a.", label, others[:SOME_KEYS])
    return {key for key in keys if is_storable(key)}


def write_down(saved: Mapping[str, set[Any]]) -> None:
    """Leave the rows to upkeep. Raises what the database does."""
    spilled = [SpilledTrigger(model_label=label, keys=keys) for label, keys in _portions(saved)]
    # Its own savepoint: an error must not spoil a transaction that is open in this thread.
    with transaction.atomic(using=settings.DATABASE):
        SpilledTrigger.objects.bulk_create(spilled)
    crash_point("spill.written")


class _Deliverer:
    """The thread of this process, started by its first save, and the rows that wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: Saved = {}
        self._in_flight: Saved = {}
        self._hurry = threading.Event()
        self._exiting = False
        self._thread: threading.Thread | None = None

    def put(self, saved: Saved) -> None:
        overflow: Saved = {}
        with self._changed:
            if _count(self._waiting) >= CAPACITY:
                # The thread is stuck: this save writes all down, so that the next ones need not.
                overflow, self._waiting = self._waiting, {}
            _merge(self._waiting, saved)
            if not self._exiting and self._is_running():
                saved = {}
            else:
                saved, self._waiting = self._waiting, {}
            self._changed.notify_all()
        if overflow:
            _warn("%s: %d saved rows wait for the broker. Upkeep plans them.", overflow)
            spill(overflow)
        if saved:
            deliver(saved)

    def wait_until_idle(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._in_flight), timeout)

    def deliver_waiting(self, timeout: float) -> None:
        self._hurry.set()
        try:
            if self.wait_until_idle(timeout):
                return
            with self._changed:
                # The rows in flight may never arrive; planning them twice does no harm.
                left, self._waiting = self._waiting, {}
                _merge(left, self._in_flight)
            _warn("%s: %d saved rows are left at exit. Upkeep plans them.", left)
            spill(left)
        finally:
            self._hurry.clear()

    def deliver_for_good(self) -> None:
        """Deliver what waits, and rely on no thread from now on: the interpreter ends."""
        with self._changed:
            self._exiting = True
        self.deliver_waiting(EXIT_DEADLINE)

    def _is_running(self) -> bool:
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._work, name="autorun-delivery", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending, or there are too many threads
                return False
            self._thread = thread
            _deliver_when_child_ends()
        return True

    def _work(self) -> None:
        delivered = True
        linger = LINGER
        ended_at = float("-inf")
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
            if not delivered:
                self._hurry.wait(LINGER_AFTER_FAILURE)
            elif time.monotonic() - ended_at < QUIET:
                self._hurry.wait(linger)
            with self._changed:
                self._in_flight, self._waiting = self._waiting, {}
                taken = self._in_flight
            began_at = time.monotonic()
            try:
                delivered = not taken or deliver(taken)
            except BaseException:  # noqa: BLE001  a body may have raised it in this thread
                delivered = False
                with self._changed:
                    _merge(self._waiting, taken)
            finally:
                ended_at = time.monotonic()
                linger = min(max(LINGER, 40 * (ended_at - began_at)), LONGEST_LINGER)
                # Spilling has opened one; the thread may be idle for days.
                connections.close_all()
                with self._changed:
                    self._in_flight = {}
                    self._changed.notify_all()


def _messages(saved: Mapping[str, set[Any]]) -> list[publishing.Message]:
    options: dict[str, Any] = {"queue": settings.QUEUE, "priority": publishing.urgent_priority()}
    messages = []
    for label, keys in _portions(saved):
        # It may also execute the run of a lone row.
        timeouts = map(timeout_of, subscriptions().get(label, ()))
        limits = list(map(publishing.time_limit_after, timeouts))
        longest = max(filter(None, limits), default=None) if None not in limits else None
        arguments = (label, keys, time.time()) if label.startswith(DELETED) else (label, keys)
        messages.append(publishing.Message(PLAN, arguments, **options, time_limit=longest))
    return messages


def _portions(saved: Mapping[str, set[Any]]) -> Iterator[tuple[str, list[int | str]]]:
    for label, pks in saved.items():
        # A row that is created again is planned with the deletion of its predecessor, and after it.
        anew = saved.get(label_of_deleted(label)) if len(saved) > 1 else None
        keys = [pk if type(pk) is int else str(pk) for pk in (pks - anew if anew else pks)]
        for start in range(0, len(keys), KEYS_PER_MESSAGE):
            yield label, keys[start : start + KEYS_PER_MESSAGE]


def _merge(into: Saved, saved: Mapping[str, set[Any]]) -> None:
    for label, pks in saved.items():
        into.setdefault(label, set()).update(pks)


def _count(saved: Mapping[str, set[Any]]) -> int:
    return sum(len(pks) for pks in saved.values())


def _labels(saved: Mapping[str, set[Any]]) -> str:
    return ", ".join(sorted(saved))


def _warn(line: str, saved: Mapping[str, set[Any]], *args: object) -> None:
    logger.warning(line, _labels(saved), _count(saved), *args)


def _deliver_at_shutdown(**kwargs: Any) -> None:
    deliver_waiting()


def _deliver_at_exit() -> None:
    _deliverer.deliver_for_good()


def _deliver_when_child_ends() -> None:
    """Children of `multiprocessing` run its finalizers where other processes run `atexit`'s."""
    if multiprocessing.parent_process() is not None:
        multiprocessing.util.Finalize(None, _deliver_at_exit, exitpriority=0)


def _reset() -> None:
    # The thread stays in the parent, and delivers the waiting rows there. Its lock may be held.
    global _deliverer  # noqa: PLW0603
    _deliverer = _Deliverer()


_deliverer = _Deliverer()
atexit.register(_deliver_at_exit)
os.register_at_fork(after_in_child=_reset)
