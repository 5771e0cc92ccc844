"""What the worker's own process does when one of its pool dies."""

import pytest

from autorun.dispatch.messages import EXECUTE
from autorun.models import Chunk
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.leases import FAMILY
from autorun.upkeep import workers
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
def test_the_death_of_a_process_ends_no_lease_of_another_worker(monkeypatch, worker, is_ended):
    """Not even of the chunk that its message was about: it may have been at an urgent one."""
    Document.objects.create(title="a")
    monkeypatch.setattr(workers, "_node_name", "w1@lab")
    monkeypatch.setattr(workers.connections, "close_all", lambda: None)
    runner = declare()
    with installed(runner):
        runner().run()
    chunk = Chunk.objects.get()
    holder = f"{worker.format(family=FAMILY)}:{GONE}"
    Chunk.objects.update(state=Chunk.State.RUNNING, worker=holder, expires_at=from_now(60))
    sender = type("Task", (), {"name": EXECUTE})

    workers._child_died(sender, exception=WorkerLostError(), args=(chunk.pk,))

    assert Chunk.objects.filter(expires_at__lte=DatabaseNow()).exists() == is_ended
