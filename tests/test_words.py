from __future__ import annotations

import datetime as dt

import pytest
from celery.schedules import crontab
from django.utils import timezone

from autorun.planning.reasons import Reason
from autorun.state import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (0.0002, "under 1 ms"), (0.34, "340 ms"), (2.13, "2.1 s"), (9.96, "9 s"),
        (59.9, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7_500, "2 h 5 min"),
        (86_400, "1 d"), (180_000, "2 d 2 h"),
    ],
)  # fmt: skip
def test_a_duration(value, text):
    assert words.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (0.0, "1 s"), (0.405, "1 s"), (7.3, "7 s"), (9.9, "10 s"), (28.6, "30 s"),
        (58, "1 min"), (203, "3 min 30 s"), (1_234, "21 min"), (7_700, "2 h 10 min"),
        (40_000, "11 h"), (180_000, "2 d 2 h"),
    ],
)  # fmt: skip
def test_an_estimate_is_not_more_precise_than_a_guess(value, text):
    assert words.estimate(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, ""), (19, "19 runs/s"), (1.5, "1.5 runs/s"), (0.5, "30 runs/min"), (0.001, "3.6 runs/h")],
)
def test_a_rate(value, text):
    assert words.rate(value) == text


def test_numbers():
    assert words.number(98_765) == "98,765"
    assert words.number(None) == ""
    assert [words.short_number(each) for each in (0, 99_999, 123_456, 4_560_000)] == [
        "0", "99,999", "123k", "4.56M",
    ]  # fmt: skip
    assert words.counted(1, "run") == "1 run"
    assert words.counted(2_000, "run is", "runs are") == "2,000 runs are"


def test_moments():
    now = timezone.now()

    assert words.ago(now) == "now"
    assert words.ago(now - dt.timedelta(minutes=3, seconds=50)) == "3 min ago"
    assert words.ago(now + dt.timedelta(hours=2, seconds=5)) == "in 2 h"
    assert words.moment(None) == ""


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (None, "no sweeps"),
        (crontab(minute="0", hour="3"), "daily 03:00"),
        (crontab(minute=30, hour=14), "daily 14:30"),
        (crontab(minute="*/5"), "every 5 min"),
        (crontab(minute="0", hour="3", day_of_week="1"), "Mondays 03:00"),
        (crontab(minute="0", hour="3", day_of_month="1"), "cron 0 3 1 * *"),
        (dt.timedelta(hours=1), "every 1 h"),
    ],
)
def test_schedules(schedule, text):
    assert words.schedule(schedule) == text


def test_every_reason_has_words():
    assert {*Reason, "unprepared", "filtered"} == words.REASONS.keys()


def test_a_slip_is_taken_for_the_name_that_is_most_like_it():
    names = ["MAX_PARALLEL", "MAX_ATTEMPTS"]

    assert words.meant("max_paralel", names) == "MAX_PARALLEL"
    assert words.meant("QUEUE", names) is None
    assert words.meant("QUEUE", []) is None
