"""Messages, forms and schedules: what they may carry, and how much of it is kept."""

import json

import pytest
from django.core.checks import run_checks
from kombu.exceptions import ContentDisallowed

from autorun import tasks
from autorun.dispatch.messages import message_for
from autorun.exceptions import NotRegistered
from autorun.models import Chunk, Failure, Run, SpilledTrigger
from autorun.state.clock import from_now
from autorun.triggers import delivery
from settings import celery_app
from tests.engine import declare, installed, plan_all_spilled, work_off
from tests.library.models import Document

pytestmark = [pytest.mark.django_db, pytest.mark.faults]

SECRET = "what is in the row"


def test_every_task_of_autorun_takes_and_sends_json_alone():
    own = [task for name, task in celery_app.tasks.items() if name.startswith("autorun.")]

    assert len(own) >= 5
    assert {task.serializer for task in own} == {"json"}
    assert set(celery_app.conf.accept_content) == {"json"}


def test_a_pickled_message_is_refused_unread(embedded_broker):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("it was unpickled",)

    with celery_app.connection_for_write() as connection:
        queue = connection.SimpleQueue(celery_app.conf.task_default_queue)
        queue.put(Bomb(), serializer="pickle")

        with pytest.raises(ContentDisallowed):
            queue.get(timeout=10).decode()
        queue.close()


def test_a_project_that_accepts_pickle_is_warned(settings):
    settings.CELERY_ACCEPT_CONTENT = ["json", "pickle"]

    found = [each for each in run_checks() if each.id and each.id.startswith("autorun.")]

    assert any("pickle" in each.msg for each in found)
    assert all(each.hint for each in found)


def test_messages_carry_ids_and_nothing_of_the_rows(sent):
    document = Document.objects.create(title=SECRET, body=SECRET)
    runner = declare()
    with installed(runner):
        runner().run()
        delivery.deliver({Document._meta.label: {document.pk}})
        sent += [message_for(chunk) for chunk in Chunk.objects.all()]

    assert {message.task for message in sent} >= {"autorun.execute", "autorun.plan"}
    text = json.dumps([message.args for message in sent])
    assert SECRET not in text
    for message in sent:
        if message.task == "autorun.execute":
            assert message.args == (Chunk.objects.get().pk,)
        else:
            assert message.args == (Document._meta.label, [document.pk])


@pytest.mark.parametrize("label", ["os.system", "tests.engine.EchoRunner", "library.Nobody"])
def test_runners_are_found_by_registered_name_alone(label):
    with pytest.raises(NotRegistered, match="Registered"):
        tasks.sweep(label)
    with pytest.raises(NotRegistered, match="Registered"):
        tasks.backfill(label)


def test_filters_are_found_by_registered_name_alone():
    runner = declare(FILTERS={})
    with installed(runner), pytest.raises(NotRegistered, match="has no filter"):
        tasks.backfill(runner.get_label(), filter="django.db.models.Q")


def test_a_model_that_no_runner_is_about_plans_nothing():
    tasks.plan("auth.User", [1, 2, 3])
    tasks.plan("os.path", ["; DROP TABLE autorun_run"])
    SpilledTrigger.objects.update(created_at=from_now(-25 * 3600))
    plan_all_spilled()

    assert not Run.objects.exists()
    assert not SpilledTrigger.objects.exists()


def test_keys_of_a_message_are_values_and_never_sql():
    document = Document.objects.create(title="title")
    with installed(declare()):
        tasks.plan(Document._meta.label, ["1 OR 1=1", "') --", document.pk, None, {"a": 1}])
        work_off()

    assert Run.objects.count() == 1


def test_analyses_of_a_node_are_found_by_registered_name_alone():
    Document.objects.create(title="title")
    runner = declare()
    with installed(runner):
        runner().run()
        chunk = Chunk.objects.select_related("node").get()
        chunk.node.title = "os:system"
        chunk.node.save(update_fields=["title"])
        work_off()

    chunk.refresh_from_db()
    assert chunk.state == Chunk.State.PARKED
    assert "os:system" in chunk.reason


def test_sizes_are_capped_before_anything_is_written(settings):
    settings.AUTORUN = {"MAX_OUTPUT_BYTES": 1_000, "MAX_TRACEBACK_BYTES": 2_000}
    for title in ("long", "loud"):
        Document.objects.create(title=title)

    def exceed(value):
        if value == "loud":
            raise ValueError("x" * 1_000_000)
        return "x" * 1_001

    runner = declare(exceed, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()

    assert not Run.objects.exclude(outputs=None).exists()
    sizes = [len(each.message) + len(each.traceback) for each in Failure.objects.all()]
    assert len(sizes) == 2
    assert max(sizes) <= 2 * 2_100
