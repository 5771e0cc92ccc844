"""Code that comes and goes, clocks, forks, and data in another database."""

import datetime as dt
import json
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks
from django_celery_beat.tzcrontab import TzAwareCrontab

from autorun import tasks
from autorun.models import Batch, Chunk, Failure, Pulse, Run
from autorun.observe.doctor import messaging
from autorun.state.clock import from_now
from autorun.state.pulses import take_lease, take_turn
from autorun.triggers import delivery, on_schedule
from autorun.upkeep.rounds import unpark
from tests.engine import declare, installed, offer, work_off
from tests.faults.driver import Lab
from tests.library.models import Document
from tests.test_command_line import typed


@pytest.mark.faults(23)
@pytest.mark.slow
def test_runs_of_a_runner_that_a_worker_does_not_have_wait_and_say_why(lab: Lab):
    lab.write(3)
    lab.runner.run()

    without = lab.start_worker(AUTORUN_LAB="")
    lab.until(lambda: Chunk.objects.filter(state=Chunk.State.PARKED).exists())
    reason = Chunk.objects.filter(state=Chunk.State.PARKED).first().reason
    without.kill()
    lab.start_worker()
    lab.until_done(3)

    lab.check()
    assert "faultlab.SpecimenRunner" in reason
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.faults(23)
@pytest.mark.django_db
def test_runs_of_an_analysis_that_is_gone_go_on_when_it_is_back():
    Document.objects.create(title="title")
    runner = declare()
    with installed(runner):
        runner().run()
    Chunk.objects.update(not_before=None)
    offer(Chunk.objects.get().pk)
    assert Chunk.objects.get().state == Chunk.State.PARKED
    assert unpark() == 0

    with installed(runner):
        assert unpark() == 1
        work_off()

        assert runner().progress().succeeded == 1
    assert not Failure.objects.exists()


@pytest.mark.faults(23)
@pytest.mark.slow
def test_a_worker_whose_runners_cannot_be_imported_does_not_start_and_takes_nothing(lab: Lab):
    lab.save(3)
    delivery.wait_until_idle()

    broken = lab.start_worker(waits=False, AUTORUN_LAB_BROKEN="1")
    assert broken.wait(60) != 0
    lab.start_worker()
    lab.until_done(3)

    lab.check()
    assert "as it was told" in broken.log.read_text()


@pytest.mark.faults(23)
@pytest.mark.django_db
def test_runs_of_a_runner_that_was_renamed_say_so_and_make_room_when_they_are_cancelled():
    Document.objects.create(title="title")
    old, new = (declare(NAME=name) for name in ("OldRunner", "NewRunner"))
    with installed(old):
        old().run()
    with installed(new):
        work_off()
        assert "tests.OldRunner" in Chunk.objects.get(state=Chunk.State.PARKED).reason
        assert "1 run cancelled" in typed("cancel", "tests.OldRunner")
        new().run()
        work_off()

        assert new().progress().succeeded == new().progress().total == 1
    assert not Failure.objects.exists()


@pytest.mark.faults(24)
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"VERSION": "2.0", "BATCH_SIZE": 2}])
def test_old_and_new_workers_each_record_what_they_ran(lab: Lab):
    """Both plan what they hear of, each under the version it has; neither runs the other's."""
    lab.start_worker(options={"VERSION": "1.0"})
    lab.start_worker()
    lab.save(20)

    def is_quiet() -> bool:
        return not Chunk.objects.exclude(state=Chunk.State.FINISHED).exists()

    lab.until(is_quiet, seconds=90)
    lab.runner.run()
    lab.until_done(20)
    lab.until(is_quiet, seconds=90)  # the old one may have heard of a row last

    lab.check()
    ran = {
        (line["row"], line["version"]) for line in lab.ledger.lines() if line["event"] == "begin"
    }
    recorded = Run.objects.filter(status=Run.Status.SUCCEEDED)
    assert set(recorded.values_list("object_id", "node__version")) == ran
    assert sum(version == "2.0" for _, version in ran) == 20


@pytest.mark.faults(25)
@pytest.mark.slow
@pytest.mark.parametrize("seconds", ["-3600", "3600"])
def test_a_worker_whose_clock_is_an_hour_off_holds_and_rescues_leases_like_others(
    lab: Lab, seconds: str
):
    lab.start_worker(concurrency=2, AUTORUN_LAB_CLOCK=seconds)
    lab.start_worker(concurrency=2)
    lab.write(10, does="sleep:0.6")
    lab.write(1, does="kill_once", value="w")
    lab.runner.run()
    lab.until_done(11)

    lab.check()
    times = lab.ledger.times()
    assert sum(times.values()) <= 11 + 10  # the neighbours of the one that kills
    names = set(Chunk.objects.exclude(worker="").values_list("worker", flat=True))
    assert len({name.partition("@")[0] for name in names}) == 2


@pytest.mark.faults(57)
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"SCHEDULE": 1}])
def test_sweeps_go_on_after_beats_clock_was_an_hour_ahead(lab: Lab):
    on_schedule.sync()
    PeriodicTask.objects.update(last_run_at=timezone.now() + dt.timedelta(hours=1))
    lab.start_beat()
    lab.start_worker()
    lab.write(3)

    lab.until_done(3)

    lab.check()
    assert Batch.objects.filter(trigger=Batch.Trigger.SWEEP).exists()


@pytest.mark.faults(57)
@pytest.mark.django_db
def test_a_schedule_that_lies_in_the_future_is_named_by_doctor_and_corrected_by_upkeep():
    on_schedule.sync()
    entries = PeriodicTask.objects.filter(task__startswith="autorun.")
    interval = IntervalSchedule.objects.create(every=5, period="seconds")
    PeriodicTask.objects.create(name="the project's", task="theirs", interval=interval)
    soon = timezone.now() + dt.timedelta(hours=1)
    PeriodicTask.objects.update(last_run_at=soon)
    PeriodicTasks.objects.all().delete()

    (found,) = messaging.examine_beat()
    assert found.level == "warning"
    assert "was last sent in the future" in found.message

    assert on_schedule.correct_times() == entries.count()
    assert on_schedule.correct_times() == 0

    assert not entries.filter(last_run_at__gt=timezone.now() + dt.timedelta(minutes=1)).exists()
    assert PeriodicTask.objects.get(task="theirs").last_run_at == soon
    assert PeriodicTasks.last_change() is not None
    assert [each.level for each in messaging.examine_beat()] == ["ok"]


@pytest.mark.faults(57)
@pytest.mark.django_db
def test_upkeep_goes_on_after_the_databases_clock_was_an_hour_ahead():
    """Or a replica took over whose clock is right, or an hour behind."""
    Pulse.objects.create(name="upkeep", beat_at=timezone.now() + dt.timedelta(hours=1))

    Pulse.objects.create(name="lease", beat_at=timezone.now() + dt.timedelta(hours=1))

    assert take_turn("upkeep", every=5)
    assert not take_turn("upkeep", every=5)
    assert take_lease("lease") is not None
    assert take_lease("lease") is None


@pytest.mark.faults(25)
@pytest.mark.django_db
def test_a_lease_ends_by_the_databases_time():
    Document.objects.create(title="title")
    runner = declare()
    with installed(runner):
        runner().run()
        Chunk.objects.update(state=Chunk.State.RUNNING, token=1, expires_at=from_now(1))

        assert not Chunk.objects.filter(expires_at__lte=from_now(0)).exists()
        assert Chunk.objects.filter(expires_at__lte=from_now(2)).exists()


@pytest.mark.faults(25)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("day", "hours"), [(dt.date(2026, 3, 29), 23), (dt.date(2026, 10, 25), 25)]
)
def test_a_day_on_which_the_clocks_change_has_its_sweep_and_runs_nothing_twice(day, hours):
    """Half past two comes not at all in spring, and twice in autumn."""
    document = Document.objects.create(title="title")
    zone = ZoneInfo("Europe/Berlin")
    runner = declare(SCHEDULE=TzAwareCrontab(minute="30", hour="2", tz=zone))
    now = dt.datetime.combine(day, dt.time(0, 0), zone).astimezone(dt.UTC)
    with installed(runner):
        on_schedule.sync()
        entry = PeriodicTask.objects.get(name__endswith=runner.get_label())
        entry.last_run_at = now - dt.timedelta(hours=21, minutes=30)
        swept = []
        for minute in range(0, (hours + 3) * 60, 10):
            at = now + dt.timedelta(minutes=minute)
            schedule = entry.crontab.schedule
            schedule.nowfun = lambda at=at: at.astimezone(zone)
            if schedule.is_due(entry.last_run_at).is_due:
                swept.append(at)
                entry.last_run_at = at
                tasks.sweep(*json.loads(entry.args))
                work_off()

    assert 1 <= len([at for at in swept if at < now + dt.timedelta(hours=hours)]) <= 2
    assert Run.objects.get().object_id == document.pk


@pytest.mark.faults(26)
@pytest.mark.slow
def test_processes_forked_after_a_save_and_their_threads_all_publish(lab_of_each_broker: Lab):
    """As gunicorn does with preload: the parent has saved, and has a connection and a thread."""
    lab = lab_of_each_broker
    lab.start_worker(concurrency=2)
    code = """
import os, threading
from django.db import connection, connections
from autorun.triggers import delivery
from tests.faultlab.models import Specimen

def save(name):
    for n in range(5):
        Specimen.objects.create(value=f"{name}.{n}")
    connections.close_all()

save("parent")
assert delivery.wait_until_idle(20)
children = []
for child in range(3):
    pid = os.fork()
    if not pid:
        threads = [threading.Thread(target=save, args=[f"{child}.{n}"]) for n in range(2)]
        [each.start() for each in threads]
        [each.join() for each in threads]
        delivery.deliver_waiting()
        os._exit(0)
    children.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
save("parent again")
"""
    process = lab.call(code)
    assert process.wait() == 0, process.log.read_text()
    lab.until_done(40)

    lab.check()
    assert set(lab.ledger.times().values()) == {1}


@pytest.mark.faults(26)
@pytest.mark.slow
@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_pools_without_processes_of_their_own(lab: Lab, pool: str):
    lab.start_worker("--pool", pool, concurrency=3)
    lab.save(12, does="sleep:0.1")
    lab.save(1, does="raise_once", value="w")
    lab.until_done(13)

    lab.check()
    assert len({each.pid for each in lab.ledger.executions()}) == 1


@pytest.mark.faults(27)
@pytest.mark.django_db(databases=["default", "archive"])
def test_rows_in_another_database_than_autoruns_tables():
    rows = Document.objects.using("archive")
    rows.bulk_create(Document(title=f"title {n}") for n in range(5))
    runner = declare(get_base_queryset=lambda self: Document.objects.using("archive"))
    with installed(runner):
        runner().run()
        work_off()
        rows.filter(title="title 0").update(title="changed")
        rows.filter(title="title 1").delete()
        runner().run()
        work_off()

        assert runner().progress().succeeded == 4
        assert not runner().pending().exists()
    assert Run.objects.using("default").count() == 6
