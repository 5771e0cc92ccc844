"""The embedded broker: a kombu transport over one SQLite file, to try autorun without a server.

    register()
    app = Celery(broker="sqlite:////srv/app/broker.sqlite3")    # four slashes: an absolute path

The file is on a local disk and holds nothing but messages. Any number of processes of one machine
share it; all run as the same user, and the file is readable by that user only.

Delivery is at least once. A message that is fetched is leased to the connection that fetched it.
It is deleted when it is acknowledged, and returned when it is rejected, when the connection closes,
or when the connection's heartbeat has stopped for `lease` seconds, as after kill -9. As long as
the heartbeat continues a message stays leased, however long its task runs (`acks_late`) or waits
(ETA). Deadlines are in the machine's `time.time()`. A message that cannot be read, by the transport
or by its consumer, is moved to the table `dead_letter`.

A commit survives the death of any process. A power cut may lose the last commits, but does not
damage the file.

Transport options (Celery's `broker_transport_options`), in seconds except for the last:

- `polling_interval` (0.1): how long a consumer that found nothing waits before it checks again. An
  acknowledgement makes it check at once. If tasks are acknowledged late (`acks_late`) and shorter
  than the interval, a `worker_prefetch_multiplier` of at least 4, the default, keeps the pool busy;
- `lease` (30): how long a consumer may be without a heartbeat before it counts as dead;
- `busy_timeout` (10): how long to wait for other writers before "database is locked", which Celery
  retries;
- `max_message_bytes` (16 MiB): the sender of a larger message gets an error.

Priorities are 0 to 9, higher first. Direct, topic and fanout exchanges, `expiration` of messages,
and `expires` and `message_ttl` of queues work as in RabbitMQ; a queue that expires unused lives for
`lease` seconds at least.
"""

import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from kombu.entity import TRANSIENT_DELIVERY_MODE  # type: ignore[attr-defined]
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport.base import to_rabbitmq_queue_arguments  # type: ignore[attr-defined]
from kombu.utils.json import dumps, loads

from autorun.broker.brokerfile import BrokerFile, LeasedMessage
from autorun.state.logs import get_logger
from autorun.state.masking import masked

logger = get_logger("autorun.broker.transport")

# Not escaped in a URL that is shown. Quotes and spaces are: they would end the masked password.
_PLAIN = ":/@%?#[]=&+$,;!*()~"

# Raised by JSON, by kombu's decoders of dates and bodies, and for a missing or misplaced key.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def register() -> None:
    """Register `sqlite://` broker URLs with kombu and Celery."""
    TRANSPORT_ALIASES["sqlite"] = "autorun.broker.transport:Transport"


def path_of(url: str) -> Path:
    """Return the broker's file; ValueError if `url` is not sqlite:/// and an absolute path."""
    try:
        _, netloc, found, *rest = urlsplit(url)
    except ValueError:  # its message may quote the password
        netloc, found, rest = url, url, []
    path = Path(unquote(found)[1:])
    if netloc or any(rest) or not path.is_absolute() or not path.name:
        shown = masked(quote(url, safe=_PLAIN))
        raise ValueError(
            f"The broker URL {shown!r} must be sqlite:/// and the absolute path of a file, as in"
            " sqlite:////srv/app/broker.sqlite3 (four slashes; ? and # in a path are %3F and %23)."
        )
    return path


class QoS(virtual.QoS):
    """The count of unacknowledged messages; the messages themselves are in the file."""

    channel: "Channel"

    # Lower the count first: a released message may come back at once under the same tag, and the
    # consumer that `settled` wakes must find room for it.

    def ack(self, delivery_tag: Any) -> None:
        super().ack(delivery_tag)
        self.channel.file.settle(delivery_tag)

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        super().ack(delivery_tag)
        if requeue:
            self.channel.file.release(delivery_tag)
        else:
            self.channel.file.settle(delivery_tag)


class Channel(virtual.Channel):
    """A kombu channel whose queues are in the file."""

    QoS = QoS
    supports_fanout = True

    def __init__(self, connection: "Transport", **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        # A closed channel has no connection, but may still get acknowledgements.
        self.file = connection.file
        self._without_ack: set[str] = set()
        self._exclusive: set[str] = set()

    def prepare_queue_arguments(
        self, arguments: dict[str, Any] | None, **kwargs: Any
    ) -> dict[str, Any]:
        prepared: dict[str, Any] = to_rabbitmq_queue_arguments(arguments or {}, **kwargs)
        return prepared

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        exchange = exchange or "amq.direct"
        binding: Any = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        self.file.bind(exchange, binding[0] or "", binding[1] or "", queue)

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.file.unbind(exchange or "amq.direct", routing_key or "", queue)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        if not (if_empty and self._size(queue)):
            self.file.drop(queue)

    def exchange_delete(self, exchange: str, *args: Any, **kwargs: Any) -> None:
        for routing_key, _, queue in self.get_table(exchange):
            self.file.unbind(exchange, routing_key, queue)
        (self.state.exchanges or {}).pop(exchange, None)

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        return self.file.bindings(exchange)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        if no_ack:
            self._without_ack.add(queue)
        self.file.consume(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_cancel(self, consumer_tag: str) -> None:
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None:
            self.file.consumed.discard(queue)
            self._without_ack.discard(queue)
            if queue in self._exclusive:
                self._exclusive.discard(queue)
                self.file.drop(queue)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        message: Any = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None and no_ack:
            self.file.settle(message.delivery_tag)
        return message

    def _get_and_deliver(self, queue: str, callback: Callable[..., Any]) -> None:
        message = self._get(queue)
        tag = message["properties"]["delivery_tag"]
        if queue in self._without_ack:
            self.file.settle(tag)
        try:
            callback(message, queue)
        except UNREADABLE as error:
            # A malformed task message ends Celery's worker, and would end the next worker as well.
            virtual.QoS.ack(self.qos, tag)
            self._bury(tag, queue, error, exc_info=error)  # it may be a fault of the consumer's

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        while (leased := self.file.lease(queue)) is not None:
            try:
                return self._read(leased)
            except UNREADABLE as error:
                self._bury(leased.id, queue, error)
        raise Empty

    def _bury(
        self, tag: int, queue: str, error: Exception, *, exc_info: Exception | None = None
    ) -> None:
        outcome = "moved to the dead letters" if self.file.bury(tag) else "it was acknowledged"
        message = "Message %d of queue %r cannot be read (%s): %s."
        logger.error(message, tag, queue, type(error).__name__, outcome, exc_info=exc_info)

    def _read(self, leased: LeasedMessage) -> dict[str, Any]:
        message: dict[str, Any] = loads(leased.payload)
        properties = message["properties"]
        properties["delivery_tag"] = leased.id
        properties["delivery_info"]["redelivered"] = leased.deliveries > 1
        if leased.deliveries > 1:
            message["headers"]["redelivered"] = True
        self.Message(message, channel=self)  # decodes the body
        return message

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        is_transient = message["properties"].get("delivery_mode") == TRANSIENT_DELIVERY_MODE
        self.file.put(queue, dumps(message), is_transient=is_transient, **self._terms(message))

    def _put_fanout(
        self, exchange: str, message: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        self.file.put_fanout(exchange, dumps(message), **self._terms(message))

    def _terms(self, message: dict[str, Any]) -> dict[str, Any]:
        return {
            "priority": self._get_message_priority(message),
            "ttl": _from_milliseconds(message["properties"].get("expiration")),
        }

    def _restore(self, message: Any) -> None:
        self.file.release(message.delivery_tag)

    def _new_queue(
        self,
        queue: str,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        idle_limit = _from_milliseconds((arguments or {}).get("x-expires"))
        if exclusive:
            self._exclusive.add(queue)
        self.file.declare(
            queue,
            message_ttl=_from_milliseconds((arguments or {}).get("x-message-ttl")),
            # A queue that is only auto_delete waits indefinitely for its first consumer.
            idle=exclusive or idle_limit is not None,
            idle_limit=0 if idle_limit is None and (exclusive or auto_delete) else idle_limit,
        )

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self.file.is_declared(queue) or self.file.size(queue) > 0

    def _size(self, queue: str) -> int:
        return self.file.size(queue)

    def _purge(self, queue: str) -> int:
        return self.file.purge(queue)


class Transport(virtual.Transport):
    """The kombu transport of `sqlite://` URLs."""

    Channel = Channel
    can_parse_url = True
    driver_type = driver_name = "sqlite"
    polling_interval: float = 0.1
    connection_errors = (*virtual.Transport.connection_errors, sqlite3.OperationalError)
    # With an event loop, each process of Celery's prefork pool has pipes of its own. Otherwise all
    # read from one pipe, whose lock is never released if a process is killed while it waits there.
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset({"direct", "topic", "fanout"})
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        options = client.transport_options
        self.polling_interval = _number(options, "polling_interval", 0.1, at_least=0)
        self._leave_loop: Callable[[], None] = lambda: None
        self.file = BrokerFile(
            path_of(client.hostname),
            lease=_number(options, "lease", 30, at_least=1),
            busy_timeout=_number(options, "busy_timeout", 10, at_least=0),
            max_message_bytes=_number(
                options, "max_message_bytes", 16 * 1024**2, at_least=1, unit="bytes"
            ),
        )

    def driver_version(self) -> str:
        return sqlite3.sqlite_version

    def establish_connection(self) -> Any:
        self.file.open()
        return super().establish_connection()

    def close_connection(self, connection: Any) -> None:
        self._leave_loop()
        try:
            super().close_connection(connection)
        finally:
            self.file.close()

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver one message; TimeoutError if none arrives within `timeout` seconds."""
        cycle: Any = self.cycle
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self.file.check_lease()
            self.file.settled.clear()
            try:
                cycle.get(self._deliver, timeout=timeout)
            except Empty:
                pause = self.polling_interval
            else:
                return
            if deadline is not None:
                pause = min(pause, deadline - time.monotonic())
                if pause <= 0:
                    raise TimeoutError
            self.file.settled.wait(pause)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the event loop of a worker deliver messages, one per turn."""
        self._leave_loop()
        bell = self.file.settled = _Bell()
        bell.set()
        loop.add_reader(bell, self._deliver_in_loop)
        timer = loop.call_repeatedly(self.polling_interval, bell.set)

        def leave() -> None:
            timer.cancel()
            loop.remove_reader(bell)
            bell.close()

        self._leave_loop = leave

    def _deliver_in_loop(self) -> None:
        self.file.check_lease()
        self.file.settled.clear()
        cycle: Any = self.cycle
        with suppress(Empty):
            cycle.get(self._deliver)
            self.file.settled.set()  # there may be more


class _Bell(threading.Event):
    """An event that an event loop sees: while it is set, its descriptor can be read."""

    def __init__(self) -> None:
        super().__init__()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._reader.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def set(self) -> None:
        super().set()
        with suppress(OSError):  # it is full, or closed
            self._writer.send(b".")

    def clear(self) -> None:
        super().clear()
        with suppress(OSError):
            self._reader.recv(65_536)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def _number(
    options: dict[str, Any], name: str, default: float, *, at_least: float, unit: str = "seconds"
) -> float:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= at_least:
        raise ValueError(
            f"The broker transport option {name!r} must be a number of {unit}, {at_least} or more,"
            f" not {value!r}. Correct it in broker_transport_options."
        )
    return float(value)


def _from_milliseconds(value: Any) -> float | None:
    return None if value is None else float(value) / 1000
