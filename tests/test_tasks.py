"""The tasks: what becomes of a message whose database is away."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.canvas import Signature
from celery.exceptions import Retry
from django.db import OperationalError

from autorun import tasks
from autorun.declare import registry
from autorun.execution import at_once
from autorun.models import Run
from autorun.triggers import delivery
from tests.celery_settings import configured
from tests.crashes import AWAY
from tests.engine import declare, installed, plan_all_spilled, statuses, work_off
from tests.library.models import Document

pytestmark = pytest.mark.once


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
