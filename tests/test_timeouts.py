"""Alarms: what they end, and what they leave as it was."""

import signal
import time

import pytest

from autorun.exceptions import RunTimeout
from autorun.timeouts import calls_limited, time_limit

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
