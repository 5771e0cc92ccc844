"""A worker's main process: deaths in its pool, and overdue rounds of upkeep."""

from contextlib import nullcontext

import pytest
from django.db import transaction

from autorun import tasks
from autorun.dispatch.messages import EXECUTE
from autorun.models import Chunk, Pulse
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.leases import FAMILY
from autorun.upkeep import workers
from autorun.upkeep.rounds import upkeep
from tests.engine import declare, installed
from tests.library.models import Document

pytestmark = pytest.mark.django_db


#: An id that no process has.
GONE = 2**22 + 1


class WorkerLostError(Exception):
    """Named as billiard's, by which it is known."""


@pytest.mark.parametrize(
    ("worker", "is_ended"),
    [
        ("w1@lab:{family}", True),
        ("w2@lab:{family}", False),
        ("w1@lab:another", False),  # in another container
    ],
)
@pytest.mark.parametrize("state", [Chunk.State.RUNNING, Chunk.State.FINISHED])
def test_the_death_of_a_process_ends_no_lease_of_another_worker(
    monkeypatch, worker, is_ended, state
):
    """Not even of the chunk that its message was about: it may have been at an urgent one."""
    Document.objects.create(title="a")
    monkeypatch.setattr(workers, "_node_name", "w1@lab")
    monkeypatch.setattr(workers.connections, "close_all", lambda: None)
    runner = declare()
    with installed(runner):
        runner().run()
    chunk = Chunk.objects.get()
    holder = f"{worker.format(family=FAMILY)}:{GONE}"
    Chunk.objects.update(state=state, worker=holder, expires_at=from_now(60))
    sender = type("Task", (), {"name": EXECUTE})

    workers._child_died(sender, exception=WorkerLostError(), args=(chunk.pk,))

    assert Chunk.objects.filter(expires_at__lte=DatabaseNow()).exists() == is_ended


@pytest.mark.django_db(transaction=True)
def test_a_chunk_whose_message_is_lost_with_its_process_is_sent_again_at_once_but_once(
    monkeypatch, sent
):
    Document.objects.create(title="a")
    monkeypatch.setattr(workers.connections, "close_all", lambda: None)
    runner = declare()
    sender = type("Task", (), {"name": EXECUTE})
    with installed(runner):
        runner().run()
        for publications in (1, 2, 2):
            assert len(sent) == publications
            workers._child_died(sender, exception=WorkerLostError(), args=sent[0].args)
            upkeep(in_any_case=True)

    assert len(sent) == 2


@pytest.fixture
def rounds(monkeypatch) -> list[str]:
    """The rounds that ends of tasks have made; the next end looks whether one is overdue."""
    made: list[str] = []
    monkeypatch.setattr(workers, "_make_round", lambda: made.append("round"))
    monkeypatch.setattr(workers, "_look_at", 0.0)
    return made


@pytest.mark.django_db(transaction=True)
def test_an_overdue_round_is_made_once_at_the_end_of_a_chunk(rounds):
    Pulse.objects.create(name="upkeep", beat_at=from_now(-60))

    workers._make_overdue_round(tasks.backfill)
    assert rounds == []
    workers._make_overdue_round(tasks.execute)
    workers._make_overdue_round(tasks.execute)

    assert rounds == ["round"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("inside", [True, False])
def test_a_round_that_is_not_overdue_or_would_be_in_a_transaction_is_not_made(rounds, inside):
    Pulse.objects.create(name="upkeep", beat_at=from_now(-60 if inside else -1))

    with transaction.atomic() if inside else nullcontext():
        workers._make_overdue_round(tasks.plan)

    assert rounds == []
