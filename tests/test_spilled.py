"""Saved rows that wait in the database, and how workers come to plan them."""

import threading
import time
from contextlib import suppress

import pytest
from django.db import OperationalError

from autorun import tasks
from autorun.dispatch.publishing import Message, redirected
from autorun.exceptions import BrokerUnavailable
from autorun.models import Run, SpilledTrigger
from autorun.state.clock import DatabaseNow, from_now
from autorun.triggers.delivery import DELETED, label_of_deleted
from autorun.upkeep import spilled, workers
from autorun.upkeep.rounds import upkeep
from autorun.upkeep.spilled import hand_out_spilled, plan_spilled
from tests.engine import declare, installed, plan_all_spilled
from tests.library.models import Document


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}") for n in range(4)]


def spill(*documents: Document) -> list[SpilledTrigger]:
    """A trigger for each, as of saves while no broker answered."""
    return [
        SpilledTrigger.objects.create(model_label="library.Document", keys=[each.pk])
        for each in documents
    ]


@pytest.mark.django_db
def test_a_portion_that_was_handed_out_is_left_alone_until_its_lease_ends(documents, sent):
    spill(*documents)
    with installed(declare()):
        assert hand_out_spilled() == 1
        assert hand_out_spilled() == 0
        SpilledTrigger.objects.update(expires_at=from_now(-1))
        assert hand_out_spilled() == 1

    assert [message.task for message in sent] == ["autorun.plan_spilled"] * 2


@pytest.mark.django_db
def test_of_two_messages_for_a_portion_the_second_does_nothing(documents, sent):
    prepared = []

    def represent(self, document):
        prepared.append(document.pk)
        plan_spilled(*sent[0].args)  # while the first is at it
        return document.title

    spill(*documents)
    with installed(declare(INPUT_FIELDS=None, get_instance_representation=represent)):
        hand_out_spilled()
        assert plan_spilled(*sent[0].args) == 4
        assert plan_spilled(*sent[0].args) == 0

    assert sorted(prepared) == [document.pk for document in documents]


@pytest.mark.django_db
def test_a_portion_has_so_many_rows_and_a_large_trigger_is_one_of_its_own(
    documents, sent, set_constants
):
    set_constants(spilled, FIRST=1, MOST_ROWS=2)
    keys = [document.pk for document in documents]
    SpilledTrigger.objects.create(model_label="library.Document", keys=keys[:3])
    spill(*documents[:3])
    with installed(declare()):
        hand_out_spilled()

    portions = [SpilledTrigger.objects.get(pk__in=message.args[0]).keys for message in sent]
    assert portions == [keys[:3], keys[:2], keys[2:3]]
    assert SpilledTrigger.objects.count() == 3


@pytest.mark.django_db
def test_triggers_of_a_portion_become_one_unless_a_try_has_failed(documents, sent):
    first, second, failed, _ = spill(*documents)
    SpilledTrigger.objects.filter(pk=failed.pk).update(reason="no such column")
    SpilledTrigger.objects.filter(pk=second.pk).update(keys=[documents[1].pk, documents[0].pk])
    with installed(declare()):
        hand_out_spilled()

        keys = {each.pk: each.keys for each in SpilledTrigger.objects.all()}
        assert keys == {
            first.pk: [documents[at].pk for at in (0, 1, 3)],
            failed.pk: [documents[2].pk],
        }
        assert plan_spilled(*sent[0].args) == 4

    assert not SpilledTrigger.objects.exists()


@pytest.mark.django_db
def test_deletions_that_become_one_trigger_are_as_late_as_the_last(documents, sent):
    label = label_of_deleted(Document._meta.label)
    for at, document in enumerate(documents[:2]):
        SpilledTrigger.objects.create(
            model_label=label, keys=[document.pk], created_at=from_now(60 * at)
        )
    latest = SpilledTrigger.objects.latest("created_at").created_at
    with installed(declare()):
        hand_out_spilled()

    assert SpilledTrigger.objects.get().created_at == latest


@pytest.mark.django_db
@pytest.mark.parametrize("tries", [0, 1])
def test_a_planned_portion_hands_out_the_next_one_without_a_round(
    documents, sent, set_constants, tries
):
    set_constants(spilled, FIRST=1, MOST_ROWS=1, MOST_PORTIONS=2)
    spill(*documents)
    SpilledTrigger.objects.update(tries=tries)
    with installed(declare()):
        hand_out_spilled()
        assert len(sent) == 2
        for message in sent:  # it grows meanwhile
            assert plan_spilled(*message.args) == 1

    assert len(sent) == 4
    assert Run.objects.count() == 4


@pytest.mark.django_db
def test_a_portion_is_planned_although_no_broker_takes_the_next_one(documents, sent, set_constants):
    def refuse(_: list[Message]) -> None:
        raise BrokerUnavailable("gone")

    set_constants(spilled, FIRST=1, MOST_ROWS=1, MOST_PORTIONS=1)
    spill(*documents)
    with installed(declare()):
        hand_out_spilled()
        with redirected(refuse):
            assert plan_spilled(*sent[0].args) == 1

    assert Run.objects.count() == 1
    assert SpilledTrigger.objects.filter(expires_at=None).count() == 3


@pytest.mark.django_db
def test_a_portion_that_no_broker_takes_is_handed_out_in_the_next_round(documents):
    def refuse(_: list[Message]) -> None:
        raise BrokerUnavailable("gone")

    spill(*documents)
    with installed(declare()):
        with redirected(refuse):
            assert upkeep(in_any_case=True).handed_out == 0

        assert plan_all_spilled() == 4


@pytest.mark.django_db(transaction=True)
def test_the_lease_is_held_for_as_long_as_preparing_takes(documents, sent, settings):
    settings.AUTORUN = settings.AUTORUN | {"HEARTBEAT": 0.3}
    was_extended = threading.Event()

    def represent(self, document):
        SpilledTrigger.objects.update(expires_at=from_now(-1))
        deadline = time.monotonic() + 30
        while not was_extended.is_set() and time.monotonic() < deadline:
            with suppress(OperationalError):  # SQLite in memory, while the lease is written
                if SpilledTrigger.objects.filter(expires_at__gt=DatabaseNow()).exists():
                    was_extended.set()
            was_extended.wait(0.05)
        return document.title

    spill(documents[0])
    with installed(declare(INPUT_FIELDS=None, get_instance_representation=represent)):
        hand_out_spilled()
        assert plan_spilled(*sent[0].args) == 1

    assert was_extended.is_set()


@pytest.mark.django_db
def test_a_portion_whose_process_has_died_is_handed_out_at_once(documents, sent, monkeypatch):
    monkeypatch.setattr(workers.connections, "close_all", lambda: None)
    (trigger,) = spill(documents[0])
    with installed(declare()):
        hand_out_spilled()
    SpilledTrigger.objects.update(tries=1)  # the process has begun

    lost = type("WorkerLostError", (Exception,), {})
    workers._child_died(tasks.plan_spilled, exception=lost(), args=sent[0].args)

    trigger.refresh_from_db()
    assert (trigger.tries, trigger.expires_at) == (1, None)


@pytest.mark.django_db
def test_deleted_rows_whose_message_dies_with_its_process_wait_in_the_database(monkeypatch):
    monkeypatch.setattr(workers.connections, "close_all", lambda: None)
    label = f"{DELETED}default:{Document._meta.label}"

    lost = type("WorkerLostError", (Exception,), {})
    workers._child_died(tasks.plan, exception=lost(), args=(label, [7], 1.0))

    assert SpilledTrigger.objects.get().model_label == label


@pytest.mark.django_db
def test_a_portion_that_reaches_a_worker_of_older_code_is_left_to_others(documents, sent):
    spill(*documents)
    with installed(declare()):
        hand_out_spilled()
    assert plan_spilled(*sent[0].args) == 0

    with installed(declare()):
        assert plan_spilled(*sent[0].args) == 4
    assert Run.objects.count() == 4
