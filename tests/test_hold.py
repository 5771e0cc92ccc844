"""A held runner: sweeps and saves leave its rows pending, and people try and start them."""

from io import StringIO

import pytest
from django.core.management import call_command
from django.urls import reverse

from autorun.control.interventions import (
    change_all,
    hold_runner,
    lift_hold,
    pause_runner,
    resume_runner,
)
from autorun.execution.at_once import plan_or_start
from autorun.models import Batch, Node, Run
from autorun.observe.doctor.backlog import examine_paused
from autorun.observe.explanation import explain
from autorun.planning.batches import take_over
from autorun.planning.named import plan_keys, plan_related
from autorun.planning.on_demand import backfill_now, go_on, sweep_now
from autorun.planning.scope import Scope
from tests.browser.scenes import add_user
from tests.engine import declare, installed, work_off
from tests.library.models import Document
from tests.test_candidate import fill, lowest, make, versions  # noqa: F401  a fixture

pytestmark = pytest.mark.django_db
LABEL = "tests.EchoRunner"


def say(*arguments):
    out = StringIO()
    call_command("autorun", *arguments, no_color=True, stdout=out)
    return out.getvalue()


def fail_to_prepare(self, instance):
    raise ValueError("no file")


AUTOMATIC = {
    "sweep": lambda runner, keys: sweep_now(runner),
    "a saved row": lambda runner, keys: plan_or_start([runner], keys[:1]),
    "saved rows": lambda runner, keys: plan_keys(runner, keys),
    "related rows": lambda runner, keys: plan_related([runner], "pk", keys),
    "a batch of written rows": lambda runner, keys: backfill_now(
        runner, Scope(), trigger=Batch.Trigger.WRITE
    ),
    "a batch of related rows": lambda runner, keys: backfill_now(
        runner, Scope(), trigger=Batch.Trigger.RELATED
    ),
}


@pytest.mark.parametrize("name", AUTOMATIC)
def test_nothing_automatic_plans_rows_of_a_held_runner(name):
    keys = [each.pk for each in fill(3)]
    with installed(runner := declare()):
        hold_runner(runner())
        AUTOMATIC[name](runner(), keys)

        assert not Run.objects.exists()
        assert runner().pending().count() == 3

        lift_hold(runner())
        AUTOMATIC[name](runner(), keys)
        assert Run.objects.exists()


@pytest.mark.parametrize("name", ["saved rows", "a batch of written rows"])
def test_rows_that_cannot_be_prepared_stay_pending_as_well(name):
    keys = [each.pk for each in fill(3)]
    with installed(runner := declare(get_instance_representation=fail_to_prepare)):
        hold_runner(runner())
        AUTOMATIC[name](runner(), keys)

    assert not Run.objects.exists()


@pytest.mark.parametrize("act", ["backfill", "run", "retry", "adopt", "ignore"])
def test_what_people_ask_for_is_done_on_a_held_runner(act):
    fill(3)
    with installed(runner := declare()):
        if act == "retry":
            plan_keys(runner(), Document.objects.values_list("pk", flat=True))
            Run.objects.update(status=Run.Status.FAILED)
        hold_runner(runner())
        getattr(runner(), act)()
        work_off()

    ended = Run.Status.CANCELLED if act == "ignore" else Run.Status.SUCCEEDED
    assert Run.objects.current().filter(status=ended).count() == 3


def test_a_sweep_that_is_in_progress_plans_no_more():
    fill(3)
    with installed(runner := declare()):
        batch = sweep_now(runner())
        Run.objects.all().delete()
        Batch.objects.filter(pk=batch.pk).update(planned_at=None, cursor="", state="running")
        hold_runner(runner())

        go_on(Batch.objects.get(pk=batch.pk))

    assert not Run.objects.exists()


def test_a_pause_and_a_hold_are_two_things():
    with installed(runner := declare()):
        hold_runner(runner(), by="ada")
        pause_runner(runner())
        assert not hold_runner(runner(), by="bob")
        change_all(resume_runner)
        node = Node.objects.get(pk=runner().get_node().pk)
        assert (node.paused_at, node.held_by) == (None, "ada")
        assert lift_hold(runner())
        assert not lift_hold(runner())


def test_the_command_line_holds_tries_and_resumes(versions):  # noqa: F811
    keys = {each.pk for each in fill(30)}
    with installed(make(None)):
        sweep_now(make(None)())
        work_off()
    with installed(raised := make(None, ANALYSIS_VERSION="1.1")):
        assert "v1.1 is new: 30 rows start with the next sweep." in say("status")
        assert "held: its rows stay pending." in say("hold", LABEL)
        assert "was already held." in say("hold", LABEL)
        assert "skipped: sweeps and saves have been held since" in say("sweep", LABEL)
        assert "skipped: sweeps and saves have been held since" in say("sweep", LABEL, "--queue")
        assert "30 rows stay pending." in say("status")
        reason = explain(raised(), Document.objects.first()).reason
        assert "sweeps and saves have been held since" in reason
        (finding,) = examine_paused()
        assert f"manage.py autorun resume {LABEL}" in finding.hint

        assert "10 runs planned" in say("backfill", LABEL, "--try", "10")
        tried = Run.objects.filter(node__version="1.1")
        assert set(tried.values_list("object_id", flat=True)) == lowest(keys, 10)
        assert "10 runs planned" in say("backfill", LABEL, "--try", "10")
        assert set(tried.values_list("object_id", flat=True)) == lowest(keys, 20)

        assert "resumed." in say("resume", LABEL)
        assert "10 runs planned" in say("sweep", LABEL)
        assert "is new" not in say("status")


def test_the_page_of_a_new_version_offers_what_to_do(versions, client):  # noqa: F811
    keys = {each.pk for each in fill(30)}
    client.force_login(add_user("ada", "view_run", "start_run", "pause_run"))

    def url(name):
        return reverse(f"admin:autorun_node_{name}", args=[LABEL])

    def page(name="runner"):
        return client.get(url(name)).content.decode()

    with installed(make(None)):
        sweep_now(make(None)())
        work_off()
        assert "is new" not in page()
    with installed(raised := make(None, ANALYSIS_VERSION="1.1")):
        assert "v1.1 is new: its pending rows start with the next sweep." in page()
        client.post(url("count"))
        assert "v1.1 is new: 30 rows start with the next sweep." in page()
        assert "v1.1 is new: 30 rows start with the next sweep." in page("compare")

        client.post(url("hold"))
        shown = page()
        assert "by ada; 30 rows stay pending." in shown
        assert "Resume sweeps" in shown
        assert "Sweep now" not in shown
        overview = client.get(reverse("admin:autorun_node_changelist")).content.decode()
        assert "sweeps of 1 runner held" in overview

        response = client.post(url("try_some"))
        batch = Batch.objects.get(node__version="1.1")
        assert response.url == reverse("admin:autorun_batch_change", args=[batch.pk])
        go_on(take_over(batch.pk))
        tried = Run.objects.filter(node__version="1.1")
        assert set(tried.values_list("object_id", flat=True)) == lowest(keys, 10)

        client.post(url("start_all"))
        assert Node.objects.get(version="1.1").held_at is None
        sweep_now(raised())
        assert tried.count() == 30
        assert "is new" not in page()


def test_a_new_version_without_a_schedule_starts_with_no_sweep(versions, client):  # noqa: F811
    fill(3)
    client.force_login(add_user("ada", "view_run"))
    with installed(make(None)):
        sweep_now(make(None)())
        work_off()
    with installed(make(None, ANALYSIS_VERSION="1.1", SCHEDULE=None)):
        shown = client.get(reverse("admin:autorun_node_runner", args=[LABEL])).content.decode()
        told = say("status")

    assert "its pending rows will not start, as no sweep is scheduled." in shown
    assert "v1.1 is new: 3 rows will not start, as no sweep is scheduled." in told
    assert "next sweep." not in told


def test_a_page_from_before_a_hold_starts_no_sweep(client, sent):
    client.force_login(add_user("ada", "view_run", "start_run"))
    with installed(runner := declare()):
        hold_runner(runner(), by="bob")
        address = reverse("admin:autorun_node_sweep", args=[LABEL])
        shown = client.post(address, follow=True).content.decode()

    assert f"No sweep of {LABEL} was started: sweeps and saves have been held since" in shown
    assert "queued." not in shown
    assert sent == []


def test_a_first_version_is_no_news(client):
    fill(3)
    client.force_login(add_user("ada", "view_run"))
    with installed(runner := declare()):
        runner().get_node()
        shown = client.get(reverse("admin:autorun_node_runner", args=[LABEL])).content.decode()

    assert "is new" not in shown
