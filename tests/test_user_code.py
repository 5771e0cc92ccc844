"""What user code leaves behind in its connections, its thread and its process."""

import asyncio
import contextvars
import decimal
import gc
import locale
import logging
import os
import resource
import signal
import socket
import sqlite3
import sys
import threading
import time
import warnings
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django.utils import timezone, translation

from autorun.models import Chunk
from autorun.state import user_code
from autorun.state.surroundings import READS_OF_MAIN, kept
from autorun.state.user_code import UserCode, _thread, cancel_queries
from tests.faultlab import leftovers

LEFT = {
    "language": lambda: translation.activate("ar"),
    "no language": translation.deactivate_all,
    "time zone": lambda: timezone.activate("Asia/Tokyo"),
    "precision": lambda: setattr(decimal.getcontext(), "prec", 3),
    "arithmetic": lambda: decimal.setcontext(decimal.Context(prec=4)),
    "event loop": lambda: asyncio._set_running_loop(object()),
    "directory": lambda: os.chdir("/"),
    "output": lambda: setattr(sys, "stdout", None),
    "errors": lambda: setattr(sys, "stderr", None),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C"),
    "garbage": gc.disable,
    "sockets": lambda: socket.setdefaulttimeout(0.001),
    "logging": lambda: logging.disable(logging.CRITICAL),
    "child": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    "ended": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "blocked": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM}),
    "clock": lambda: set_time_zone("Asia/Tokyo"),
    "umask": lambda: os.umask(0o777),
    "warnings": lambda: warnings.filterwarnings("error", "of a body"),
    "threads": lambda: sys.setswitchinterval(100),
    "environment": lambda: os.environ.pop("PATH"),
    "variable": lambda: os.environ.update(PATH="/nowhere"),
    "depth": lambda: sys.setrecursionlimit(200),
    "timer of processor time": lambda: signal.setitimer(signal.ITIMER_PROF, 1000),
    "timer of its own time": lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 1000),
    "files": lambda: limit(resource.RLIMIT_NOFILE, 100),
    "sizes": lambda: limit(resource.RLIMIT_FSIZE, 10**9),
    "memory": lambda: limit(resource.RLIMIT_AS, 10**11),
    "priority": lambda: os.nice(3),
    "user": lambda: os.seteuid(65534),
}
OF_ROOT = ("priority", "user")


def limit(kind, number):
    resource.setrlimit(kind, (number, resource.getrlimit(kind)[1]))


def set_time_zone(name):
    os.environ["TZ"] = name
    time.tzset()


def surroundings():
    now = kept(read() for read in READS_OF_MAIN)
    here = (translation.get_language(), timezone.get_current_timezone_name())
    return [*now, *here, decimal.getcontext().prec]


@pytest.mark.once
@pytest.mark.parametrize("name", LEFT)
def test_what_it_changes_in_its_process_is_put_back_and_logged(name, caplog):
    if name in OF_ROOT and os.geteuid() != 0:
        pytest.skip("only root can")
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    before, depth = surroundings(), sys.getrecursionlimit()
    code = UserCode("a.Runner")
    for _ in range(2):
        caplog.clear()
        with code:
            LEFT[name]()

        assert surroundings() == before
        assert sys.getrecursionlimit() == depth
        if name != "depth":
            assert "a.Runner left another" in caplog.text


@pytest.mark.once
def test_a_language_and_a_time_zone_that_are_put_back_follow_the_settings(settings):
    translation.deactivate()
    timezone.deactivate()
    with UserCode("a.Runner"):
        translation.activate("de")
        timezone.activate("Asia/Tokyo")

    settings.LANGUAGE_CODE, settings.TIME_ZONE = "fr", "Asia/Seoul"

    now = (translation.get_language(), timezone.get_current_timezone_name())
    assert now == ("fr", "Asia/Seoul")


@pytest.mark.once
def test_a_limit_that_a_body_raises_stays(caplog):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        limit(resource.RLIMIT_NOFILE, 100)
        code = UserCode("a.Runner")
        for _ in range(2):
            with code:
                limit(resource.RLIMIT_NOFILE, 200)

        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 200
        assert not caplog.messages
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.once
def test_what_a_module_adds_as_a_body_imports_it_stays(caplog, monkeypatch):
    before = os.environ["PATH"]
    monkeypatch.setenv("PATH", before)
    monkeypatch.delenv("AUTORUN_OF_A_MODULE", raising=False)
    code = UserCode("a.Runner")
    with warnings.catch_warnings():
        for _ in range(2):
            with code:
                os.environ["PATH"] = f"/of/a/module:{before}"
                os.environ["AUTORUN_OF_A_MODULE"] = "1"
                warnings.filterwarnings("ignore", "of a module")

            assert os.environ["PATH"] == f"/of/a/module:{before}"
            assert os.environ["AUTORUN_OF_A_MODULE"] == "1"
            assert warnings.filters[0][0] == "ignore"
    assert not caplog.messages


@pytest.mark.once
def test_what_is_put_back_beside_what_stays_is_logged(caplog, monkeypatch):
    monkeypatch.setenv("AUTORUN_OF_A_PROJECT", "1")
    monkeypatch.setenv("AUTORUN_OF_A_MODULE", "")  # absent again after the test
    del os.environ["AUTORUN_OF_A_MODULE"]
    with warnings.catch_warnings():
        with (code := UserCode("a.Runner")):
            del os.environ["AUTORUN_OF_A_PROJECT"]
            os.environ["AUTORUN_OF_A_MODULE"] = "1"
            warnings.filterwarnings("ignore", "of a module")
            warnings.filterwarnings("error", "of a body")

        assert warnings.filters[0][0] == "ignore"
    assert os.environ["AUTORUN_OF_A_PROJECT"] == os.environ["AUTORUN_OF_A_MODULE"] == "1"
    assert code.has_mended
    assert "a.Runner left another environment" in caplog.text
    assert "a.Runner left another filter of warnings" in caplog.text


@pytest.mark.once
def test_what_cannot_be_put_back_is_not_said_to_be(tmp_path, monkeypatch, caplog):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    code = UserCode("a.Runner")
    for _ in range(3):
        with code:
            os.chdir(tmp_path)
            gone.rmdir() if gone.exists() else None

    assert not caplog.messages


@pytest.mark.once
def test_a_logger_that_was_used_while_logging_was_disabled_is_heard_again(caplog):
    logger = logging.getLogger("of.a.project")
    with UserCode("a.Runner"):
        logging.disable(logging.CRITICAL)
        logger.error("while it is disabled")

    logger.error("afterwards")

    assert "afterwards" in caplog.messages
    assert "while it is disabled" not in caplog.messages


@pytest.mark.once
def test_it_runs_although_its_working_directory_is_gone(tmp_path, monkeypatch, caplog):
    release = tmp_path / "release"
    release.mkdir()
    monkeypatch.chdir(release)
    release.rmdir()

    with UserCode("a.Runner"):
        pass

    assert not caplog.messages


@pytest.mark.once
def test_it_may_leave_values_that_cannot_be_compared(caplog):
    class Array:
        def __eq__(self, other):
            raise ValueError("The truth value of an array is ambiguous.")

        __hash__ = None

    variable = contextvars.ContextVar("variable")
    variable.set(Array())
    with UserCode("a.Runner"):
        variable.set(Array())

    assert not caplog.messages


@pytest.mark.once
def test_a_handler_that_celery_has_set_stays():
    def cold(*_):
        pass

    cold.__module__ = "celery.apps.worker"
    before = signal.getsignal(signal.SIGINT)
    try:
        with UserCode("a.Runner"):
            signal.signal(signal.SIGINT, cold)

        assert signal.getsignal(signal.SIGINT) is cold
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.once
def test_a_thread_that_computes_with_decimals_for_the_first_time_is_as_before(caplog):
    def compute():
        with UserCode("a.Runner"):
            decimal.Decimal(1) / 3

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()

    assert not caplog.messages


@pytest.mark.once
def test_context_variables_that_autorun_sets_between_two_calls_are_no_leftovers(caplog):
    mine = contextvars.ContextVar("mine")
    code = UserCode("a.Runner")
    for value in range(3):
        mine.set(value)
        with code:
            pass

        assert mine.get() == value
    assert not caplog.text


@pytest.mark.once
def test_in_another_thread_the_process_is_left_to_the_code_that_uses_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call():
        with UserCode("a.Runner"):
            os.chdir("/")
            translation.activate("ar")
        found.append(translation.get_language())

    found = []
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

    assert str(Path.cwd()) == "/"
    assert found == ["en-us"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("sql", "is_replaced"),
    [
        ("SELECT 1;", False),
        ("SELECT 1; SELECT 2", True),
        ("SELECT 1", False),
    ],
)
def test_only_a_second_statement_may_change_the_session(sql, is_replaced, caplog):
    connection.ensure_connection()
    if is_replaced and connection.vendor != "postgresql":
        pytest.skip("one statement at a time")
    with UserCode("a.Runner"), connection.cursor() as cursor:
        cursor.execute(sql)

    assert ("left the connection" in caplog.text) == is_replaced


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("leave", ["removed", "another", "another_open"])
def test_a_connection_that_it_removes_or_replaces_is_put_back(leave, caplog):
    connection.ensure_connection()
    before = connections["default"]
    code = UserCode("a.Runner")
    with code:
        leftovers.leave(leave)

    assert connections["default"] is before
    assert not before.in_atomic_block
    assert "in the place of 'default'. It is put back." in caplog.text


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("way", ["rows_left", "rows_left_begun", "rows_left_closed"])
def test_a_cursor_with_rows_left_ends_with_its_connection(way, file_of_its_own, caplog):
    """Otherwise it would keep its snapshot, and a lock, as long as the process refers to it."""
    code = UserCode("a.Runner")
    for _ in range(2):
        with code:
            leftovers.leave(way)
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            next(leftovers._kept.pop())

        write_from_elsewhere(file_of_its_own)
    assert ("left the connection" in caplog.text) == (way != "rows_left_closed")


@pytest.mark.django_db(transaction=True)
def test_a_cursor_that_has_been_read_or_is_the_callers_costs_no_connection(file_of_its_own, caplog):
    with UserCode("a.Runner"):
        read = connection.cursor().execute("SELECT 1")
        read.fetchall()
    of_caller = ContentType.objects.iterator(chunk_size=1)
    next(of_caller)
    with UserCode("a.Runner"):
        leftovers.leave("begin")

    next(of_caller)
    assert read.fetchone() is None
    assert not caplog.messages


@pytest.fixture
def file_of_its_own(tmp_path, monkeypatch):
    """The file of a database on disk, to which the default connection leads."""
    if connection.vendor != "sqlite":
        pytest.skip("the cursors of other databases do not outlive their connection")
    path = tmp_path / "database"
    for name, value in (("NAME", path), ("OPTIONS", {})):
        monkeypatch.setitem(connection.settings_dict, name, value)
    connection.close()
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
        raw.execute("CREATE TABLE django_content_type (id, app_label, model)")
        raw.executemany("INSERT INTO django_content_type VALUES (?, 'a', 'b')", [[1], [2], [3]])
        raw.commit()
    yield path
    connection.close()


def write_from_elsewhere(path):
    with closing(sqlite3.connect(path, timeout=0)) as raw:
        raw.execute("DELETE FROM django_content_type WHERE id = 4")
        raw.commit()


@pytest.mark.faults(39)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("block", [nullcontext, transaction.atomic])
def test_a_child_that_it_forks_has_connections_of_its_own(block, caplog):
    """It would read the answers to its parent's queries."""
    connection.ensure_connection()
    if connection.vendor == "sqlite" and connection.is_in_memory_db():
        pytest.skip("another connection would find no tables")
    before = connection.connection
    with UserCode("a.Runner"), block():
        has_failed = True
        pid = os.fork()
        try:
            for number in range(50):
                assert answer(number + pid) == number + pid
            has_failed = False
        finally:
            if not pid:
                os._exit(has_failed)
        assert os.waitpid(pid, 0)[1] == 0

    assert connection.connection is before
    assert not caplog.messages


def answer(number):
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s", [number])
        return int(cursor.fetchone()[0])


OF_CONNECTIONS = [
    *("cursor", "chunked_cursor", "commit", "settings", "thread_ident", "operations", "features"),
    *("on_commit", "databases"),
]
OF_DRIVERS = {
    "postgresql": [
        *("driver_cursor", "driver_procedure", "driver_loader", "driver_dumper"),
        *("driver_factory", "driver_method"),
    ],
    "mysql": [
        *("driver_cursor", "driver_decoders", "driver_encoders", "driver_time", "driver_method"),
    ],
    "sqlite": ["driver_progress"],
}[connection.vendor]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("name", [*OF_CONNECTIONS, *OF_DRIVERS])
def test_what_it_leaves_on_a_connection_reaches_neither_autorun_nor_the_next_call(
    name, is_open, caplog
):
    code = UserCode("a.Runner")
    for _ in range(2):
        caplog.clear()
        if is_open or connection.vendor == "sqlite":  # one in memory would be another one
            connection.ensure_connection()
        else:
            connection.close()
        with code:
            leftovers.leave(name)
        with transaction.atomic():
            assert Chunk.objects.count() == 0
            assert not list(Chunk.objects.filter(runner="a"))
        with code:
            assert Chunk.objects.count() == 0

        assert ("a.Runner" in caplog.text) == (name != "driver_progress")


@pytest.mark.django_db(transaction=True)
def test_what_the_project_has_patched_before_stays(monkeypatch, caplog):
    """As profilers do."""
    of = connections["default"]
    calls = []

    def cursor():
        calls.append(1)
        return type(of).cursor(of)

    monkeypatch.setattr(of, "cursor", cursor)
    code = UserCode("a.Runner")
    for _ in range(2):
        with code:
            ContentType.objects.count()
            connection.chunked_cursor().close()

    assert vars(of)["cursor"] is cursor
    assert calls
    assert not caplog.messages


@pytest.mark.django_db(transaction=True)
def test_ordinary_statements_for_the_driver_cost_no_connection(caplog):
    connection.ensure_connection()
    before = connection.connection
    with UserCode("a.Runner"):
        connection.is_usable()
        with connection.cursor() as cursor:
            cursor.cursor.execute("SELECT 1")
            cursor.cursor.fetchall()
            if connection.vendor == "postgresql":
                with cursor.copy("COPY (SELECT 1) TO STDOUT") as copy:
                    list(copy)
        with connection.chunked_cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()

    assert connection.connection is before
    assert not caplog.messages


@pytest.mark.django_db(transaction=True)
def test_outside_of_workers_a_receiver_may_set_a_connection_up_after_autorun(caplog):
    """As that of `django.contrib.postgres`, if it comes later in INSTALLED_APPS."""

    def set_up(connection, **_):
        FACTORIES[connection.vendor](connection.connection)

    if connection.vendor == "sqlite":
        pytest.skip("a row's factory is what the project has chosen, or is not")
    connection.close()
    connection_created.connect(set_up)
    try:
        connection.ensure_connection()
        before = connection.connection
        for _ in range(2):
            with UserCode("a.Runner"):
                ContentType.objects.count()
    finally:
        connection_created.disconnect(set_up)

    assert connection.connection is before
    assert not caplog.messages
    connection.close()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_made_anew", [True, False])
def test_a_connection_that_a_project_makes_and_removes_is_not_put_back(is_made_anew, monkeypatch):
    """As one for each tenant, under the same alias."""
    monkeypatch.setattr(_thread, "connections", None, raising=False)
    monkeypatch.setitem(connections.settings, "tenant", dict(connections.settings["default"]))
    before = connections["tenant"]
    code = UserCode("a.Runner")  # which knows of it
    del connections["tenant"], connections.settings["tenant"]
    if is_made_anew:
        connections.settings["tenant"] = dict(connections.settings["default"])

    with code:
        leftovers.leave("another_open")
        anew = connections["tenant"] if is_made_anew else None

    assert not connection.in_atomic_block
    assert before not in connections.all()
    if is_made_anew:
        assert connections["tenant"] is anew
        del connections["tenant"]


@pytest.mark.django_db(transaction=True)
def test_a_connection_whose_driver_it_sets_up_otherwise_is_replaced():
    connection.ensure_connection()
    before = connection.connection

    with UserCode("a.Runner"):
        leftovers.leave("driver_attributes")

    assert connection.connection is not before


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_session_that_is_set_up_as_its_connection_opens_is_as_the_project_has_it(is_ours, caplog):
    """In a connection that user code is the first to use, too."""

    def set_up(connection, **_):
        with connection.cursor() as cursor:
            cursor.execute(SET_UP[connection.vendor])

    connection.close()
    if is_ours:
        connection_created.connect(set_up)
    try:
        with UserCode("a.Runner"), connection.cursor() as cursor:
            cursor.execute("SELECT 1" if is_ours else SET_UP[connection.vendor])
    finally:
        connection_created.disconnect(set_up)
        connection.close()

    assert ("left the connection" in caplog.text) == (not is_ours)


SET_UP = {
    "postgresql": "SET work_mem TO '8MB'",
    "mysql": "SET SESSION group_concat_max_len = 2000",
    "sqlite": "PRAGMA cache_size = 1000",
}


@pytest.mark.django_db(transaction=True)
def test_statements_for_the_driver_itself_may_change_the_session(caplog):
    if connection.vendor == "sqlite":
        pytest.skip("its driver's connections cannot be watched")
    connection.close()
    with UserCode("a.Runner"):
        connection.ensure_connection()
        with connection.connection.cursor() as cursor:
            cursor.execute(SET_UP[connection.vendor])

    assert "left the connection" in caplog.text
    assert connection.connection is None


@pytest.mark.django_db(transaction=True)
def test_what_receivers_that_are_connected_later_do_is_part_of_a_connection_in_a_worker(caplog):
    def set_up(connection, **_):
        FACTORIES[connection.vendor](connection.connection)

    connection.close()
    connection_created.connect(set_up)
    try:
        user_code.connect()
        with UserCode("a.Runner"), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connection_created.disconnect(set_up)
        connection.close()

    assert not caplog.messages


FACTORIES = {
    "postgresql": lambda raw: setattr(
        raw, "cursor_factory", type("Own", (raw.cursor_factory,), {})
    ),
    "mysql": lambda raw: setattr(raw, "cursorclass", type("Own", (raw.cursorclass,), {})),
    "sqlite": lambda raw: setattr(raw, "text_factory", lambda text: text.decode()),
}


@pytest.mark.django_db(transaction=True)
def test_a_connection_of_a_pool_is_watched_once_for_all_threads_that_have_it(caplog):
    if connection.vendor == "sqlite":
        pytest.skip("its driver's connections cannot be watched")
    connection.close()
    connection.ensure_connection()
    raw, make = connection.connection, connection.connection.cursor
    del connections[connection.alias].__dict__[
        "_autorun_session"
    ]  # as of another thread, which has got it now

    with UserCode("a.Runner"):
        assert connection.connection.cursor is make
        with raw.cursor() as cursor:
            cursor.execute(SET_UP[connection.vendor])

    assert "left the connection" in caplog.text


def test_queries_of_a_connection_that_its_thread_has_just_closed_are_cancelled_quietly():
    raw = sqlite3.connect(":memory:")
    raw.close()

    cancel_queries([SimpleNamespace(vendor="sqlite", connection=raw)])
