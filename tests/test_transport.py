"""The embedded broker, over real files and real processes."""

import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import celery
import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub
from kombu.transport import TRANSPORT_ALIASES

from autorun.broker.brokerfile import (
    MAX_DEAD_LETTERS,
    BrokerFile,
    LeaseLapsed,
    MessageTooLarge,
)
from autorun.broker.sharedfile import RESERVE, DiskFull, reserve_of
from autorun.broker.transport import Transport, register
from tests.waiting import until

pytestmark = pytest.mark.once

REPOSITORY = Path(__file__).parents[1]
# Processes of these tests know nothing of Django, nor of the settings that pytest-django names.
ENVIRONMENT = {name: v for name, v in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
TASKS = Queue("tasks", Exchange("tasks"), routing_key="tasks")


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.sqlite3"


@pytest.fixture
def connect(path: Path) -> Iterator[Callable[..., Connection]]:
    with contextlib.ExitStack() as stack:

        def _connect(**options: Any) -> Connection:
            url = f"sqlite:///{path}"
            return stack.enter_context(Connection(url, transport_options=options))

        yield _connect


def publish(connection: Connection, *bodies: Any, **options: Any) -> None:
    producer = Producer(connection.default_channel)
    for body in bodies:
        producer.publish(body, routing_key="tasks", declare=[TASKS], **options)


def fetch(connection: Connection) -> Any:
    return connection.default_channel.basic_get("tasks")


def bodies(connection: Connection) -> list[Any]:
    """Every waiting message of the queue, in its order, acknowledged."""
    found = []
    while (message := fetch(connection)) is not None:
        message.ack()
        found.append(message.payload)
    return found


def sql(path: Path, statement: str, *parameters: Any) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as handle, handle:
        return handle.execute(statement, parameters).fetchall()


# Messages


def test_messages_come_in_order_of_priority_then_age(connect: Any) -> None:
    connection = connect()
    publish(connection, "low 1", "low 2")
    publish(connection, "high 1", "high 2", priority=9)
    publish(connection, "middle", priority=5)

    assert bodies(connection) == ["high 1", "high 2", "middle", "low 1", "low 2"]


def test_rejected_message_is_back_at_its_place_and_marked(connect: Any) -> None:
    connection = connect()
    publish(connection, "first", "second")
    fetch(connection).requeue()

    again = fetch(connection)

    assert again.payload == "first"
    assert again.delivery_info["redelivered"]


def test_rejected_message_without_requeue_is_gone(connect: Any, path: Path) -> None:
    connection = connect()
    publish(connection, "bad")

    fetch(connection).reject()

    assert sql(path, "SELECT count(*) FROM message") == [(0,)]


def test_unacknowledged_messages_come_back_when_the_connection_closes(connect: Any) -> None:
    first, second = connect(), connect()
    publish(first, "a", "b")
    assert [fetch(first).payload, fetch(first).payload] == ["a", "b"]
    assert fetch(second) is None

    first.release()

    assert bodies(second) == ["a", "b"]


def test_messages_of_a_silent_consumer_come_back(connect: Any, path: Path) -> None:
    dead, alive = connect(), connect()
    publish(dead, "a")
    message = fetch(dead)
    sql(path, "UPDATE owner SET expires_at = 1")

    alive.transport.file.consume("tasks")  # a new consumer clears away first
    came_back = fetch(alive)
    message.ack()  # too late: it is the other's message now

    assert came_back.payload == "a"
    assert sql(path, "SELECT count(*) FROM message") == [(1,)]


def test_messages_of_a_consumer_that_is_only_busy_stay_leased(connect: Any, path: Path) -> None:
    busy, other = connect(lease=1), connect(lease=1)
    publish(busy, "long")
    message = fetch(busy)
    (lease,) = sql(path, "SELECT expires_at FROM owner")

    until(lambda: sql(path, "SELECT expires_at FROM owner WHERE expires_at > ?", lease[0] + 1.5))

    assert fetch(other) is None
    message.ack()
    assert sql(path, "SELECT count(*) FROM message") == [(0,)]


def test_consumer_that_was_taken_for_dead_is_told_to_connect_again(
    connect: Any, path: Path
) -> None:
    connection = connect(lease=1)
    with Consumer(connection, [TASKS], callbacks=[print]):
        sql(path, "DELETE FROM owner")

        with pytest.raises(LeaseLapsed, match=r"stopped for more than its lease of 1 s.*Connect"):
            connection.drain_events(timeout=10)
    assert issubclass(LeaseLapsed, connection.connection_errors)


def test_consumer_that_slept_does_not_judge_the_others_at_once(connect: Any, path: Path) -> None:
    sleeper, other = connect(), connect()
    publish(sleeper, "a", "b")
    assert [fetch(sleeper).payload, fetch(other).payload] == ["a", "b"]
    sql(path, "UPDATE owner SET expires_at = 1")  # the machine was suspended
    sleeper.transport.file._beaten_at -= 3600

    sleeper.transport.file.beat()
    other.transport.file.beat()

    assert sql(path, "SELECT count(*) FROM message WHERE owner IS NULL") == [(0,)]
    assert sql(path, "SELECT count(*) FROM owner WHERE expires_at > ?", time.time()) == [(2,)]


def test_messages_expire(connect: Any) -> None:
    connection = connect()
    publish(connection, "short", expiration=0.001)
    publish(connection, "long", expiration=60)
    time.sleep(0.01)

    assert connection.default_channel._size("tasks") == 1
    assert bodies(connection) == ["long"]


def test_messages_expire_by_the_time_to_live_of_their_queue(connect: Any, path: Path) -> None:
    connection = connect()
    queue = Queue("news", Exchange("news"), routing_key="news", message_ttl=60)
    Producer(connection.default_channel).publish(
        1, exchange=queue.exchange, routing_key="news", declare=[queue]
    )

    ((expires_at,),) = sql(path, "SELECT expires_at FROM message")

    assert 0 < expires_at - time.time() <= 60


def test_consumer_without_acknowledgements_leaves_nothing(connect: Any, path: Path) -> None:
    connection = connect()
    publish(connection, "a", "b")
    received: list[Any] = []

    with Consumer(
        connection, [TASKS], no_ack=True, callbacks=[lambda body, _: received.append(body)]
    ):
        until(lambda: connection.drain_events(timeout=5) or len(received) == 2)
        left = sql(path, "SELECT count(*) FROM message")

    assert received == ["a", "b"]
    assert left == [(0,)]


def test_acknowledgement_from_another_thread_makes_room_at_once(connect: Any) -> None:
    connection = connect(polling_interval=30)
    publish(connection, *range(50))
    received: list[Any] = []

    def acknowledge_elsewhere(body: Any, message: Any) -> None:
        received.append(body)
        threading.Thread(target=message.ack).start()

    with Consumer(connection, [TASKS], callbacks=[acknowledge_elsewhere], prefetch_count=1):
        while len(received) < 50:
            connection.drain_events(timeout=10)

    assert received == list(range(50))


def test_an_event_loop_delivers_at_once_and_nothing_is_left_in_it(connect: Any) -> None:
    connection, loop = connect(polling_interval=30), Hub()
    publish(connection, *range(50))
    received: list[Any] = []

    def acknowledge_elsewhere(body: Any, message: Any) -> None:
        received.append(body)
        threading.Thread(target=message.ack).start()

    with contextlib.closing(loop):
        connection.transport.register_with_event_loop(connection.connection, loop)
        with Consumer(connection, [TASKS], callbacks=[acknowledge_elsewhere], prefetch_count=1):
            while len(received) < 50:
                loop.run_once()
        connection.release()

        assert received == list(range(50))
        assert not loop.readers
        assert all(each.entry.canceled for each in loop.timer.queue)


UNREADABLE = [
    "garbage{",
    "[]",
    '{"body": "x"}',
    "[" * 200_000,
    '{"headers": {}, "properties": {"delivery_info": null}}',
    '{"body": "a", "headers": {}, "properties": {"delivery_info": {}, "body_encoding": "base64"}}',
    '{"body": {"__type__": "datetime", "__value__": "never"}}',
    b"\xff\xfe",
]


#: Messages of kombu for which Celery's worker raises an error.
MISSHAPEN = [
    json.dumps({"properties": {"delivery_info": {}}, **each})
    for each in (
        {"body": None, "headers": {"task": "probe.note", "id": "1"}},
        {
            "body": "[[], {}, {}]",
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": "probe.note", "id": "1", "timelimit": 3},
        },
    )
]


def put_unreadable(path: Path, queue: str, payloads: Sequence[str | bytes] = UNREADABLE) -> None:
    for payload in payloads:
        sql(
            path,
            "INSERT INTO message (queue, priority, payload) VALUES (?, 9, CAST(? AS TEXT))",
            queue,
            payload,
        )


def test_messages_that_cannot_be_read_become_dead_letters(
    connect: Any, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect()
    publish(connection, "good")
    put_unreadable(path, "tasks")

    assert bodies(connection) == ["good"]

    letters = sql(path, "SELECT CAST(payload AS BLOB) FROM dead_letter WHERE queue = 'tasks'")
    assert [letter for (letter,) in letters] == [
        each if isinstance(each, bytes) else each.encode() for each in UNREADABLE
    ]
    assert sql(path, "SELECT count(*) FROM message") == [(0,)]
    assert "Message 2 of queue 'tasks' cannot be read" in caplog.text
    assert "garbage" not in caplog.text


def test_a_message_that_its_consumer_cannot_read_becomes_a_dead_letter(
    connect: Any, path: Path
) -> None:
    connection, received = connect(), []
    publish(connection, {"what": "bad"})
    publish(connection, {"name": "good"})

    def read(body: Any, message: Any) -> None:
        received.append(body["name"])
        message.ack()

    with Consumer(connection, [TASKS], callbacks=[read], prefetch_count=1):
        for _ in range(2):
            connection.drain_events(timeout=10)

    assert received == ["good"]
    assert sql(path, "SELECT count(*) FROM message") == [(0,)]
    assert sql(path, "SELECT queue FROM dead_letter") == [("tasks",)]


@pytest.mark.parametrize(
    ("no_ack", "outcome", "letters"), [(False, "moved to the dead letters", 1), (True, "it was", 0)]
)
def test_the_error_of_a_consumer_is_logged_with_what_became_of_the_message(
    connect: Any, path: Path, caplog: pytest.LogCaptureFixture, no_ack, outcome, letters
) -> None:
    connection = connect()
    publish(connection, "good")

    def fail(body: Any, message: Any) -> None:
        raise AttributeError("a bug of the strategy")

    with Consumer(connection, [TASKS], callbacks=[fail], no_ack=no_ack):
        connection.drain_events(timeout=10)

    assert f"cannot be read (AttributeError): {outcome}" in caplog.text
    assert "a bug of the strategy" in caplog.text
    assert sql(path, "SELECT count(*) FROM dead_letter") == [(letters,)]


def test_the_oldest_dead_letters_are_deleted(connect: Any, path: Path) -> None:
    connection = connect()
    publish(connection, "good")
    sql(
        path,
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO dead_letter (queue, died_at, payload) SELECT 'old', 0, '' FROM n",
        MAX_DEAD_LETTERS,
    )
    put_unreadable(path, "tasks")

    bodies(connection)

    counts = sql(path, "SELECT queue, count(*) FROM dead_letter GROUP BY queue ORDER BY queue")
    assert counts == [("old", MAX_DEAD_LETTERS - len(UNREADABLE)), ("tasks", len(UNREADABLE))]


def test_message_above_the_limit_is_an_error_of_its_sender(connect: Any, path: Path) -> None:
    connection = connect(max_message_bytes=10_000)
    publish(connection, "x" * 5000)

    with pytest.raises(MessageTooLarge, match=r"to queue 'tasks' has .*accepts 10,000. Send a"):
        publish(connection, "x" * 10_000)

    assert bodies(connection) == ["x" * 5000]


# Queues and exchanges


def test_queue_is_counted_purged_and_deleted(connect: Any, path: Path) -> None:
    connection = connect()
    channel = connection.default_channel
    publish(connection, 1, 2, 3)
    assert fetch(connection).payload == 1

    assert channel.queue_declare("tasks", passive=True).message_count == 2
    assert channel.queue_purge("tasks") == 2
    channel.queue_delete("tasks")

    with pytest.raises(connection.channel_errors, match="no queue 'tasks'"):
        channel.queue_declare("tasks", passive=True)
    assert sql(path, "SELECT (SELECT count(*) FROM binding) + (SELECT count(*) FROM message)") == [
        (0,)
    ]


def test_fanout_reaches_queues_that_other_connections_bound(connect: Any) -> None:
    exchange = Exchange("news", type="fanout")
    connections = [connect(), connect()]
    for number, connection in enumerate(connections):
        Queue(f"news {number}", exchange)(connection.default_channel).declare()

    Producer(connect().default_channel).publish("hear", exchange=exchange, declare=[exchange])

    for number, connection in enumerate(connections):
        assert connection.default_channel.basic_get(f"news {number}").payload == "hear"


def test_topic_exchange_matches_patterns_of_other_connections(connect: Any) -> None:
    exchange = Exchange("news", type="topic")
    connection = connect()
    Queue("sport", exchange, routing_key="*.sport")(connection.default_channel).declare()

    producer = Producer(connect().default_channel, exchange=exchange)
    producer.publish("goal", routing_key="world.sport")
    producer.publish("rain", routing_key="world.weather")

    assert connection.default_channel.basic_get("sport").payload == "goal"
    assert connection.default_channel.basic_get("sport") is None


def test_unbound_queue_gets_nothing_more(connect: Any) -> None:
    connection = connect()
    TASKS(connection.default_channel).declare()
    connection.default_channel.queue_unbind("tasks", "tasks", "tasks")

    Producer(connection.default_channel).publish(1, exchange="tasks", routing_key="tasks")

    assert fetch(connection) is None


def test_exclusive_queue_goes_with_its_consumer(connect: Any, path: Path) -> None:
    connection = connect()
    queue = Queue("mine", Exchange("news", type="fanout"), exclusive=True, auto_delete=True)

    with Consumer(connection, [queue], callbacks=[print]):
        assert sql(path, "SELECT name FROM queue") == [("mine",)]

    assert sql(path, "SELECT (SELECT count(*) FROM binding) + (SELECT count(*) FROM queue)") == [
        (0,)
    ]


def test_a_consumer_whose_queue_was_deleted_is_told_to_connect_again(
    connect: Any, path: Path
) -> None:
    """As a worker's control queue is, by one of the same name that ends after it has started."""
    ending, starting = connect(), connect(lease=1)
    queue = Queue("control", Exchange("news", type="fanout"), exclusive=True, auto_delete=True)
    old = Consumer(ending.default_channel, [queue], callbacks=[print])
    old.consume()
    with Consumer(starting, [queue, TASKS], callbacks=[print]):
        starting.transport.file.beat()
        starting.transport.file.check_lease()

        old.cancel()

        with pytest.raises(LeaseLapsed, match=r"its queue .* was replaced.*Connect"):
            starting.drain_events(timeout=10)


def test_a_consumer_that_cancels_its_own_queue_goes_on(connect: Any, path: Path) -> None:
    connection = connect()
    queue = Queue("mine", Exchange("news", type="fanout"), exclusive=True, auto_delete=True)
    received = []
    with Consumer(connection, [TASKS], on_message=received.append):
        mine = Consumer(connection.default_channel, [queue], callbacks=[print])
        mine.consume()
        mine.cancel()

        connection.transport.file.beat()

        connection.transport.file.check_lease()
        Producer(connection.default_channel).publish("news", routing_key=TASKS.name)
        connection.drain_events(timeout=10)
    assert [message.decode() for message in received] == ["news"]


def test_queues_that_the_dead_consumed_from_are_dropped_with_their_messages(
    connect: Any, path: Path
) -> None:
    exchange = Exchange("news", type="fanout")
    dead, alive = connect(), connect()
    for name in ("auto", "expiring", "kept"):
        options = {"auto": {"auto_delete": True}, "expiring": {"expires": 1}}.get(name, {})
        Consumer(
            dead.default_channel, [Queue(name, exchange, **options)], callbacks=[print]
        ).consume()
    Producer(alive.default_channel).publish("hear", exchange=exchange, declare=[exchange])
    sql(path, "UPDATE queue SET expires_at = expires_at - 3600")

    alive.transport.file.consume("other")

    assert sql(path, "SELECT name FROM queue") == [("kept",)]
    assert sql(path, "SELECT queue FROM binding") == [("kept",)]
    assert sql(path, "SELECT queue FROM message") == [("kept",)]


def test_queue_that_deletes_itself_waits_for_its_first_consumer(connect: Any, path: Path) -> None:
    Queue("later", Exchange("later"), auto_delete=True)(connect().default_channel).declare()

    assert sql(path, "SELECT expires_at FROM queue") == [(None,)]


def test_consumed_queues_are_kept_alive_by_the_heartbeat(connect: Any, path: Path) -> None:
    connection = connect()
    with Consumer(connection, [Queue("mine", Exchange("mine"), exclusive=True)], callbacks=[print]):
        sql(path, "UPDATE queue SET expires_at = expires_at - 3600")

        connection.transport.file.beat()

        assert sql(path, "SELECT count(*) FROM queue WHERE expires_at > ?", time.time()) == [(1,)]


# The file


def test_file_gets_small_again(connect: Any, path: Path) -> None:
    connection = connect()
    publish(connection, *["x" * 4000] * 1500)
    loaded = path.stat().st_size
    assert len(bodies(connection)) == 1500

    connection.transport.file.beat()
    connection.release()

    assert loaded > 5_000_000
    assert path.stat().st_size < loaded / 3
    assert not path.with_name("broker.sqlite3-wal").exists()


def test_publisher_goes_on_in_the_new_file_when_the_old_one_was_deleted(
    connect: Any, path: Path
) -> None:
    publisher = connect()
    publish(publisher, "lost with the file")

    path.unlink()
    publisher.default_channel.basic_publish(
        publisher.default_channel.prepare_message("kept"), exchange="", routing_key="tasks"
    )

    assert sql(path, "SELECT count(*) FROM message") == [(1,)]


def test_consumer_of_a_deleted_file_is_told_to_connect_again(connect: Any, path: Path) -> None:
    connection = connect()
    with Consumer(connection, [TASKS], callbacks=[print]):
        path.unlink()

        with pytest.raises(LeaseLapsed, match="the file was replaced"):
            connection.drain_events(timeout=10)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///relative.sqlite3",
        "sqlite://tmp/b.sqlite3",
        "sqlite:////tmp/b?lease=3",
    ],
)
def test_url_without_an_absolute_path_says_how_to_write_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"sqlite:////srv/app/broker\.sqlite3"):
        Connection(url).connect()


@pytest.mark.parametrize(
    "url", ["sqlite://user:secret@host/tmp/b", "sqlite://user:sec/ret@host/b", "sqlite://secret@b"]
)
def test_password_in_a_url_is_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"sqlite://(user:)?\*{8}@") as caught:
        Connection(url).connect()

    assert "secret" not in str(caught.value)
    assert "ret@" not in str(caught.value)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/missing does not exist.*Create"):
        Connection(f"sqlite:///{tmp_path}/missing/broker.sqlite3").connect()


def test_path_may_hold_any_character(tmp_path: Path) -> None:
    with Connection(f"sqlite:///{tmp_path}/a%20%3F%23ü.sqlite3") as connection:
        connection.connect()

    assert (tmp_path / "a ?#ü.sqlite3").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=f"may not write to {tmp_path}"):
        Connection(f"sqlite:///{tmp_path}/broker.sqlite3").connect()


def test_file_that_is_not_sqlite_is_left_alone(connect: Any, path: Path) -> None:
    path.write_bytes(b"something else\n" * 100)

    with pytest.raises(ValueError, match=r"is not a SQLite file.*Name another file for the broker"):
        connect().connect()

    assert path.read_bytes() == b"something else\n" * 100


def test_database_of_something_else_is_left_alone(connect: Any, path: Path) -> None:
    sql(path, "CREATE TABLE django_migrations (id INTEGER)")
    before = path.read_bytes()

    with pytest.raises(ValueError, match="is a database of something else"):
        connect().connect()

    assert path.read_bytes() == before


def test_file_of_another_layout_is_named(connect: Any, path: Path) -> None:
    connect().connect()
    sql(path, "PRAGMA user_version = 99")

    with pytest.raises(
        ValueError, match="has layout 99, and this version of autorun reads layout 1"
    ):
        connect().connect()


def test_file_of_an_older_version_is_upgraded(connect: Any, path: Path) -> None:
    connection = connect()
    publish(connection, "old")
    sql(path, "DROP TABLE dead_letter")
    connection.release()
    path.chmod(0o644)

    upgraded = connect()
    publish(upgraded, "new")

    assert bodies(upgraded) == ["old", "new"]
    assert sql(path, "SELECT count(*) FROM dead_letter") == [(0,)]
    assert mode_of(path) == 0o600


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o000])
def test_only_its_user_may_read_the_file(connect: Any, path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        connection = connect()
        publish(connection, 1)
        fetch(connection)
    finally:
        os.umask(before)

    made = sorted(path.parent.glob("broker.sqlite3*"))
    assert {each.name.removeprefix("broker.sqlite3") for each in made} == {
        "",
        "-wal",
        "-shm",
        "-reserve",
    }
    assert {mode_of(each) for each in made} == {0o600}


@pytest.mark.parametrize("suffix", ["", "-wal", "-journal"])
@pytest.mark.parametrize("exists", [True, False], ids=["target", "dangling"])
def test_symbolic_link_is_not_followed(connect: Any, path: Path, suffix: str, exists: bool) -> None:
    target = path.with_name("target")
    if exists:
        target.touch()
    path.with_name(path.name + suffix).symlink_to(target)

    with pytest.raises(PermissionError, match=r"is a symbolic link.*Name the file"):
        connect().connect()

    assert (target.read_bytes() if exists else target.exists()) == (b"" if exists else False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_file_of_another_user_is_refused(connect: Any, path: Path, suffix: str) -> None:
    connect().connect()
    file = path.with_name(path.name + suffix)
    file.touch()
    os.chown(file, 12345, -1)

    with pytest.raises(PermissionError, match=r"belongs to the user 12345.*chown 0 "):
        connect().connect()


@pytest.mark.parametrize("mode", [0o660, 0o606])
def test_file_that_others_may_write_is_refused(connect: Any, path: Path, mode: int) -> None:
    connect().connect()
    path.chmod(mode)

    with pytest.raises(PermissionError, match=f"written by other users. Run `chmod 600 {path}`"):
        connect().connect()


def test_directory_that_every_user_may_write_must_be_sticky(connect: Any, path: Path) -> None:
    path.parent.chmod(0o777)
    with pytest.raises(PermissionError, match=rf"Every user may write to {path.parent}.*chmod o-w"):
        connect().connect()

    path.parent.chmod(0o1777)
    connect().connect()


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("CREATE TRIGGER lose AFTER INSERT ON message BEGIN DELETE FROM message; END", "trigger"),
        ("CREATE VIEW letters AS SELECT * FROM message", "view"),
        ("CREATE UNIQUE INDEX one ON message (queue)", "index"),
        ("ALTER TABLE message ADD COLUMN more TEXT CHECK (more IS NOT NULL)", "table"),
    ],
)
def test_file_with_a_changed_layout_is_refused(
    connect: Any, path: Path, statement: str, kind: str
) -> None:
    connect().connect()
    sql(path, statement)

    with pytest.raises(ValueError, match=f"has the {kind} '.*', which the broker has not made"):
        connect().connect()


@pytest.mark.parametrize(
    "options", [{"lease": 0}, {"lease": "30"}, {"busy_timeout": -1}, {"polling_interval": None}]
)
def test_wrong_transport_option_is_named(connect: Any, options: dict[str, Any]) -> None:
    (name,) = options

    with pytest.raises(ValueError, match=f"option '{name}' must be a number of seconds"):
        connect(**options).connect()


def test_locked_file_is_an_error_that_celery_retries(connect: Any, path: Path) -> None:
    connection = connect(busy_timeout=0.05)
    publish(connection, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as handle:
        handle.execute("BEGIN IMMEDIATE")

        with pytest.raises(connection.recoverable_connection_errors, match="locked"):
            publish(connection, 2)

    publish(connection, 3)
    assert bodies(connection) == [1, 3]


def test_closed_connections_leave_no_threads_and_no_file_descriptors(connect: Any) -> None:
    def in_use() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    def consume_and_close() -> tuple[int, int]:
        connection = connect()
        assert fetch(connection).payload == 1
        connection.release()
        return in_use()

    others = threading.active_count()
    publish(connect(), 1)
    # SQLite keeps one descriptor of a closed handle back while another handle is open.
    before = until(lambda: (used := consume_and_close())[1] <= others and used)
    for _ in range(5):
        consume_and_close()

    until(lambda: in_use() == before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filling").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_full_disk_refuses_messages_and_lets_consumers_drain(
    small_disk: Path,
) -> None:
    path = small_disk / "broker.sqlite3"
    with Connection(f"sqlite:///{path}") as connection:
        channel = connection.default_channel
        TASKS(channel).declare()
        with pytest.raises(DiskFull, match="New messages are refused"):
            publish(connection, *["x" * 5000] * 10_000)
        (sent,) = (count for (count,) in sql(path, "SELECT count(*) FROM message"))
        connection.transport.file.consume("tasks")

        assert len(bodies(connection)) == sent > 300
        connection.transport.file.beat()
        publish(connection, "again")


def test_disk_that_something_else_has_filled_lets_consumers_drain(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_disk / "broker.sqlite3"
    with Connection(f"sqlite:///{path}") as connection:
        connection.transport.file.consume("tasks")
        publish(connection, *["x" * 500] * 500)
        assert reserve_of(path).stat().st_blocks * 512 >= RESERVE
        fill(small_disk)

        with pytest.raises(DiskFull, match="is full: less than 4 MB are free"):
            publish(connection, "refused")
        publish(connection, "answer", delivery_mode="transient")
        with Connection(f"sqlite:///{path}") as other:  # as a worker that starts meanwhile
            other.connect()
            assert len(bodies(other)) == 501

        assert f"The disk of {path} is full" in caplog.text
        (small_disk / "filling").unlink()
        publish(connection, "again")
        connection.transport.file.beat()
        assert reserve_of(path).exists()


# Processes


def _publish_many(url: str, first: int, count: int) -> None:
    register()
    with Connection(url) as connection:
        publish(connection, *range(first, first + count))


def _consume_many(url: str, count: int, received: Any) -> None:
    register()
    with Connection(url) as connection:

        def acknowledge(body: Any, message: Any) -> None:
            message.ack()
            received.put(body)

        with Consumer(connection, [TASKS], callbacks=[acknowledge], prefetch_count=8):
            for _ in range(count):
                connection.drain_events(timeout=30)


@pytest.mark.parametrize("statements", [1, 2])
def test_a_new_file_that_another_process_fills_meanwhile_is_the_brokers(
    path: Path, statements: int
) -> None:
    file, other = BrokerFile(path), BrokerFile(path)

    class Slow(sqlite3.Connection):
        """Asks whose file it is so slowly that `other` opens it after some of the statements."""

        executed = 0

        def execute(self, *args: Any) -> sqlite3.Cursor:
            if self.executed == statements:
                other.open()
            self.executed += 1
            return super().execute(*args)

    with contextlib.closing(sqlite3.connect(path, factory=Slow)) as handle:
        missing = file._missing(handle)
    other.close()

    assert len(missing) == len(BrokerFile.layout)


def test_two_producers_and_two_consumers_share_a_new_file(path: Path) -> None:
    processes = get_context("spawn")
    url, received = f"sqlite:///{path}", processes.Queue()
    started = [
        *(processes.Process(target=_publish_many, args=(url, n * 1000, 400)) for n in range(2)),
        *(processes.Process(target=_consume_many, args=(url, 400, received)) for _ in range(2)),
    ]
    for process in started:
        process.start()

    bodies = [received.get(timeout=30) for _ in range(800)]
    for process in started:
        process.join(30)

    assert [process.exitcode for process in started] == [0] * 4
    assert sorted(bodies) == [*range(400), *range(1000, 1400)]


FORK = """
import os, sys
from kombu import Connection, Producer
from autorun.broker import register
register()
connection = Connection(sys.argv[1])
producer = Producer(connection.default_channel)
producer.publish("held by the parent", routing_key="tasks")
message = connection.default_channel.basic_get("tasks")
inherited = connection.transport.file._handle
child = os.fork()
assert connection.transport.file._handle is None
producer.publish("from the child" if child == 0 else "from the parent", routing_key="tasks")
if child == 0:
    message.requeue()       # not the child's to give back
    connection.release()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
other = Connection(sys.argv[1]).default_channel
bodies = sorted(other.basic_get("tasks").payload for _ in range(2))
assert bodies == ["from the child", "from the parent"], bodies
assert other.basic_get("tasks") is None
message.ack()
"""


def test_child_process_publishes_and_leaves_the_leases_of_its_parent_alone(path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, f"sqlite:///{path}"],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert sql(path, "SELECT count(*) FROM message") == [(2,)]


def test_registers_without_django() -> None:
    code = (
        "import sys, autorun.broker; autorun.broker.register(); autorun.broker.register();"
        "sys.exit('django.db' in sys.modules)"
    )

    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, env=ENVIRONMENT, check=False
        ).returncode
        == 0
    )
    assert TRANSPORT_ALIASES["sqlite"] == "autorun.broker.transport:Transport"
    assert Connection("sqlite:////tmp/b.sqlite3").get_transport_cls() is Transport


# Celery

APP = """
    import os, time
    from celery import Celery
    from autorun.broker import register

    register()
    app = Celery("probe", broker=os.environ["BROKER"])
    app.conf.update(
        broker_transport_options={"lease": float(os.environ["LEASE"])},
        broker_connection_retry_on_startup=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=4,
        beat_schedule={"tick": {"task": "probe.note", "schedule": 0.2, "args": ["tick"]}},
    )

    def write(line):
        log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{line}\\n".encode())
        os.close(log)

    @app.task(name="probe.note", acks_late=True)
    def note(what, pause=0):
        time.sleep(pause)
        write(what)

    @app.task(name="probe.hold", acks_late=True)
    def hold():
        write("start")
        while not os.path.exists(os.environ["RELEASE"]):
            time.sleep(0.02)
        write("end")

    @app.task(name="probe.spread", acks_late=True)
    def spread(first, count):
        for number in range(first, first + count):
            note.delay(number)
"""


class Probe:
    """A Celery app of its own, and the processes that run it."""

    def __init__(self, directory: Path, *, lease: float) -> None:
        (directory / "probe.py").write_text(textwrap.dedent(APP))
        self.directory = directory
        self.broker = directory / "broker.sqlite3"
        self.log = directory / "log"
        self.release = directory / "release"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = ENVIRONMENT | {
            "BROKER": f"sqlite:///{self.broker}",
            "LOG": str(self.log),
            "RELEASE": str(self.release),
            "LEASE": str(lease),
            "PYTHONPATH": f"{directory}:{REPOSITORY}",
        }

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{len(self.processes)}.txt").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "probe", *arguments],
                cwd=self.directory,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def start_worker(self, name: str, pool: str = "prefork") -> subprocess.Popen[bytes]:
        return self.start("worker", "-l", "INFO", "-c", "2", "-P", pool, "-n", f"{name}@%h")

    def send(self, *calls: str) -> None:
        """Run Python on `probe` in a process of its own."""
        code = "\n".join(["import probe", *calls])
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=self.directory, env=self.environment
        )
        self.processes.append(process)

    def ping(self) -> set[str]:
        """Names of the workers that answer `celery inspect ping`."""
        answer = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "probe", "inspect", "ping", "-t", "2", "--json"],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return (
            {name.partition("@")[0] for name in json.loads(answer.stdout)}
            if answer.returncode == 0
            else set()
        )

    def noted(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []

    def output(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.directory.glob("*.txt")))

    def stop(self) -> list[int]:
        """Shut everything down warmly; the exit codes."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        return [process.wait(30) for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()  # pool children of a dead worker are killed by the kernel
            process.wait()


@pytest.fixture
def probe(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Probe]:
    probe = Probe(tmp_path, lease=getattr(request, "param", 30))
    yield probe
    probe.kill()


@pytest.mark.slow
def test_two_prefork_workers_run_every_task_once_and_answer_a_ping(probe: Probe) -> None:
    probe.start_worker("one")
    probe.start_worker("two")
    probe.send("for n in range(300): probe.note.delay(n)")
    probe.send("probe.spread.delay(300, 300)")  # published by a pool child of a worker

    until(lambda: len(probe.noted()) >= 600, seconds=60)

    assert probe.ping() == {"one", "two"}
    assert Counter(probe.noted()) == Counter(str(n) for n in range(600))
    assert probe.stop() == [0, 0, 0, 0]
    assert "Traceback" not in probe.output()
    assert sql(probe.broker, "SELECT count(*) FROM message") == [(0,)]
    # Before 5.7, Celery leaves the queues of its workers' remote control behind.
    tasks = "SELECT name FROM queue WHERE name NOT LIKE '%.pidbox'"
    assert sql(probe.broker, tasks) == [("celery",)]


@pytest.mark.slow
def test_worker_continues_after_messages_that_cannot_be_read(probe: Probe) -> None:
    worker = probe.start_worker("one")
    until(lambda: "ready" in probe.output())
    put_unreadable(probe.broker, "celery", unreadable := [*UNREADABLE, *MISSHAPEN])
    probe.send("probe.note.delay('good')")

    until(lambda: probe.noted() == ["good"])

    assert sql(probe.broker, "SELECT count(*) FROM dead_letter") == [(len(unreadable),)]
    assert worker.poll() is None


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("probe", [3], indirect=True)
def test_nothing_is_lost_when_a_worker_is_killed(probe: Probe) -> None:
    killed = probe.start_worker("killed")
    probe.send("for n in range(300): probe.note.delay(n, 0.01)")
    until(lambda: len(probe.noted()) > 50)

    os.kill(killed.pid, signal.SIGKILL)
    probe.start_worker("heir")

    until(lambda: {str(n) for n in range(300)} <= set(probe.noted()), seconds=60)
    until(lambda: sql(probe.broker, "SELECT count(*) FROM message") == [(0,)])
    until(lambda: not sql(probe.broker, "SELECT 1 FROM queue WHERE name LIKE 'killed@%'"))
    assert len(probe.noted()) <= 300 + 8  # nothing twice but what the dead worker had leased


@pytest.mark.slow
@pytest.mark.skipif(
    celery.__version__ < "5.5", reason="Celery closed the connection before its tasks had ended"
)
@pytest.mark.parametrize("pool", ["prefork", "solo"])
@pytest.mark.parametrize("probe", [1], indirect=True)
def test_task_that_outlives_its_lease_and_a_warm_shutdown_runs_once(
    probe: Probe, pool: str
) -> None:
    busy = probe.start_worker("busy", pool)
    probe.send("probe.hold.delay()")
    until(lambda: probe.noted() == ["start"])
    lapsed = time.time() + 2

    probe.start_worker("other")
    until(lambda: "other" in probe.ping())
    until(lambda: time.time() > lapsed)
    busy.terminate()
    until(lambda: "Warm shutdown" in probe.output())
    probe.release.touch()
    busy.wait(30)

    assert probe.noted() == ["start", "end"]
    assert sql(probe.broker, "SELECT count(*) FROM message WHERE queue = 'celery'") == [(0,)]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("probe", [1], indirect=True)
def test_stopped_worker_connects_again_when_it_goes_on(probe: Probe) -> None:
    sleeper = probe.start_worker("sleeper")
    until(lambda: "ready" in probe.output())

    os.kill(sleeper.pid, signal.SIGSTOP)
    until(lambda: sql(probe.broker, "SELECT 1 FROM owner WHERE expires_at < ?", time.time()))
    probe.start_worker("other")
    until(lambda: probe.ping() == {"other"})
    os.kill(sleeper.pid, signal.SIGCONT)

    until(lambda: probe.ping() == {"other", "sleeper"}, seconds=30)
    assert "Connect again" in probe.output()


@pytest.mark.slow
def test_beat_sends_through_the_file(probe: Probe) -> None:
    probe.start_worker("one", "solo")
    probe.start("beat", "-s", str(probe.directory / "schedule"))

    until(lambda: probe.noted().count("tick") >= 3)
