"""`sync`: what it writes to django-celery-beat, and what it leaves alone."""

import datetime as dt
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery.beat import Scheduler, Service
from celery.schedules import crontab, schedule
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import modify_settings, override_settings
from django_celery_beat.models import (
    IntervalSchedule,
    PeriodicTask,
    PeriodicTasks,
)

from autorun.declare import registry
from autorun.exceptions import ImproperRunner, bare_message
from autorun.runner import QuerySetRunner
from autorun.triggers import on_schedule
from autorun.triggers.on_schedule import SyncReport, sync
from settings import celery_app
from tests.celery_settings import configured
from tests.engine import declare, installed, work_off
from tests.library.models import Document
from tests.test_docs import DOCS, blocks_of

pytestmark = pytest.mark.django_db(transaction=True)

UPKEEP = "autorun: upkeep"
HOURLY = dt.timedelta(hours=1)


def runner_with(when: Any) -> type[QuerySetRunner]:
    return type("Nightly", (QuerySetRunner,), {"DATA_MODEL": Document, "SCHEDULE": when})


LABEL = runner_with(None).get_label()
NAME = f"autorun: sweep {LABEL}"


@pytest.fixture(autouse=True)
def no_other_runners() -> Iterator[None]:
    with registry.registered(alone=True):
        yield


def sync_with(when: Any, **options: Any) -> SyncReport:
    with registry.registered(runner_with(when)):
        return sync(**options)


def entry(name: str = NAME) -> PeriodicTask:
    return PeriodicTask.objects.get(name=name)


def edit(name: str = NAME, **changes: Any) -> None:
    """Save an entry as the admin does, whose text fields have Windows line ends."""
    row = entry(name)
    for column, value in changes.items():
        setattr(row, column, value)
    row.description = row.description.replace("\n", "\r\n")
    row.save()


def interval(**columns: Any) -> IntervalSchedule:
    return IntervalSchedule.objects.get_or_create(**columns)[0]


def test_a_runner_gets_an_entry():
    report = sync_with(crontab(minute="30", hour="4", day_of_week="mon-fri"))

    assert report == SyncReport(created=[NAME])
    sweep = entry()
    assert (sweep.task, sweep.args, sweep.queue) == ("autorun.sweep", f'["{LABEL}"]', None)
    assert str(sweep.crontab) == "30 4 * * mon-fri (m/h/dM/MY/d) UTC"
    assert sweep.enabled
    assert sweep.expire_seconds == 12 * 3600


def test_the_entry_that_an_earlier_version_wrote_for_upkeep_is_disabled():
    PeriodicTask.objects.create(
        name=UPKEEP, task="autorun.upkeep", interval=interval(every=5, period="seconds")
    )

    assert sync_with(HOURLY) == SyncReport(created=[NAME], disabled=[UPKEEP])
    assert not entry(UPKEEP).enabled
    assert sync_with(HOURLY) == SyncReport()


def test_remove_deletes_all_entries_of_autorun_and_their_timings():
    mine = interval(every=1, period="hours")
    PeriodicTask.objects.create(name="mine", task="shop.report", interval=mine)
    sync_with(HOURLY)  # shares the interval
    edit(enabled=False)
    by_hand = interval(every=7, period="days")
    PeriodicTask.objects.create(name="weekly", task="autorun.backfill", interval=by_hand)
    seen = PeriodicTasks.last_change()

    assert on_schedule.remove(dry=True) == SyncReport(removed=[NAME, "weekly"])
    assert PeriodicTask.objects.count() == 3
    assert on_schedule.remove() == SyncReport(removed=[NAME, "weekly"])

    assert [each.name for each in PeriodicTask.objects.all()] == ["mine"]
    assert list(IntervalSchedule.objects.all()) == [mine]
    assert PeriodicTasks.last_change() > seen
    assert on_schedule.remove() == SyncReport()


@pytest.mark.parametrize(
    ("when", "every", "period"),
    [
        (dt.timedelta(days=2), 2, "days"),
        (dt.timedelta(hours=36), 36, "hours"),
        (dt.timedelta(minutes=1.5), 90, "seconds"),
        (dt.timedelta(seconds=2.5), 2_500_000, "microseconds"),
        (dt.timedelta(hours=1, microseconds=1), 3600, "seconds"),
    ],
)
def test_a_timedelta_becomes_an_interval(when, every, period):
    sync_with(when)

    assert (entry().interval.every, entry().interval.period) == (every, period)


@pytest.mark.parametrize("minute", [15, "15", {15}, [15]])
def test_a_crontab_may_be_written_in_every_way_celery_knows(minute):
    sync_with(crontab(minute=minute, hour=[2, 14]))

    assert (entry().crontab.minute, entry().crontab.hour) == ("15", "2,14")
    assert sync_with(crontab(minute=minute, hour=[2, 14])) == SyncReport()


def test_the_time_zone_is_the_projects():
    with configured(timezone="Asia/Jerusalem"):
        sync_with(crontab(hour="3"))

    assert str(entry().crontab.timezone) == "Asia/Jerusalem"


def test_settings_reach_the_entries():
    with override_settings(AUTORUN={"QUEUE": "quick"}):
        sync_with(HOURLY)

    assert entry().queue == "quick"


def test_nothing_changes_the_second_time():
    sync_with(HOURLY)
    changed_at = PeriodicTasks.last_change()
    entries = list(PeriodicTask.objects.values())

    report = sync_with(HOURLY)

    assert report == SyncReport()
    assert PeriodicTasks.last_change() == changed_at
    assert list(PeriodicTask.objects.values()) == entries


def test_a_change_of_the_code_is_written_and_beat_is_told():
    sync_with(HOURLY)
    changed_at = PeriodicTasks.last_change()

    report = sync_with(crontab(hour="5"))

    assert report == SyncReport(updated=[NAME])
    assert entry().crontab.hour == "5"
    assert entry().interval is None
    assert PeriodicTasks.last_change() > changed_at


def test_dry_says_what_would_be_and_writes_nothing():
    report = sync_with(HOURLY, dry=True)

    assert report == SyncReport(created=[NAME])
    assert not PeriodicTask.objects.exists()
    assert not IntervalSchedule.objects.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"enabled": False},
        {"queue": "slow"},
        {"priority": 0},
        {"one_off": True},
        {"kwargs": '{"a": 1}'},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_edit_in_the_admin_is_kept_whatever_the_code_says(changes):
    sync_with(HOURLY)
    edit(**changes)

    report = sync_with(dt.timedelta(hours=2))

    assert report == SyncReport(kept=[NAME])
    assert {column: getattr(entry(), column) for column in changes} == changes
    assert entry().interval.every == 1


def test_another_schedule_chosen_in_the_admin_is_kept():
    sync_with(HOURLY)
    edit(interval=interval(every=7, period="days"))

    assert sync_with(HOURLY) == SyncReport(kept=[NAME])
    assert entry().interval.every == 7


def test_an_edit_taken_back_is_autoruns_again():
    sync_with(HOURLY)
    edit(enabled=False)
    edit(enabled=True)

    assert sync_with(dt.timedelta(hours=2)) == SyncReport(updated=[NAME])


def test_saving_in_the_admin_without_a_change_is_no_edit():
    sync_with(HOURLY)
    edit()

    assert sync_with(dt.timedelta(hours=2)) == SyncReport(updated=[NAME])
    assert entry().description.count("As written by autorun") == 1


def test_notes_in_the_description_stay():
    sync_with(HOURLY)
    edit(description=f"Ask Dana first.\n{entry().description}")

    sync_with(dt.timedelta(hours=2))

    assert entry().description.startswith("Ask Dana first.")


def test_a_deleted_entry_is_made_again():
    sync_with(HOURLY)
    entry().delete()

    assert sync_with(HOURLY) == SyncReport(created=[NAME])


@pytest.mark.parametrize("gone", ["unregistered", "without a schedule"])
def test_the_entry_of_a_removed_runner_is_switched_off_and_on_again(gone):
    sync_with(HOURLY)

    off = sync() if gone == "unregistered" else sync_with(None)
    was_enabled = entry().enabled
    again = sync() if gone == "unregistered" else sync_with(None)
    on = sync_with(HOURLY)

    assert off == SyncReport(disabled=[NAME])
    assert not was_enabled
    assert again == SyncReport()
    assert on == SyncReport(updated=[NAME])
    assert entry().enabled
    assert "Switched off" not in entry().description
    assert sync_with(HOURLY) == SyncReport()


def test_an_entry_says_that_autorun_switched_it_off():
    sync_with(HOURLY)

    sync()

    assert "Switched off by autorun" in entry().description


def test_an_edited_entry_comes_back_as_edited():
    sync_with(HOURLY)
    edit(queue="slow")
    sync()

    report = sync_with(HOURLY)

    assert report == SyncReport(updated=[NAME])
    assert entry().enabled
    assert entry().queue == "slow"
    assert sync_with(HOURLY) == SyncReport(kept=[NAME])


def test_an_entry_that_a_person_disabled_stays_so_when_its_runner_comes_back():
    sync_with(HOURLY)
    edit(enabled=False)
    sync()

    sync_with(HOURLY)

    assert not entry().enabled


def test_entries_of_others_are_left_alone():
    PeriodicTask.objects.create(
        name="autorun: sweep of the floor",
        task="house.sweep",
        interval=interval(every=1, period="days"),
    )

    assert sync() == SyncReport()
    assert entry("autorun: sweep of the floor").enabled


def test_an_unsupported_schedule_is_refused_and_the_others_are_written():
    broken = type("Other", (QuerySetRunner,), {"DATA_MODEL": Document, "SCHEDULE": schedule(60)})

    with (
        registry.registered(runner_with(HOURLY), broken),
        pytest.raises(ImproperRunner, match=r"Other: SCHEDULE is .*`datetime\.timedelta`"),
    ):
        sync()

    assert set(PeriodicTask.objects.values_list("name", flat=True)) == {NAME}


def test_a_schedule_that_raises_is_named_and_the_others_are_written():
    def get_schedule(self):
        raise KeyError("SCHEDULES")

    options = {"DATA_MODEL": Document, "get_schedule": get_schedule}
    broken = type("Other", (QuerySetRunner,), options)

    with (
        registry.registered(runner_with(HOURLY), broken),
        pytest.raises(
            ImproperRunner, match=r"Other: get_schedule\(\) raises KeyError: 'SCHEDULES'"
        ) as refused,
    ):
        sync()
    assert "SCHEDULES" not in bare_message(refused.value)

    assert set(PeriodicTask.objects.values_list("name", flat=True)) == {NAME}


@pytest.mark.parametrize("when", [3600, "0 3 * * *", dt.timedelta(0), dt.timedelta(-1)])
def test_what_is_no_schedule_is_refused(when):
    with pytest.raises(ImproperRunner, match="It may be a"):
        sync_with(when)


def test_a_runner_whose_schedule_became_unusable_keeps_its_entry():
    sync_with(HOURLY)

    with pytest.raises(ImproperRunner):
        sync_with("hourly")

    assert entry().enabled


def test_without_django_celery_beat_the_error_says_what_to_add():
    with (
        modify_settings(INSTALLED_APPS={"remove": ["django_celery_beat"]}),
        pytest.raises(ImproperlyConfigured, match="Add 'django_celery_beat' to INSTALLED_APPS"),
    ):
        sync()


def test_two_that_sync_at_once_write_one_entry_each():
    errors: list[BaseException] = []
    start = threading.Barrier(2)

    def run() -> None:
        try:
            start.wait(10)
            sync()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connection.close()

    with registry.registered(runner_with(crontab(hour="3"))):
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = sync()

    assert errors == []
    assert after == SyncReport()
    assert PeriodicTask.objects.filter(name__startswith="autorun: ").count() == 1


@pytest.mark.parametrize("result_expires", [None, 3600])
def test_a_starting_beat_sees_the_entries_at_its_first_tick(result_expires):
    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    PeriodicTasks.objects.all().delete()
    with configured(result_expires=result_expires), registry.registered(runner_with(HOURLY)):
        service = Service(celery_app, scheduler_cls=scheduler)
        assert NAME not in service.scheduler.schedule

        on_schedule.sync_at_start(sender=service)

        assert NAME in service.scheduler.schedule


def test_beat_starts_even_when_syncing_fails(monkeypatch, caplog):
    monkeypatch.setattr(on_schedule, "sync", lambda: 1 / 0)

    on_schedule.sync_at_start(sender=None)

    assert "were not synced" in caplog.text


def test_a_beat_with_another_scheduler_is_warned(caplog, tmp_path):
    service = Service(
        celery_app,
        scheduler_cls="celery.beat:PersistentScheduler",
        schedule_filename=str(tmp_path / "schedule"),
    )

    on_schedule.sync_at_start(sender=service)
    service.scheduler.close()

    assert "--scheduler django_celery_beat.schedulers:DatabaseScheduler" in caplog.text


def test_plain_beat_sends_the_sweeps_that_the_how_to_lists():
    (block,) = [
        each
        for each in blocks_of(DOCS / "howto" / "existing.md")
        if "CELERY_BEAT_SCHEDULE" in each.code and each.language == "python"
    ]
    names: dict[str, Any] = {}
    exec(block.code, names)
    Document.objects.create(title="title")

    (listed,) = names["CELERY_BEAT_SCHEDULE"].values()
    runner = declare(SCHEDULE=None)
    listed["args"] = [runner.get_label()]

    with (
        installed(runner),
        configured(
            beat_schedule=names["CELERY_BEAT_SCHEDULE"],
            beat_cron_starting_deadline=None,
            task_always_eager=True,
        ),
    ):
        beat = Scheduler(celery_app, lazy=False)
        for each in beat.schedule.values():
            each.last_run_at -= dt.timedelta(days=2)
        beat.tick()
        work_off()

        assert runner().progress().succeeded == 1
