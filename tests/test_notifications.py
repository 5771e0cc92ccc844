"""Who is told of failures, how often, and with what."""

import datetime as dt
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import django
import pytest
from django.contrib import admin
from django.core import mail
from django.db import connection, connections
from django.db.models import F
from django.test.utils import CaptureQueriesContext, modify_settings, override_settings

from autorun.dispatch.publishing import redirected
from autorun.models import Chunk, Failure, Node, Pulse, Run
from autorun.notifications import FailureReport
from autorun.observe import notifying
from autorun.observe.checks.values import check_settings
from autorun.observe.notifying import hand_over_reports, notify_soon
from autorun.upkeep.rounds import upkeep
from tests.engine import declare, installed, plan_at_once, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db

ADA = "ada@example.org"
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
    Chunk.objects.update(finished_at=F("finished_at") - dt.timedelta(**duration))
    Node.objects.update(created_at=F("created_at") - dt.timedelta(**duration))
    Pulse.objects.update(beat_at=F("beat_at") - dt.timedelta(**duration))
    Failure.objects.update(failed_at=F("failed_at") - dt.timedelta(**duration))


def catch_up(**duration: float) -> int:
    """Have a worker do what upkeep hands over after so long, a minute by default."""
    pass_time(**(duration or {"minutes": 1}))
    with redirected(plan_at_once):
        return hand_over_reports()


def test_the_first_failures_are_told_of_together_after_a_minute(told):
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        assert catch_up(seconds=30) == 0
        fail(runner, "b")
        assert told == []

        assert catch_up(seconds=30) == 1

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
        assert catch_up() == 0

        work_off(retry_now=True)
        catch_up()

    assert [report.runs for report in told] == [1]


def test_what_fails_within_the_interval_is_told_of_together_after_it(told):
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        catch_up()
        fail(runner, "b")
        fail(runner, "c")
        assert catch_up(minutes=10) == 0
        assert len(told) == 1

        assert catch_up(minutes=51) == 1
    assert [report.runs for report in told] == [1, 2]


def test_nothing_new_is_not_told_of(told):
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        catch_up()

        assert catch_up(hours=2) == 0
    assert len(told) == 1


def test_each_runner_has_an_interval_of_its_own(told):
    runners = [declare(broken, NAME=name, TITLE=name, MAX_ATTEMPTS=1) for name in ("A", "B")]
    with installed(*runners):
        fail(runners[0], "a")
        catch_up()
        fail(runners[1])
        catch_up()

    assert [report.runner for report in told] == ["tests.A", "tests.B"]


def test_the_interval_is_a_setting(told, settings):
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE_EVERY": dt.timedelta(minutes=5)}
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        catch_up()
        fail(runner, "b")
        catch_up(minutes=6)

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
        catch_up()

        assert runner().progress().failed == 1
    assert "tests.EchoRunner: its failures could not be reported." in caplog.text


def test_what_nobody_could_be_told_of_is_told_later(told, settings):
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": lambda report: 1 / 0}
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        catch_up()
        settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": note}
        fail(runner, "b")
        catch_up()
        at_once = list(told)
        catch_up(hours=5)
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
        catch_up()
        fail(runner, "b")
        catch_up()
        fail(runner, "c")
        catch_up(minutes=4)

    assert tries == [1, 3]


def test_telling_does_not_take_for_ever(settings, caplog, set_constants):
    set_constants(notifying, CALLBACK_TIMEOUT=0.05)
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": lambda report: time.sleep(30)}
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner), caplog.at_level(logging.ERROR, "autorun"):
        fail(runner, "a")
        catch_up()

    assert "AUTORUN['ON_FAILURE'] took longer than 0.05 s" in caplog.text


@pytest.fixture
def ada(settings) -> None:
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": "autorun.notifications.mail_admins"}
    settings.ADMINS = [("Ada", ADA)] if django.VERSION < (6,) else [ADA]


def by_kind(value):
    if value.startswith("good"):
        return value
    raise (KeyError if value.startswith("key") else ValueError)(f"no pixel data in '{value}'")


def test_mail_to_the_admins_says_how_many_failed_of_how_many_and_why(ada, monkeypatch):
    monkeypatch.setattr(Document, "__str__", lambda self: f"{self.title}\n")
    runner = declare(by_kind, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "good", "<b>bad 1</b>", "bad 2", "key 3")
        catch_up()

    (message,) = mail.outbox
    page = message.alternatives[0][0]
    newest = Run.objects.get(object_id=Document.objects.get(title="bad 2").pk)
    assert message.to == [ADA]
    assert message.subject.endswith(
        "tests.EchoRunner: 3 of 4 runs failed: 2 no pixel data in '...', 1 KeyError"
    )
    assert message.body.startswith("3 of 4 runs failed: 2 no pixel data")
    assert "2 x ValueError: no pixel data in 'bad 2'" in message.body
    assert f"    run {newest.pk}: bad 2\n" in message.body
    assert "<b>bad 1</b>\n" in message.body
    assert "`manage.py autorun retry tests.EchoRunner`" in message.body
    assert "&lt;b&gt;bad 1&lt;/b&gt;" in page
    assert "<b>" not in page


def test_a_report_names_a_version_that_is_new(told):
    with installed(old := declare(by_kind, MAX_ATTEMPTS=1)):
        fail(old, "bad")
        catch_up()
        catch_up(hours=3)
    with installed(new := declare(by_kind, ANALYSIS_VERSION="1.1", VERSION="1.1", MAX_ATTEMPTS=1)):
        fail(new)
        catch_up()
        Document.objects.create(title="another")
        new().run()
        work_off()
        catch_up(minutes=61)

    assert [report.new_version for report in told] == ["", "1.1", ""]
    assert told[1].summary.startswith("1 of 1 run failed since v1.1: ")
    assert told[2].summary.startswith("1 more run failed, 2 of 2 in all: ")


def test_rows_are_named_by_their_keys_if_their_names_cannot_be_had(told, monkeypatch):
    monkeypatch.setattr(Document, "__str__", lambda self: 1 / 0)
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        catch_up()

    document, run = Document.objects.get(), Run.objects.get()
    assert told[0].rows == {run.pk: f"document {document.pk}"}


def test_names_of_rows_are_masked(told, monkeypatch):
    monkeypatch.setattr(Document, "__str__", lambda self: "ftp://ada:lovelace@host/a")
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "a")
        catch_up()

    assert "lovelace" not in str(told[0]) + told[0].html
    assert "ftp://ada:********@host/a" in str(told[0])


@contextmanager
def site(domain):
    """Have the project name its site, as django.contrib.sites keeps it in memory."""
    number = 1_000
    with modify_settings(INSTALLED_APPS={"append": "django.contrib.sites"}):
        from django.contrib.sites.models import SITE_CACHE, Site

        SITE_CACHE[number] = Site(pk=number, domain=domain)
        try:
            with override_settings(SITE_ID=number):
                yield
        finally:
            del SITE_CACHE[number]
            if admin.site.is_registered(Site):
                admin.site.unregister(Site)


def test_a_project_that_names_its_site_has_links(told):
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner), site("scans.example.org"):
        fail(runner, "a")
        catch_up()

    url = "https://scans.example.org/admin/autorun/failure/?runner=tests.EchoRunner"
    assert told[0].url == url
    assert f"Show them: {url}\n" in str(told[0])
    assert f'<a href="{url}">' in told[0].html


def test_a_site_that_was_never_edited_is_not_linked_to(told):
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner), site("example.com"):
        fail(runner, "a")
        catch_up()

    assert told[0].url == ""


def test_the_end_of_failures_is_told_of_once(told):
    runner = declare(by_kind, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "bad")
        catch_up()
        assert catch_up(minutes=6) == 0
        fail(runner, "good")
        assert catch_up(seconds=30) == 1
        fail(runner, "good again")

        assert catch_up(hours=2) == 0
    assert [len(report.groups) for report in told] == [1, 0]
    assert told[1].subject == "tests.EchoRunner: runs succeed again, 1 still failed"
    assert "`manage.py autorun retry tests.EchoRunner`" in str(told[1])


def test_a_success_is_not_the_end_of_failures_if_another_run_has_failed_since(told):
    runner = declare(by_kind, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "bad")
        catch_up()
        fail(runner, "worse", "good")

        assert catch_up(minutes=6) == 0
        assert catch_up(hours=1) == 1
    assert [report.runs for report in told] == [1, 1]


def test_a_success_without_a_report_is_not_told_of(told):
    with installed(runner := declare(by_kind, MAX_ATTEMPTS=1)):
        fail(runner, "good")

        assert catch_up(hours=2) == 0
    assert told == []


def test_the_end_of_failures_is_told_of_later_if_that_fails(told, settings):
    runner = declare(by_kind, MAX_ATTEMPTS=1)
    with installed(runner):
        fail(runner, "bad")
        catch_up()
        settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": lambda report: 1 / 0}
        pass_time(minutes=5)
        fail(runner, "good")
        catch_up(seconds=30)
        settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": note}

        assert catch_up() == 0
        assert catch_up(minutes=5) == 1
    assert [len(report.groups) for report in told] == [1, 0]


def test_a_long_report_is_cut_short():
    kinds = [f"{chr(97 + number) * 3} is a message of its own" for number in range(25)]

    def body(value):
        # Of two classes in turns: many failures of one alone would hold the runner up.
        raise (TypeError if ord(value[0]) % 2 else ValueError)(value)

    runner = declare(body, MAX_ATTEMPTS=1, BATCH_SIZE=25)
    with installed(runner):
        fail(runner, *kinds)
        catch_up()

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
