"""The tasks: what becomes of a message whose database is away."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.canvas import Signature
from celery.exceptions import Retry
from django.db import DatabaseError, OperationalError

from autorun import tasks
from autorun.declare import registry
from autorun.declare.sets import label_of_related
from autorun.execution import at_once
from autorun.models import Run
from autorun.triggers import delivery
from tests.celery_settings import configured
from tests.crashes import AWAY
from tests.engine import declare, installed, plan_all_spilled, statuses, work_off
from tests.library.models import Document, Image, Patient, Visit
from tests.test_keys import HOSTILE


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The options of the messages that Celery sends again, while the database is away."""

    def away(*arguments: object) -> None:
        raise AWAY

    options: list[dict[str, Any]] = []
    monkeypatch.setattr(at_once, "plan_or_start", away)
    monkeypatch.setattr(Signature, "apply_async", lambda self: options.append(self.options))
    with configured(broker_transport_options={}), installed(declare()):
        yield options


@pytest.fixture
def plan_as_message() -> Callable[[int], None]:
    """`plan_as_message(retries)` is what a worker does with a message that was sent so often."""

    def receive(retries: int) -> None:
        arguments = ("library.Document", [1])
        tasks.plan.push_request(
            id="some", args=arguments, kwargs={}, retries=retries, called_directly=False
        )
        try:
            tasks.plan.run(*arguments)
        finally:
            tasks.plan.pop_request()

    return receive


def test_saved_rows_are_tried_again_for_a_day_while_the_database_is_away(sent, plan_as_message):
    for retries in range(tasks.MOST_TRIES):
        with pytest.raises(Retry):
            plan_as_message(retries)
    with pytest.raises(OperationalError):
        plan_as_message(tasks.MOST_TRIES)

    pauses = [options["countdown"] for options in sent]
    assert len(pauses) == tasks.MOST_TRIES
    assert 20 * 3600 < sum(pauses) < 30 * 3600
    assert min(pauses) >= 0.5
    assert max(pauses) <= 120


def test_saved_rows_are_tried_for_a_quarter_of_an_hour_on_a_database_without_the_columns(
    sent, plan_as_message, monkeypatch
):
    def refuse(*arguments: object) -> None:
        raise OperationalError("no such column: reason")

    monkeypatch.setattr(at_once, "plan_or_start", refuse)
    for retries in range(tasks.MOST_REFUSALS):
        with pytest.raises(Retry):
            plan_as_message(retries)
    with pytest.raises(OperationalError):
        plan_as_message(tasks.MOST_REFUSALS)

    assert 300 < sum(options["countdown"] for options in sent) < 1200


def test_a_message_is_sent_again_before_redis_takes_it_for_lost(sent, plan_as_message):
    options = {"visibility_timeout": 20}

    with configured(broker_transport_options=options), pytest.raises(Retry):
        plan_as_message(100)

    assert sent[0]["countdown"] <= 10


def test_a_task_that_is_run_at_once_is_not_tried_again(sent):
    with pytest.raises(OperationalError):
        tasks.plan.apply(("library.Document", [1]), throw=True)
    with pytest.raises(OperationalError):
        tasks.plan("library.Document", [1])

    assert sent == []


@pytest.mark.django_db
def test_saved_rows_wait_for_a_worker_that_has_a_runner_of_them():
    document = Document.objects.create(title="title")

    tasks.plan("library.Document", [document.pk])
    runs = Run.objects.count()
    with installed(declare()):
        plan_all_spilled()
        work_off()

    assert runs == 0
    assert statuses() == [Run.Status.SUCCEEDED]


def test_unheard_rows_are_tried_again_while_the_database_is_away(
    sent, plan_as_message, monkeypatch
):
    def away(saved):
        raise AWAY

    monkeypatch.setattr(delivery, "write_down", away)

    with registry.registered(alone=True), pytest.raises(Retry):
        plan_as_message(0)

    assert len(sent) == 1


PLAN, LABEL = tasks.plan, "tests.EchoRunner"
LONE, GREAT, DEEP = "\ud800", 10**400, [[[1]]]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        *((PLAN, (label, [1])) for label in ("a\0", LONE, "", "x" * 256, None, 1, [1], {"a": 1})),
        *((PLAN, (f"library.Document{label}", [1])) for label in ("\0", LONE)),
        *((PLAN, ("library.Document", keys)) for keys in (1, None, 1.5)),
        *((PLAN, ("unknown.Model", keys)) for keys in ("abc", 1, None, {"a": 1})),
        *((PLAN, ("deleted:default:library.Document", [1], at)) for at in (1e300, "x", None)),
        *((tasks.sweep, (label,)) for label in ("a\0", LONE, "", GREAT, DEEP, {})),
        *((tasks.backfill, (label,)) for label in ("a\0", LONE, "", GREAT, DEEP, {})),
        *((tasks.backfill, (LABEL, name)) for name in ("a\0", LONE, GREAT, DEEP, {})),
        *((tasks.backfill, (LABEL, None, pks)) for pks in (GREAT, 1, 1.5)),
        *((tasks.backfill, (LABEL, None, None, only)) for only in ("a\0", LONE, GREAT, DEEP)),
        *((tasks.notify, (label,)) for label in ("a\0", LONE, "", GREAT, DEEP, {})),
        *((tasks.plan_spilled, (ids, 0)) for ids in ("a\0", [LONE], 1, DEEP)),
    ],
    ids=lambda each: getattr(each, "name", ascii(each)[:30]),
)
def test_a_message_that_no_process_has_sent_fails_at_once(task, arguments):
    task.push_request(id="some", args=arguments, kwargs={}, retries=0, called_directly=False)
    try:
        with installed(declare()), pytest.raises(Exception) as raised:  # noqa: PT011
            task.run(*arguments)
    finally:
        task.pop_request()

    assert not isinstance(raised.value, (Retry, DatabaseError))


@pytest.mark.django_db
@pytest.mark.parametrize(
    "keys", ["a\0", {"a\0": 1}, *([each] for each in HOSTILE)], ids="{!a:.20}".format
)
@pytest.mark.parametrize("label", ["library.Document", "deleted:default:library.Document"])
def test_keys_of_no_row_end_their_message(label, keys):
    with installed(declare()):
        tasks.plan(label, keys, 1.0)

    assert statuses() == []


@pytest.mark.django_db
def test_keys_of_no_row_keep_no_others_from_waiting_for_a_worker_that_has_a_runner():
    document = Document.objects.create(title="title")

    tasks.plan("library.Document", [*HOSTILE, document.pk])
    with installed(declare()):
        plan_all_spilled()
        work_off()

    assert statuses() == [Run.Status.SUCCEEDED]


@pytest.mark.django_db
def test_keys_of_no_row_keep_no_row_that_reads_another_from_being_planned():
    visit = Visit.objects.create(label="a", patient=Patient.objects.create(code="a"))
    image = Image.objects.create(visit=visit)
    runner = declare(DATA_MODEL=Image, INPUT_FIELDS=("visit__label",))
    with installed(runner):
        for lookup, keys in (("visit__pk", [*HOSTILE, visit.pk]), ("visit__patient__pk", HOSTILE)):
            tasks.plan(label_of_related("library.Image", lookup), keys)
        work_off()

        assert runner().has_run(image)
