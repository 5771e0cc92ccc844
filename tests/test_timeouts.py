"""Alarms: what they end, and what they leave as it was."""

import signal
import time
from contextlib import contextmanager, suppress
from functools import partial
from unittest.mock import Mock

import pytest
from billiard import pool
from billiard.exceptions import SoftTimeLimitExceeded

from autorun.declare import interruption
from autorun.declare.interruption import (
    Interruptible,
    Termination,
    calls_limited,
    soft_limit_ignored,
    time_limit,
)
from autorun.exceptions import RunTimeout
from autorun.state import user_code

pytestmark = pytest.mark.once


def hang(_=None):
    while True:
        time.sleep(0.01)


def test_each_call_has_its_own_time():
    def work(seconds):
        time.sleep(seconds)
        return seconds

    with calls_limited(work, 0.2, message="too long") as limited:
        assert [limited(0.05) for _ in range(6)] == [0.05] * 6
        with pytest.raises(RunTimeout, match="too long"):
            limited(5)
        assert limited(0.01) == 0.01


def test_what_swallows_the_exception_is_told_again():
    told = []

    def stubborn(_):
        while len(told) < 2:
            try:
                hang()
            except RunTimeout:
                told.append(1)

    with calls_limited(stubborn, 0.05, message="too long") as limited:
        limited(None)

    assert len(told) == 2


def test_an_error_in_the_place_of_the_exception_counts_as_the_exception():
    def replace(_):
        try:
            hang()
        except RunTimeout:
            raise KeyError from None  # SQLite raises that it was interrupted

    with calls_limited(replace, 0.05, message="too long") as limited:
        with pytest.raises(RunTimeout, match="too long"):
            limited(None)
        with pytest.raises(TypeError):
            limited()


def test_a_server_that_is_slow_to_cancel_a_query_does_not_hold_up_the_exception(
    monkeypatch, set_constants
):
    """The alarm goes off again and again while its handler waits for the server."""
    set_constants(interruption, INSISTENCE=0.05)
    waits = []

    def wait(_):
        waits.append(1)
        with suppress(Exception):
            time.sleep(0.2)

    monkeypatch.setattr(user_code, "all_connections", lambda: [Mock(connection=None)])
    monkeypatch.setattr(user_code, "_cancel_query", wait)
    with pytest.raises(RunTimeout), time_limit(0.05):
        hang()

    assert len(waits) == 1


def test_a_signal_that_arrives_as_a_limit_ends_raises_nothing_there():
    told = []
    with Termination() as termination:
        try:
            with Interruptible(termination), (limit := time_limit(10)):
                restore = limit._restore
                # Python handles the signal in the frame that calls this: that of __exit__().
                limit._restore = partial(signal.raise_signal, signal.SIGTERM)
            told.append(termination.was_requested)
        finally:
            termination.was_requested = False  # it would end this process
            restore()

    assert told == [True]


@pytest.mark.parametrize("inner", ["block", "calls"])
def test_a_limit_within_another_leaves_the_outer_one_as_it_was(inner):
    before = signal.getsignal(signal.SIGALRM)

    def hang_after_it():
        if inner == "block":
            with time_limit(30):
                pass
        else:
            with calls_limited(str, 30, message="") as limited:
                limited(1)
        hang()

    with pytest.raises(RunTimeout, match="outer"), time_limit(0.2, message="outer"):
        hang_after_it()

    assert signal.getsignal(signal.SIGALRM) is before


def test_celerys_soft_limit_ends_nothing_of_autoruns():
    with _signalled_as_in_a_pool():
        with soft_limit_ignored():
            signal.raise_signal(pool.SIG_SOFT_TIMEOUT)
        with pytest.raises(SoftTimeLimitExceeded):
            signal.raise_signal(pool.SIG_SOFT_TIMEOUT)


def test_what_else_the_signal_means_stays_as_it_is():
    told = []
    before = signal.signal(signal.SIGUSR1, lambda *_: told.append("dump"))
    try:
        with soft_limit_ignored():
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert told == ["dump"]


@contextmanager
def _signalled_as_in_a_pool():
    before = signal.signal(pool.SIG_SOFT_TIMEOUT, pool.soft_timeout_sighandler)
    try:
        yield
    finally:
        signal.signal(pool.SIG_SOFT_TIMEOUT, before)
