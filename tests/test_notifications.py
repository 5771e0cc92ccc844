"""Who is told of failures, how often, and with what."""

import datetime as dt
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import django
import pytest
from django.core import mail
from django.db import connection, connections
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from autorun.dispatch.publishing import redirected
from autorun.models import Failure, Pulse, Run
from autorun.notifications import FailureReport
from autorun.observe import notifying
from autorun.observe.checks.autorun_setting import check_settings
from autorun.observe.notifying import hand_over_reports, notify_soon
from autorun.upkeep.rounds import upkeep
from tests.engine import declare, installed, plan_at_once, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db

reports: list[FailureReport] = []


def note(report: FailureReport) -> None:
    """The callable that ON_FAILURE names in these tests."""
    reports.append(report)


@pytest.fixture(autouse=True)
def told(settings) -> list[FailureReport]:
    """Return the reports that were made."""
    settings.AUTORUN = {"ON_FAILURE": f"{__name__}.note"}
    reports.clear()
    return reports


def broken(value):
    raise ValueError(f"No good: {value!r}")


def fail(runner, *titles: str) -> None:
    """Have a run fail for good for each title."""
    for title in titles:
        Document.objects.create(title=title)
    runner().run()
    work_off()


def pass_time(**duration: float) -> None:
    """Let what has happened so far lie back by so long."""
    Pulse.objects.update(beat_at=F("beat_at") - dt.timedelta(**duration))
    Failure.objects.update(failed_at=F("failed_at") - dt.timedelta(**duration))


def catch_up() -> int:
    """Have a worker do at once what upkeep hands over."""
    with redirected(plan_at_once):
        return hand_over_reports()


def test_the_first_failure_is_told_of_at_once(told):
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a", "b")

    (report,) = told
    assert (report.runner, report.analysis) == ("tests.EchoRunner", "Echo v1.0")
    assert report.runs == 2
    (group,) = report.groups
    assert (group.exception_class, group.runs) == ("ValueError", 2)
    assert group.message == "No good: 'b'"
    assert group.run_id == Run.objects.order_by("pk")[1].pk


def test_attempts_that_are_repeated_are_not_told_of(told):
    runner = declare(broken, MAX_ATTEMPTS=2)
    with installed(runner):
        fail(runner, "a")
        assert told == []

        work_off(retry_now=True)

    assert [report.runs for report in told] == [1]


def test_what_fails_within_the_interval_is_told_of_together_after_it(told):
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        pass_time(minutes=10)
        fail(runner, "b")
        fail(runner, "c")
        assert len(told) == 1
        assert catch_up() == 0

        pass_time(minutes=51)

        assert catch_up() == 1
    assert [report.runs for report in told] == [1, 2]


def test_nothing_new_is_not_told_of(told):
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        pass_time(hours=2)

        assert catch_up() == 0
    assert len(told) == 1


def test_each_runner_has_an_interval_of_its_own(told):
    runners = [declare(broken, NAME=name, TITLE=name, MAX_ATTEMPTS=1) for name in ("A", "B")]
    with installed(*runners):
        fail(runners[0], "a")
        fail(runners[1])

    assert [report.runner for report in told] == ["tests.A", "tests.B"]


def test_the_interval_is_a_setting(told, settings):
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE_EVERY": dt.timedelta(minutes=5)}
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        pass_time(minutes=6)
        fail(runner, "b")

    assert [report.runs for report in told] == [1, 1]


@pytest.mark.django_db(transaction=True)
def test_of_many_who_would_tell_at_once_one_does(told, settings):
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": None}
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": note}
        start = threading.Barrier(4)

        def tell(_: int) -> bool:
            try:
                start.wait(10)
                return notify_soon(runner())
            finally:
                connections.close_all()

        with ThreadPoolExecutor(4) as threads:
            have_told = list(threads.map(tell, range(4)))

    assert sorted(have_told) == [False, False, False, True]
    assert len(told) == 1


def test_upkeep_tells_of_what_workers_have_not(told, settings):
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": None}
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": note}

        report = upkeep(in_any_case=True, notify=catch_up)

    assert report is not None
    assert report.notified == 1
    assert len(told) == 1


def test_without_the_setting_nothing_is_asked_for(settings):
    settings.AUTORUN = {}
    with CaptureQueriesContext(connection) as queries:
        assert hand_over_reports() == 0
        assert not notify_soon(declare()())

    assert len(queries) == 0


@pytest.mark.parametrize("on_failure", ["no.such.function", lambda report: 1 / 0])
def test_an_error_in_telling_hurts_nothing(settings, caplog, on_failure):
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": on_failure}
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner), caplog.at_level(logging.ERROR, "autorun"):
        fail(runner, "a")

        assert runner().progress().failed == 1
    assert "tests.EchoRunner: its failures could not be reported." in caplog.text


def test_what_nobody_could_be_told_of_is_told_later(told, settings):
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": lambda report: 1 / 0}
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": note}
        fail(runner, "b")
        at_once = list(told)
        pass_time(hours=5)
        catch_up()
        catch_up()

    assert at_once == []
    assert [report.runs for report in told] == [2]


def test_telling_is_not_tried_for_every_failure(settings):
    tries = []
    settings.AUTORUN = settings.AUTORUN | {
        "ON_FAILURE": lambda report: tries.append(report.runs) or 1 / 0
    }
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        fail(runner, "b")
        pass_time(minutes=5)
        fail(runner, "c")

    assert tries == [1, 3]


def test_telling_does_not_take_for_ever(settings, caplog, set_constants):
    set_constants(notifying, CALLBACK_TIMEOUT=0.05)
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": lambda report: time.sleep(30)}
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner), caplog.at_level(logging.ERROR, "autorun"):
        fail(runner, "a")

    assert "AUTORUN['ON_FAILURE'] took longer than 0.05 s" in caplog.text


def test_mail_goes_to_the_admins(settings):
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": "autorun.notifications.mail_admins"}
    ada = "ada@example.org"
    settings.ADMINS = [("Ada", ada)] if django.VERSION < (6,) else [ada]
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a", "b")

    (message,) = mail.outbox
    assert message.to == ["ada@example.org"]
    assert message.subject.endswith("tests.EchoRunner: 2 runs failed")
    assert "2 x ValueError: No good: 'b'" in message.body
    assert f"    run {Run.objects.order_by('pk')[1].pk}" in message.body
    assert "`manage.py autorun retry tests.EchoRunner`" in message.body


def test_a_long_report_is_cut_short():
    kinds = [f"{chr(97 + number) * 3} is a message of its own" for number in range(25)]

    def body(value):
        # Of two classes in turns: many failures of one alone would hold the runner up.
        raise (TypeError if ord(value[0]) % 2 else ValueError)(value)

    runner = declare(body, MAX_ATTEMPTS=1, BATCH_SIZE=25)
    with installed(runner):
        fail(runner, *kinds)

    text = str(reports[0])
    assert text.count(" x ValueError") + text.count(" x TypeError") == 20
    assert "5 more, of 5 other kinds" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ON_FAILURE": 3}, "ON_FAILURE"),
        ({"ON_FAILURE": "no.such.function"}, "dotted path"),
        ({"ON_FAILURE_EVERY": 60}, "datetime.timedelta"),
    ],
)
def test_wrong_settings_are_found_by_a_check(settings, given, words):
    settings.AUTORUN = given

    (message,) = check_settings()

    assert message.id == "autorun.E103"
    assert words in message.msg


@pytest.mark.parametrize("given", [None, note, "autorun.notifications.mail_admins"])
def test_right_settings_are_not(settings, given):
    settings.AUTORUN = {"ON_FAILURE": given, "ON_FAILURE_EVERY": dt.timedelta(minutes=1)}

    assert check_settings() == []
