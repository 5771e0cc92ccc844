"""Messages to the broker, over a connection that never waits for long.

A silent broker would block Celery's own `.delay()` for ever. So each process has one connection for
publishing, with short timeouts, that pauses after a failure: callers do not all wait for them.
"""

import os
import reprlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from amqp.exceptions import ChannelError, MessageNacked
from celery import current_app
from celery.exceptions import QueueNotFound
from django.core.signals import setting_changed
from kombu import Connection, Producer
from kombu.exceptions import EncodeError

from autorun.conf import settings
from autorun.exceptions import BrokerUnavailable, MessagesRefused
from autorun.state.masking import masked
from autorun.state.probes import crash_point

TIMEOUT = 2.0  # seconds to connect, and to send or read anything
PAUSE_AFTER_FAILURE = 1.0  # seconds
AMQP = ("amqp", "amqps", "pyamqp")
#: The broker refuses one message: its queue is declared otherwise, locked, full, forbidden or gone.
ABOUT_A_MESSAGE = (ChannelError, MessageNacked, QueueNotFound, EncodeError)


@dataclass(frozen=True)
class Message:
    """A call of a registered task. `expires` and `time_limit` are seconds."""

    task: str
    args: tuple[Any, ...] = ()
    queue: str | None = None
    priority: int | None = None
    expires: float | None = None
    time_limit: float | None = None

    @property
    def queue_name(self) -> str:
        """The queue that Celery sends it to: its own, that of a route, or Celery's default."""
        if self.queue:
            return self.queue
        routed = current_app.amqp.router.route({}, self.task, self.args).get("queue")
        name: str | None = getattr(routed, "name", None)
        return name or current_app.conf.task_default_queue

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `apply_async`, without those that are None."""
        names = ("queue", "priority", "expires", "time_limit")
        given = {name: getattr(self, name) for name in names}
        # A project's own soft limit would be shorter, as it is meant for tasks of one job.
        given["soft_time_limit"] = self.time_limit
        return {name: value for name, value in given.items() if value is not None}


def time_limit_after(seconds: float | None) -> float | None:
    """The time limit of a message whose runs have all been stopped after so many seconds.

    It is the last resort, for a body that holds the interpreter's lock, and comes two leases after
    the others.
    """
    return None if seconds is None else seconds + 2 * settings.LEASE


#: A message that the broker refused, and why.
Refusal = tuple[Message, BaseException]


def publish(messages: Sequence[Message]) -> None:
    """Send the messages, in order.

    Raises BrokerUnavailable if the broker failed or was silent; it may still have accepted some.
    Raises MessagesRefused for those that it refused, after all others are sent.
    """
    if _sink is not None:
        _sink(messages)
    elif _is_eager():
        _execute_eagerly(messages)
    else:
        _courier.publish(messages)


def is_immediate() -> bool:
    """Whether `publish` executes the tasks itself, without a broker."""
    return _sink is not None or _is_eager()


@contextmanager
def redirected(sink: Callable[[Sequence[Message]], object]) -> Iterator[None]:
    """Within the block, give all messages to `sink` instead of the broker."""
    global _sink  # noqa: PLW0603
    before, _sink = _sink, sink
    try:
        yield
    finally:
        _sink = before


_sink: Callable[[Sequence[Message]], object] | None = None
_known_eager: tuple[object, object, bool] | None = None


def _is_eager() -> bool:
    """Celery's `task_always_eager`, cached: its lookup takes longer than the rest of a save."""
    global _known_eager  # noqa: PLW0603
    conf = current_app.conf
    changes = conf.changes or {}  # what was set after Celery was configured, as tests do
    state = (len(changes), changes.get("task_always_eager"))
    known = _known_eager
    if known is None or known[0] is not conf or known[1] != state:
        _known_eager = known = (conf, state, bool(conf.task_always_eager))
    return known[2]


def _forget_eager(**kwargs: Any) -> None:
    global _known_eager  # noqa: PLW0603
    _known_eager = None


setting_changed.connect(_forget_eager, dispatch_uid="autorun.dispatch.publishing")


def _execute_eagerly(messages: Sequence[Message]) -> None:
    first_error: Exception | None = None
    for message in _eager.taken_with(messages):
        try:
            current_app.tasks[message.task].apply_async(message.args, **message.options())
        except Exception as error:  # noqa: BLE001  Celery's task_eager_propagates
            first_error = first_error or error
    if first_error is not None:
        raise first_error


@contextmanager
def executed_afterwards() -> Iterator[None]:
    """If Celery is eager, execute what the block publishes at its end."""
    try:
        with _eager.held():
            yield
    finally:
        _execute_eagerly(())


def urgent_priority() -> int | None:
    """The message priority that the project's broker delivers first; None is first on Redis."""
    return 9 if _scheme() in (*AMQP, "sqlite") else None


class MessageQueue:
    """Messages to execute one after the other: those that a message causes follow it.

    Nested calls would go as deep as there are chunks, as each finished chunk releases another.
    """

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._is_taken = False

    def add(self, messages: Sequence[Message]) -> None:
        self._messages.extend(messages)

    def taken_with(self, messages: Sequence[Message] = ()) -> Iterator[Message]:
        """Add `messages`; yield all messages, unless a loop in progress will."""
        self._messages.extend(messages)
        if self._is_taken:
            return
        self._is_taken = True
        try:
            while self._messages:
                yield self._messages.popleft()
        finally:
            self._messages.clear()
            self._is_taken = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Yield no message within the block."""
        before, self._is_taken = self._is_taken, True
        try:
            yield
        finally:
            self._is_taken = before


class _EagerQueue(MessageQueue, threading.local):
    """One queue for each thread."""


class _Courier:
    """The process's connection for publishing; one thread at a time uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._broker: object = None
        self._failed_at = float("-inf")

    def publish(self, messages: Sequence[Message]) -> None:
        with self._lock:
            if self._broker != (broker := _broker()):
                self._drop()
                self._broker = broker
                self._failed_at = float("-inf")
            waiting = self._failed_at + PAUSE_AFTER_FAILURE - time.monotonic()
            if waiting > 0:
                raise BrokerUnavailable("It did not answer a moment ago.")
            refused = self._send_or_raise(messages)
        if refused:
            raise MessagesRefused(_words_for(refused), [message for message, _ in refused])

    def _send_or_raise(self, messages: Sequence[Message]) -> list[Refusal]:
        was_open = self._connection is not None
        try:
            return self._send(messages)
        except Exception as error:
            self._drop()
            # The other end may have closed an idle connection; a silent broker is not asked twice.
            if not was_open or _is_timeout(error):
                self._failed_at = time.monotonic()
                cause = _cause_of(error)
                raise BrokerUnavailable(masked(f"{type(cause).__name__}: {cause}")) from error
        return self._send_or_raise(messages)

    def _send(self, messages: Sequence[Message]) -> list[Refusal]:
        refused: list[Refusal] = []
        for message in messages:
            try:
                self._send_one(message)
            except Exception as error:
                cause = _cause_of(error)
                if not _is_about_a_message(cause):
                    raise
                self._drop()  # the broker has closed the channel
                refused.append((message, cause))
            else:
                crash_point("dispatch.sending")
        return refused

    def _send_one(self, message: Message) -> None:
        if self._connection is not None and not self._connection.connected:
            self._drop()  # kombu would reopen it with its own, longer timeouts
        if self._connection is None or self._producer is None:
            self._connection = open_connection()
            self._producer = Producer(self._connection.default_channel)
        options = {
            **message.options(),
            "producer": self._producer,
            # Without a policy a refused connection takes seconds longer to be reported.
            "retry_policy": {"max_retries": 0},
            # Celery's own of a thousand keys takes longer than the message itself.
            "argsrepr": reprlib.repr(message.args),
        }
        current_app.tasks[message.task].apply_async(message.args, **options)

    def _drop(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            close_connection(connection)


def _cause_of(error: Exception) -> BaseException:
    """The driver's own error: kombu wraps it, and says less."""
    return error.__cause__ or error


def _is_about_a_message(cause: BaseException) -> bool:
    # Redis: the key of the queue is not a list.
    is_no_list = type(cause).__name__ == "ResponseError" and "WRONGTYPE" in str(cause)
    return is_no_list or isinstance(cause, ABOUT_A_MESSAGE)


def _words_for(refused: Sequence[Refusal]) -> str:
    queues = {message.queue_name: error for message, error in refused}
    words = " ".join(
        f"The broker accepts no message for the queue {queue}: {type(error).__name__}: {error}. "
        "Is the queue full, missing, or declared elsewhere with other arguments?"
        for queue, error in queues.items()
    )
    return masked(words)


def open_connection() -> Connection:
    """A connection to the broker that waits for nothing longer than TIMEOUT."""
    connection: Connection = current_app.connection_for_write(
        connect_timeout=TIMEOUT, transport_options=_impatient_options()
    )
    try:
        # One attempt for each host; by default kombu sleeps for two seconds and tries again.
        hosts = len(connection.alt) or 1
        connection.ensure_connection(max_retries=hosts - 1, interval_start=0, interval_step=0)
    except BaseException:
        close_connection(connection)
        raise
    return connection


def _broker() -> object:
    """The identity of the project's broker, as tests use several."""
    return current_app.main, str(current_app.conf.broker_write_url)


def _is_timeout(error: BaseException | None) -> bool:
    """Whether a wait timed out; redis has its own TimeoutError, and kombu wraps both."""
    while error is not None:
        if type(error).__name__ == "TimeoutError" or isinstance(error, TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def close_connection(connection: Connection) -> None:
    """Free the file descriptors without a word to a broker that may not answer."""
    transport: Any = connection.transport
    connection.collect(socket_timeout=0.1)
    # Redis's transport keeps its epoll object until it is garbage-collected.
    poller: Any = getattr(getattr(transport, "cycle", None), "poller", None)
    if hasattr(poller, "close"):
        poller.close()


def _impatient_options() -> dict[str, Any]:
    scheme = _scheme()
    if scheme in AMQP:
        # Without confirms, a RabbitMQ that is frozen or short of memory seems to take messages.
        return {"confirm_publish": True, "read_timeout": TIMEOUT, "write_timeout": TIMEOUT}
    if scheme in ("redis", "rediss", "sentinel"):
        return {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
    return {}


def _scheme() -> str:
    """The scheme of the (first) broker URL; Celery's default broker is RabbitMQ."""
    urls: str | list[str] = current_app.conf.broker_write_url or "amqp:"
    url = urls if isinstance(urls, str) else urls[0]
    return url.partition(":")[0].partition("+")[0]


def _reset() -> None:
    global _courier  # noqa: PLW0603
    _courier = _Courier()


_eager = _EagerQueue()
_courier = _Courier()
# A forked child can use neither the connection nor a lock that another thread held.
os.register_at_fork(after_in_child=_reset)
