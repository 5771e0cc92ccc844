"""What user code leaves behind in its connections, its thread and its process."""

import asyncio
import contextvars
import decimal
import gc
import locale
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from django.db import connection, connections
from django.db.backends.signals import connection_created
from django.utils import timezone, translation

from autorun.state.surroundings import READS_OF_MAIN
from autorun.state.user_code import UserCode
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
    "depth": lambda: sys.setrecursionlimit(200),
}


def set_time_zone(name):
    os.environ["TZ"] = name
    time.tzset()


def surroundings():
    now = [read() for read in READS_OF_MAIN]
    here = (translation.get_language(), timezone.get_current_timezone_name())
    return [*now, *here, decimal.getcontext().prec]


@pytest.mark.once
@pytest.mark.parametrize("leave", LEFT.values(), ids=LEFT)
def test_what_it_changes_in_its_process_is_put_back_and_logged(leave, caplog):
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    before, depth = surroundings(), sys.getrecursionlimit()
    with UserCode("a.Runner"):
        leave()

    assert surroundings() == before
    assert sys.getrecursionlimit() == depth
    if leave is not LEFT["depth"]:
        assert "a.Runner left another" in caplog.text


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
    with connection.cursor() as cursor:  # autorun's own statement
        cursor.execute("SELECT 1")
    with code:
        is_before = connections["default"] is before

    assert is_before
    assert not before.in_atomic_block
    assert "in the place of 'default'. It is put back." in caplog.text


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
