"""Saved rows reach the broker, or the database where there is none, and no save waits."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.signals import worker_process_shutdown
from django.db import OperationalError
from django.test import override_settings
from kombu import Connection, Queue

from autorun.conf import settings
from autorun.dispatch import publishing
from autorun.dispatch.publishing import Message
from autorun.exceptions import BrokerUnavailable, MessagesRefused
from autorun.models import SpilledTrigger
from autorun.triggers import delivery
from settings import celery_app
from tests.celery_settings import configured
from tests.conftest import _use_broker, process_environment
from tests.crashes import failing_at
from tests.engine import declare, installed
from tests.services import BROKERS, silence

pytestmark = pytest.mark.django_db(transaction=True)

LABEL = "library.Document"


@pytest.fixture(autouse=True)
def fresh_delivery() -> Iterator[None]:
    """The thread is idle, and the connection is the test's own."""
    assert delivery.wait_until_idle()
    publishing._courier._drop()  # whatever connection an earlier test has left open
    publishing._reset()
    yield
    assert delivery.wait_until_idle(10)
    publishing._courier._drop()


@pytest.fixture
def connect_to() -> Iterator[Callable[[Any], None]]:
    """`connect_to(broker)`: have `broker` called with the messages that the process publishes."""

    with pytest.MonkeyPatch.context() as patch:
        yield lambda broker: patch.setattr(publishing, "_courier", SimpleNamespace(publish=broker))


@pytest.fixture
def published(connect_to: Callable[[Any], None]) -> list[list[Message]]:
    """Return the published messages, one list a call, of a broker that takes everything at once."""
    calls: list[list[Message]] = []
    connect_to(calls.append)
    return calls


class Stuck:
    """A broker that is silent until `release` is set, and then refuses."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.release = threading.Event()
        self.has_answered = threading.Event()

    def __call__(self, messages: list[Message]) -> None:
        self.asked.set()
        is_released = self.release.wait(30)
        self.has_answered.set()
        assert is_released
        raise BrokerUnavailable("Silent.")


@pytest.fixture
def stuck(connect_to: Callable[[Any], None]) -> Iterator[Stuck]:
    broker = Stuck()
    connect_to(broker)
    yield broker
    broker.release.set()
    assert delivery.wait_until_idle(10)


class Mute:
    """A server that accepts and never answers."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._accepted: list[socket.socket] = []
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self._accepted.append(self._server.accept()[0])
            except OSError:
                return

    def hang_up(self) -> None:
        while self._accepted:
            self._accepted.pop().close()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.hang_up()


def test_saved_rows_arrive_as_one_plan_message(broker):
    with delivery._deliverer._changed:  # else the thread may have sent the first by then
        delivery.submit({LABEL: {1}})
        delivery.submit({LABEL: {1, 2}})

    assert delivery.wait_until_idle()
    assert _received() == [[LABEL, [1, 2]]]
    assert not SpilledTrigger.objects.exists()


def test_keys_that_json_does_not_know_are_text(published):
    key = uuid.uuid4()

    delivery.submit({"library.Photo": {key}})

    assert delivery.wait_until_idle()
    assert [message.args for [message] in published] == [("library.Photo", [str(key)])]


def test_a_message_holds_at_most_a_thousand_keys(published):
    delivery.submit({LABEL: set(range(2_500)), "library.Note": {1}})

    assert delivery.wait_until_idle()
    [messages] = published
    assert [len(message.args[1]) for message in messages] == [1_000, 1_000, 500, 1]
    assert all(message.task == "autorun.plan" for message in messages)


def test_saves_are_batched_while_a_message_is_on_its_way(published, set_constants):
    set_constants(delivery, LINGER=0.05)

    for pk in range(1_000):
        delivery.submit({LABEL: {pk}})

    assert delivery.wait_until_idle()
    assert len(published) < 50
    assert {pk for [message] in published for pk in message.args[1]} == set(range(1_000))


def test_one_thread_serves_all_threads(published):
    delivery.submit({LABEL: {0}})
    known = threading.enumerate()
    threads = [threading.Thread(target=delivery.submit, args=({LABEL: {pk}},)) for pk in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert delivery.wait_until_idle()
    assert set(threading.enumerate()) <= set(known)
    assert {pk for [message] in published for pk in message.args[1]} == set(range(20))


def test_a_save_does_not_wait_for_a_silent_broker_and_is_written_down(stuck):
    delivery.submit({LABEL: {1}})
    assert stuck.asked.wait(5)
    delivery.submit({LABEL: {2}})
    was_silent = not stuck.has_answered.is_set()
    stuck.release.set()

    assert was_silent
    assert delivery.wait_until_idle()
    assert _spilled() == {1, 2}


def test_what_piles_up_behind_a_silent_broker_is_written_down_at_once(stuck, set_constants):
    set_constants(delivery, CAPACITY=10)
    delivery.submit({LABEL: {0}})
    assert stuck.asked.wait(5)

    for pk in range(1, 26):
        delivery.submit({LABEL: {pk}})

    assert _spilled() == set(range(1, 21))
    assert SpilledTrigger.objects.count() == 2
    stuck.release.set()
    assert delivery.wait_until_idle()
    assert _spilled() == set(range(26))


def test_what_can_be_neither_published_nor_written_down_is_logged(stuck, caplog):
    stuck.release.set()

    with failing_at("spill.written", repeat(OperationalError("disk full"))):
        delivery.submit({LABEL: {1, 2}})
        assert delivery.wait_until_idle()

    assert f"{LABEL}: 2 saved rows could not be stored" in caplog.text


def test_the_thread_keeps_no_database_connection(stuck):
    opened: list[Any] = []
    stuck.release.set()

    def note_opened(**kwargs: Any) -> None:
        if threading.current_thread().name == "autorun-delivery":
            opened.append(kwargs["connection"])

    from django.db.backends.signals import connection_created

    connection_created.connect(note_opened)
    try:
        delivery.submit({LABEL: {1}})
        assert delivery.wait_until_idle()
    finally:
        connection_created.disconnect(note_opened)

    assert len(opened) == 1
    assert opened[0].connection is None


def test_inline_publishes_in_the_saving_thread(published):
    with override_settings(AUTORUN={"PUBLISH": "inline"}):
        delivery.submit({LABEL: {1}})

        assert len(published) == 1


def test_inline_writes_down_what_no_broker_takes(stuck):
    stuck.release.set()

    with override_settings(AUTORUN={"PUBLISH": "inline"}):
        delivery.submit({LABEL: {1}})

    assert _spilled() == {1}


def test_eager_tasks_run_in_the_saving_thread(set_constants):
    seen: list[Any] = []

    def plan(*args: Any) -> None:
        seen.append(args)

    task = celery_app.task(plan, name="tests.plan")
    set_constants(delivery, PLAN=task.name)
    try:
        with configured(task_always_eager=True):
            delivery.submit({LABEL: {1}})
    finally:
        celery_app.tasks.unregister(task.name)

    assert seen == [(LABEL, [1])]


def test_eager_mode_is_noticed_whenever_and_wherever_it_is_set():
    assert not publishing.is_immediate()

    with override_settings(CELERY_TASK_ALWAYS_EAGER=True):
        assert publishing.is_immediate()
    assert not publishing.is_immediate()
    with configured(task_always_eager=True):
        assert publishing.is_immediate()
    assert not publishing.is_immediate()


def test_shutdown_of_a_worker_process_delivers_without_lingering(published, set_constants):
    set_constants(delivery, LINGER=30)
    delivery.submit({LABEL: {1}})

    worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)

    assert len(published) == 1


@pytest.mark.slow
def test_shutdown_with_a_silent_broker_writes_down_in_time(stuck):
    delivery.submit({LABEL: {1}})
    assert stuck.asked.wait(5)
    delivery.submit({LABEL: {2}})

    delivery.deliver_waiting(0.1)

    assert _spilled() == {1, 2}


@pytest.mark.parametrize("name", ["rabbitmq", "redis"])
@pytest.mark.parametrize("fault", ["refuses", pytest.param("mute", marks=pytest.mark.slow)])
def test_publishing_gives_up_in_seconds_and_goes_on_when_the_broker_is_back(
    name, fault, set_constants
):
    if silence(name):
        pytest.skip(f"{name} does not answer")
    set_constants(publishing, PAUSE_AFTER_FAILURE=0.0)
    mute = Mute()
    if fault == "refuses":
        mute.close()
    broker = BROKERS[name]()
    scheme = "amqp://guest:guest@" if name == "rabbitmq" else "redis://"
    with _turned_to(f"{scheme}127.0.0.1:{mute.port}//"):
        before = 0
        for attempt in range(3):
            started = time.perf_counter()
            with pytest.raises(BrokerUnavailable):
                publishing.publish([Message("autorun.plan", (LABEL, [1]))])
            assert time.perf_counter() - started < 4
            mute.hang_up()
            before = _descriptors() if attempt == 0 else before
        assert _descriptors() <= before
    mute.close()

    with _turned_to(broker.url):
        publishing.publish([Message("autorun.plan", (LABEL, [1]))])
        received = _received()
        _drop_queue()

    assert received == [[LABEL, [1]]]


def test_a_time_limit_that_raises_keeps_no_row_from_being_published():
    def get_timeout(self):
        raise KeyError("TIMEOUTS")

    with installed(declare(get_timeout=get_timeout)):
        (message,) = delivery._messages({"library.Document": {1}})

    assert message.time_limit == settings.TIMEOUT + 2 * settings.LEASE


def test_publishing_survives_a_connection_closed_at_the_other_end(broker):
    publishing.publish([Message("autorun.plan", (LABEL, [1]))])
    _cut(publishing._courier._connection)

    publishing.publish([Message("autorun.plan", (LABEL, [2]))])

    assert _received() == [[LABEL, [1]], [LABEL, [2]]]


SCRIPT = """
import os, sys, time, multiprocessing
import django
django.setup()
from autorun.triggers import delivery
LABEL = "library.Document"
"""


@pytest.mark.parametrize(
    "body",
    [
        # exit at once
        "delivery.submit({LABEL: {1}})",
        # a fork after the thread has started; the child has a thread of its own
        """
delivery.submit({LABEL: {2}}); delivery.wait_until_idle()
pid = os.fork()
if pid == 0:
    delivery.submit({LABEL: {1}})
    os._exit(0 if delivery.wait_until_idle(10) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
""",
        # a child of multiprocessing, which runs no atexit functions
        """
child = multiprocessing.get_context("fork").Process(
    target=delivery.submit, args=({LABEL: {1}},)
)
child.start(); child.join()
assert child.exitcode == 0
""",
        # a thread, which does not know the project's Celery app by itself
        """
import threading
with override_settings(AUTORUN={"PUBLISH": "inline"}):
    thread = threading.Thread(target=delivery.submit, args=({LABEL: {1}},))
    thread.start(); thread.join()
""",
    ],
    ids=["exit", "fork", "multiprocessing", "thread"],
)
@pytest.mark.slow
def test_what_a_process_saved_last_arrives(embedded_broker, body, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"{SCRIPT}\nfrom django.test import override_settings\n{body}")

    _run(script)

    assert [LABEL, [1]] in _received()
    assert not SpilledTrigger.objects.exists()


@pytest.mark.slow
def test_a_process_that_ends_before_a_silent_broker_answers_writes_down(tmp_path):
    with closing(Mute()) as mute:
        script = tmp_path / "script.py"
        script.write_text(
            f"{SCRIPT}\nfrom tests.celery_settings import configure\n"
            f"url = 'redis://127.0.0.1:{mute.port}/0'\n"
            "configure(broker_url=url, broker_write_url=url)\n"
            "delivery.submit({LABEL: {1}})\n"
        )

        _run(script)

    assert _spilled() == {1}


def _run(script: Path) -> None:
    environment = os.environ | process_environment() | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _received() -> list[Any]:
    """The arguments of the messages in the test's queue, keys in order."""
    received = []
    with celery_app.connection_for_read() as connection:
        channel = connection.default_channel
        queue = celery_app.conf.task_default_queue
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            label, keys = json.loads(message.body)[0]
            received.append([label, sorted(keys)])
    return received


def _spilled() -> set[Any]:
    return {key for each in SpilledTrigger.objects.filter(model_label=LABEL) for key in each.keys}


@contextmanager
def _turned_to(url: str) -> Iterator[None]:
    """Celery's broker is another one inside the block."""
    urls = dict.fromkeys(("broker_url", "broker_read_url", "broker_write_url"), url)
    with configured(**urls, broker_transport_options={}):
        yield


def _drop_queue() -> None:
    with celery_app.connection_for_write() as connection:
        connection.default_channel.queue_delete(celery_app.conf.task_default_queue)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _cut(connection: Any) -> None:
    """Close the sockets under a connection, as a restart of the broker would."""
    if connection.transport.driver_type == "amqp":
        connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)
    elif connection.transport.driver_type == "redis":
        for each in connection.default_channel.pool._available_connections:
            each._sock.shutdown(socket.SHUT_RDWR)


FULL = {"x-max-length": 0, "x-overflow": "reject-publish"}


@pytest.mark.services
@pytest.mark.parametrize(
    ("name_of_broker", "arguments", "error"),
    [
        ("rabbitmq", {"x-max-priority": 5}, "PreconditionFailed"),
        ("rabbitmq", {"x-queue-type": "quorum"}, "PreconditionFailed"),
        ("rabbitmq", FULL, "MessageNacked"),
        ("rabbitmq", "locked", "ResourceLocked"),
        ("redis", "not a list", "ResponseError"),
    ],
)
def test_a_queue_that_refuses_messages_costs_its_own_alone(
    name_of_broker: str, arguments: Any, error: str
) -> None:
    """RabbitMQ closes the channel of most of them; the connection goes on with the others."""
    if (why := silence(name_of_broker)) is not None:
        pytest.skip(why)
    for broker in _use_broker(name_of_broker):
        name = f"autorun-test-otherwise-{uuid.uuid4().hex}"
        other = f"autorun-test-other-{uuid.uuid4().hex}"
        with (
            Connection(broker.url, transport_options=broker.options) as owner,
            Connection(broker.url, transport_options=broker.options) as connection,
        ):
            channel = connection.default_channel
            if arguments == "not a list":
                channel.client.set(name, "x")
            elif arguments == "locked":
                owner.default_channel.queue_declare(name, durable=True, exclusive=True)
            else:
                channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
            if arguments == FULL:  # as the project declares it
                celery_app.amqp.queues.add(Queue(name, queue_arguments=FULL))
            try:
                bad = Message("autorun.upkeep", queue=name)
                good = Message("autorun.upkeep", queue=other)
                with pytest.raises(MessagesRefused, match=f"{name}: {error}") as raised:
                    publishing.publish([bad, good])
                publishing.publish([good])  # and no pause
                arrived = [channel.basic_get(other, no_ack=True) for _ in range(2)]
            finally:
                celery_app.amqp.queues.pop(name, None)
                if arguments == "not a list":
                    channel.client.delete(name)
                elif arguments == "locked":
                    owner.default_channel.queue_delete(name)
                else:
                    channel.queue_delete(name)
                channel.queue_delete(other)

    assert raised.value.messages == [bad]
    assert all(arrived)


def test_after_an_eager_task_that_raises_the_others_are_executed() -> None:
    executed = []

    def execute(name: str) -> None:
        executed.append(name)
        if name == "first":
            raise ValueError(name)

    task = celery_app.task(execute, name="tests.execute")
    messages = [Message(task.name, (name,)) for name in ("first", "second")]
    eager = configured(task_always_eager=True, task_eager_propagates=True)
    try:
        with eager, pytest.raises(ValueError, match="first"):
            publishing.publish(messages)
    finally:
        celery_app.tasks.unregister(task.name)

    assert executed == ["first", "second"]


def test_rows_are_delivered_although_code_of_the_project_ends_the_threads_that_it_finds(connect_to):
    ends, taken = iter([SystemExit(), KeyboardInterrupt()]), []

    def publish(messages: Any) -> None:
        if (end := next(ends, None)) is not None:
            raise end
        taken.extend(messages)

    connect_to(publish)
    delivery.submit({LABEL: {1}})

    assert delivery.wait_until_idle()
    assert [message.args for message in taken] == [(LABEL, [1])]
