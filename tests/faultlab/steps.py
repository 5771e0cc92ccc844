"""Steps of a process that a test kills in the middle, and the repairs afterwards."""

from collections.abc import Callable
from unittest import mock

from autorun import tasks
from autorun.declare import registry
from autorun.dispatch.publishing import Message, redirected
from autorun.execution.execute import execute
from autorun.models import Batch, Chunk, Run, SpilledTrigger
from autorun.planning import batches, windows
from autorun.planning.retiring import retire_missing
from autorun.state.clock import from_now
from autorun.triggers import delivery
from autorun.upkeep import rounds, writes
from autorun.upkeep.rescue import rescue_expired
from tests.celery_settings import configure
from tests.engine import plan_all_spilled
from tests.faultlab.models import Specimen

NOBODY = "redis://127.0.0.1:1/0"  # no broker listens there


def save() -> None:
    Specimen.objects.create(value="saved")
    delivery.wait_until_idle()


def save_without_broker() -> None:
    _without_broker()
    save()


def plan() -> None:
    """Windows of three rows, so that there are several."""
    with mock.patch.object(windows, "DATABASE_WINDOW", 3):
        registry.get("faultlab.SpecimenRunner").run()


def plan_without_broker() -> None:
    _without_broker()
    plan()


def work() -> None:
    plan()
    for chunk_id in list(queued()):
        execute(chunk_id)


def rescue() -> None:
    """Somebody else's worker has died."""
    rescue_expired(at_most=10)


def plan_spilled() -> None:
    plan_all_spilled()


def send_again() -> None:
    Chunk.objects.update(published_at=from_now(-1_000))
    rounds.send_again()


def work_to_be_cancelled() -> None:
    """The run of the row that fails is to be cancelled when it is executed."""
    plan()
    failing = Specimen.objects.get(does="raise_once")
    run = Run.objects.pending().get(object_id=failing.pk)
    Chunk.objects.filter(pk=run.chunk_id).update(cancelling=[run.pk])
    for chunk_id in list(queued()):
        execute(chunk_id)


def retire() -> None:
    """A row that is done is deleted, and its deletion heard of."""
    Specimen.objects.filter(value="v3").delete()
    retire_missing(registry.get("faultlab.SpecimenRunner"))


def take_notes() -> None:
    """Notes of written rows become a batch, two at a time."""
    with mock.patch.multiple(writes, FEW=1, PORTION=2):
        writes.hand_out_written()


def cancel() -> None:
    batches.cancel(Batch.objects.latest("pk"))


def heal() -> None:
    """All the time that recovery takes passes at once; nothing is swept."""
    for _ in range(20):
        Chunk.objects.exclude(not_before=None).update(not_before=from_now(-1))
        Chunk.objects.leased().update(expires_at=from_now(-1))
        Batch.objects.exclude(expires_at=None).update(expires_at=from_now(-1))
        Chunk.objects.filter(state=Chunk.State.QUEUED).update(published_at=from_now(-1_000_000))
        SpilledTrigger.objects.update(expires_at=None)
        sent: list[Message] = []
        with redirected(sent.extend):
            rounds.upkeep(in_any_case=True)
            for message in sent:
                _receive(message)
        unfinished = Chunk.objects.unfinished().exists() or Chunk.objects.leased().exists()
        planning = Batch.objects.filter(state=Batch.State.RUNNING).exists()
        if not (unfinished or planning or SpilledTrigger.objects.exists()):
            return
    raise AssertionError("It does not heal.")


def queued() -> list[int]:
    chunks = Chunk.objects.filter(state=Chunk.State.QUEUED).order_by("pk")
    return list(chunks.values_list("pk", flat=True))


def _receive(message: Message) -> None:
    doors: dict[str, Callable[..., None]] = {
        "autorun.execute": execute,
        "autorun.backfill": tasks.backfill,
        "autorun.plan_spilled": tasks.plan_spilled,
    }
    doors[message.task](*message.args)


def _without_broker() -> None:
    configure(broker_url=NOBODY, broker_read_url=NOBODY, broker_write_url=NOBODY)
