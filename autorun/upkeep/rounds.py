"""Self-healing: every few seconds, whichever worker gets there first repairs what went wrong."""

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Least

from autorun.conf import settings
from autorun.declare import nodes, registry
from autorun.dispatch.messages import follow_queues, message_to_plan_on
from autorun.dispatch.publishing import publish
from autorun.dispatch.releasing import MOST_PUBLICATIONS, release_everywhere, send
from autorun.exceptions import BrokerUnavailable
from autorun.models import Batch, Chunk
from autorun.planning import batches, written
from autorun.state import draining
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.logs import get_logger
from autorun.state.probes import crash_point
from autorun.state.pulses import end_lease, give_back_turn, take_lease, take_turn
from autorun.state.transactions import sum_of_each
from autorun.triggers import on_schedule
from autorun.upkeep import folding, rescue
from autorun.upkeep.announcing import hand_over_batches
from autorun.upkeep.spilled import hand_out_spilled
from autorun.upkeep.writes import drop_unknown, hand_out_written

logger = get_logger(__name__)

#: The most rows that one step of a round handles, so that a round stays short.
MOST_PER_STEP = 500
#: A queued chunk that no worker has started is sent again after a lease, then after two, four, ...
MOST_DOUBLINGS = 6
#: Names the pulse that one round at a time holds, over all processes.
LEASE = "upkeep lease"
PRUNE_EVERY = 3600.0  # seconds
FOLD_EVERY = 60.0  # seconds
REOPEN_EVERY = 10.0  # seconds
CORRECT_EVERY = 60.0  # seconds


class Report(SimpleNamespace):
    """How much each step of a round did, by the step's name."""

    def __str__(self) -> str:
        return ", ".join(f"{name} {number}" for name, number in vars(self).items() if number)


def upkeep(*, in_any_case: bool = False, notify: Callable[[], int] | None = None) -> Report | None:
    """Make one round; None if another process has just made one, unless `in_any_case`.

    `notify` reports failures, and returns for how many runners. Parked chunks are checked even if
    it returns None: during a rollout, the processes that know their runner may never be the first.
    """
    held = None
    if not in_any_case:
        is_due = take_turn("upkeep", every=settings.UPKEEP_INTERVAL)
        held = take_lease(LEASE) if is_due else None
        if held is None:
            _guarded("unparked", unpark)
            return None
    steps = _steps(notify)
    done = dict.fromkeys(steps, 0)
    extended_at = time.monotonic()
    for name, step in steps.items():
        if held is not None and time.monotonic() - extended_at > settings.LEASE / 4:
            held, extended_at = take_lease(LEASE, held=held), time.monotonic()
            if held is None:
                break  # this process was frozen, and another one makes a round
        done[name] = _guarded(name, step)
    if held is not None:
        end_lease(LEASE, held)
    report = Report(**done)
    if str(report):
        logger.info("Upkeep: %s.", report)
    return report


def _steps(notify: Callable[[], int] | None) -> dict[str, Callable[[], int]]:
    return {
        "rescued": partial(rescue.rescue_expired, at_most=MOST_PER_STEP),
        "followed": partial(rescue.follow_up_lapsed, at_most=MOST_PER_STEP),
        "reopened": _now_and_then("reopen", REOPEN_EVERY, rescue.reopen_some),
        "unparked": unpark,
        "released": release_everywhere,
        "sent_again": send_again,
        "corrected": _now_and_then("schedules", CORRECT_EVERY, on_schedule.correct_times),
        "noted": hand_out_written,
        "taken_over": hand_on_batches,
        "finished": finish_batches,
        "cancelled": cancel_batches,
        "handed_out": hand_out_spilled,
        "notified": notify or (lambda: 0),
        "folded": _now_and_then("fold", FOLD_EVERY, folding.fold_everywhere),
        "gathered": _now_and_then("gather", PRUNE_EVERY, folding.gather_failures),
        "pruned": _now_and_then("prune", PRUNE_EVERY, _prune),
    }


def unpark() -> int:
    """Requeue parked chunks whose runner and analysis are back.

    Return how many. If the runner has another name now, the runner of their node takes them over.
    """
    parked = Chunk.objects.parked().filter(not_before=None)
    unparked = 0
    columns = ("runner", "node_id", "node__digest", "node__title", "node__version")
    for label, node_id, digest, title, version in list(parked.values_list(*columns).distinct()):
        heir = label
        if registry.find(label) is None:
            heir = next(iter(nodes.runners_by_node().labels.get(digest, ())), label)
        if registry.can_run(heir, title, version):
            unparked += parked.filter(runner=label, node_id=node_id).update(
                state=Chunk.State.WAITING, reason="", publications=0, runner=heir
            )
    return unparked


def send_again() -> int:
    """Send messages again for chunks that have been queued for long. Return how many."""
    is_due = Q()
    for doublings in range(MOST_DOUBLINGS):
        lookup = "publications" if doublings < MOST_DOUBLINGS - 1 else "publications__gte"
        published_before = from_now(-settings.LEASE * 2**doublings)
        is_due |= Q(published_at__lte=published_before, **{lookup: doublings + 1})
    lost = list(Chunk.objects.queued().filter(is_due).order_by("pk")[:MOST_PER_STEP])
    follow_queues(lost)
    Chunk.objects.queued().filter(pk__in=[chunk.pk for chunk in lost]).update(
        published_at=DatabaseNow(), publications=Least(F("publications") + 1, MOST_PUBLICATIONS)
    )
    crash_point("upkeep.counted")
    return send(lost) if lost else 0


def hand_on_batches() -> int:
    """Let other processes plan the batches whose own process is silent. Return how many."""
    left = Batch.objects.unplanned().lapsed().order_by("pk")
    messages = [message_to_plan_on(batch, expires=settings.LEASE) for batch in left[:MOST_PER_STEP]]
    if messages:
        publish(messages)
    return len(messages)


def finish_batches() -> int:
    """Finish planned batches without unfinished chunks. Return how many."""
    left = Chunk.objects.unfinished().filter(batch_id=OuterRef("pk"))
    done = Batch.objects.planned().filter(~Exists(left))
    finished: list[int] = []
    finish = partial(batches.finish_if_done, announce=finished.append)
    number = sum_of_each(finish, done.values_list("pk", flat=True), name="Batch")
    hand_over_batches(finished)
    return number


def cancel_batches() -> int:
    """Cancel what is left of cancelled batches and runners. Return how many runs."""
    left = Batch.objects.cancelled().lapsed().values_list("pk", flat=True)
    of_batches = sum_of_each(batches.continue_cancelling, left, name="Batch")
    begun = sum_of_each(lambda step: step(), [batches.cancel_begun], name="Cancelling:")
    return of_batches + begun


def _now_and_then(turn: str, every: float, step: Callable[[], int]) -> Callable[[], int]:
    return lambda: step() if take_turn(turn, every=every) else 0


def _prune() -> int:
    drop_unknown()
    written.drop_left_over()
    draining.forget_ended()
    pruned = folding.prune(at_most=folding.MOST_RUNS)
    if pruned >= folding.MOST_RUNS:
        give_back_turn("prune")  # there is more, for the next round
    return pruned


def _guarded(name: str, step: Callable[[], int]) -> int:
    """The step's number; 0, and a log record, if it fails, so that the others still run."""
    try:
        return step()
    except BrokerUnavailable as error:
        logger.warning("Upkeep: %s: no broker: %s", name, error)
    except Exception:
        logger.exception("Upkeep: %s: failed; the next round tries again.", name)
    return 0
