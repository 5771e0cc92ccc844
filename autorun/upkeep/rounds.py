"""Self-healing: every few seconds, whichever worker gets there first repairs what went wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

from django.db import connections, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Least

from autorun import analysis as analyses
from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.runner import Runner
from autorun.dispatch.messages import follow_queues, message_to_plan_on
from autorun.dispatch.publishing import publish
from autorun.dispatch.releasing import MOST_PUBLICATIONS, release_everywhere, send
from autorun.exceptions import BrokerUnavailable, NotRegistered
from autorun.models import Batch, Chunk, SpilledTrigger
from autorun.planning import batches
from autorun.planning.named import fail_lethal, hold_up, plan_for_all, plan_keys
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.leases import ends_at
from autorun.state.probes import crash_point
from autorun.state.pulses import give_back_turn, take_turn
from autorun.state.transactions import bounded_waits
from autorun.triggers import delivery
from autorun.upkeep import pruning
from autorun.upkeep.folding import fold_everywhere
from autorun.upkeep.rescue import rescue_expired

logger = logging.getLogger(__name__)

#: The most rows that one step of a round handles, so that a round stays short.
MOST_PER_STEP = 500
#: A queued chunk that no worker has started is sent again after a lease, then after two, four, ...
MOST_DOUBLINGS = 6
#: Seconds that a step waits for a lock; the next round tries again. Without this limit, one process
#: after another would wait for a lock that a frozen one holds.
LOCK_TIMEOUT = 5.0
#: Seconds that saved rows wait for a process with a runner of their model.
UNKNOWN_FOR = 24 * 3600.0
#: Processes that may die of a row, alone with one runner, before it fails.
MOST_DEATHS = 3
PRUNE_EVERY = 3600.0  # seconds
FOLD_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Report:
    """How much each step of a round did."""

    rescued: int = 0
    drained: int = 0
    unparked: int = 0
    released: int = 0
    sent_again: int = 0
    taken_over: int = 0
    finished: int = 0
    cancelled: int = 0
    notified: int = 0
    folded: int = 0
    pruned: int = 0

    def __str__(self) -> str:
        done = {each.name: getattr(self, each.name) for each in fields(self)}
        return ", ".join(f"{name} {number}" for name, number in done.items() if number)


def upkeep(*, in_any_case: bool = False, notify: Callable[[], int] | None = None) -> Report | None:
    """Make one round; None if another process has just made one, unless `in_any_case`.

    `notify` reports failures, and returns for how many runners. Parked chunks are checked even if
    it returns None: during a rollout, the processes that know their runner may never be the first.
    """
    if not (take_turn("upkeep", every=settings.UPKEEP_INTERVAL) or in_any_case):
        _guarded("unparked", unpark)
        return None
    steps: dict[str, Callable[[], int]] = {
        "rescued": partial(rescue_expired, at_most=MOST_PER_STEP),
        "unparked": unpark,
        "released": release_everywhere,
        "sent_again": send_again,
        "taken_over": hand_on_batches,
        "finished": finish_batches,
        "cancelled": cancel_batches,
        "notified": notify or (lambda: 0),
        "folded": _fold_now_and_then,
        "pruned": _prune_now_and_then,
        # Last, as it calls user code: a row that ends the process stops no other step.
        "drained": drain_spilled,
    }
    with bounded_waits(LOCK_TIMEOUT, using=settings.DATABASE):
        report = Report(**{name: _guarded(name, step) for name, step in steps.items()})
    if str(report):
        logger.info("Upkeep: %s.", report)
    return report


def drain_spilled() -> int:
    """Plan the saved rows that wait in the database; how many.

    Rows of a model without a runner here are left to other workers for a day, as during a rollout.
    """
    is_old = Q(created_at__lte=from_now(-UNKNOWN_FOR))
    is_free = Q(expires_at=None) | Q(expires_at__lte=DatabaseNow())
    spilled = SpilledTrigger.objects.filter(planned_here() | is_old).filter(is_free)
    drained = 0
    groups = list(spilled.filter(tries=0).values_list("model_label", "runner").distinct())
    parts = [spilled.filter(model_label=name, runner=label, tries=0) for name, label in groups]
    # Each alone, and after the others: a process has died of it, or was killed meanwhile.
    suspects = spilled.filter(tries__gt=0).order_by("tries", "pk").values_list("pk", flat=True)
    parts += [spilled.filter(pk=pk) for pk in suspects[:MOST_PER_STEP]]
    for part in parts:
        try:
            drained += _drain(part)
        except Exception as error:  # noqa: BLE001
            # It concerns these rows alone, such as a filter on a column that does not exist yet.
            logger.warning("Upkeep: saved rows are not planned yet: %s", error)
    return drained


def _drain(spilled: QuerySet[SpilledTrigger]) -> int:
    some = _claim(spilled)
    if not some:
        return 0
    model_label, label = some[0].model_label, some[0].runner
    runners = _planning(model_label, label)
    keys = {key for trigger in some for key in trigger.keys}
    if not runners:
        message = "Upkeep: saved %s have had no runner for a day: %d rows are dropped."
        logger.warning(message, model_label, len(keys))
    claimed = SpilledTrigger.objects.filter(pk__in=[trigger.pk for trigger in some])
    try:
        if some[0].tries and len(keys) * len(runners) > 1:
            _divide(some[0], runners)
        elif some[0].tries >= MOST_DEATHS and runners:
            fail_lethal(runners[0], *keys, deaths=some[0].tries)
        elif label and runners:
            plan_keys(runners[0], keys)
        else:
            plan_for_all(runners, keys)
    except Exception as error:
        claimed.update(tries=some[0].tries, **hold_up(error))
        given_up, _ = claimed.filter(created_at__lte=from_now(-UNKNOWN_FOR)).delete()
        if given_up:
            message = "Upkeep: saved %s could not be planned for a day; the next sweep finds them."
            logger.error(message, model_label)
        raise
    crash_point("drain.planned")
    # Last: after a crash they are planned again, which does nothing.
    claimed.delete()
    return len(keys)


def _claim(spilled: QuerySet[SpilledTrigger]) -> list[SpilledTrigger]:
    """The triggers, for this process to plan within a lease, as they were before."""
    skip_locked = connections[settings.DATABASE].features.has_select_for_update_skip_locked
    with transaction.atomic(using=settings.DATABASE):
        locked = spilled.order_by("pk").select_for_update(skip_locked=skip_locked)
        some = list(locked[:MOST_PER_STEP])
        SpilledTrigger.objects.filter(pk__in=[trigger.pk for trigger in some]).update(
            tries=F("tries") + 1, expires_at=ends_at()
        )
    return some


def _divide(trigger: SpilledTrigger, runners: Sequence[Runner]) -> None:
    """Replace a trigger of which a process has died by smaller ones, down to a row and a runner."""
    keys, half = trigger.keys, len(trigger.keys) // 2
    if half:
        parts = [(trigger.runner, keys[:half]), (trigger.runner, keys[half:])]
    else:
        parts = [(runner.label, keys) for runner in runners]
    SpilledTrigger.objects.bulk_create(
        SpilledTrigger(model_label=trigger.model_label, runner=label, keys=some, tries=1)
        for label, some in parts
    )


def planned_here() -> Q:
    """The condition that this process has a runner for a spilled trigger."""
    labels = [runner.label for runner in registry.runners()]
    return Q(runner="", model_label__in=delivery.subscriptions()) | Q(runner__in=labels)


def _planning(model_label: str, label: str) -> list[Runner]:
    """The runners that a spilled trigger is for: the one it names, or all of its model."""
    if not label:
        return delivery.subscribers(model_label)
    runner = registry.find(label)
    return [] if runner is None else [runner]


def unpark() -> int:
    """Requeue parked chunks whose runner and analysis are back; how many.

    Those of which no row could be loaded are tried again after a pause.
    """
    parked = Chunk.objects.parked().filter(Q(not_before=None) | Q(not_before__lte=DatabaseNow()))
    unparked = 0
    for label, node_id, title, version in list(
        parked.values_list("runner", "node_id", "node__title", "node__version").distinct()
    ):
        if _is_runnable(label, title, version):
            unparked += parked.filter(runner=label, node_id=node_id).update(
                state=Chunk.State.WAITING, publications=0
            )
    return unparked


def send_again() -> int:
    """Send messages again for chunks that have been queued for long; how many."""
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
    """Have other processes plan the batches whose own has gone silent; how many."""
    left = Batch.objects.unplanned().lapsed().order_by("pk")
    messages = [message_to_plan_on(batch, expires=settings.LEASE) for batch in left[:MOST_PER_STEP]]
    if messages:
        publish(messages)
    return len(messages)


def finish_batches() -> int:
    """Finish planned batches without unfinished chunks; how many."""
    left = Chunk.objects.unfinished().filter(batch_id=OuterRef("pk"))
    done = Batch.objects.planned().filter(~Exists(left))
    return sum(batches.finish_if_done(pk) for pk in list(done.values_list("pk", flat=True)))


def cancel_batches() -> int:
    """Cancel what is left of cancelled batches; how many runs."""
    left = Batch.objects.cancelled().lapsed()
    return sum(batches.continue_cancelling(pk) for pk in list(left.values_list("pk", flat=True)))


def _is_runnable(label: str, title: str, version: str) -> bool:
    try:
        analyses.get(title, version)
    except NotRegistered:
        return False
    return registry.find(label) is not None


def _fold_now_and_then() -> int:
    return fold_everywhere() if take_turn("fold", every=FOLD_EVERY) else 0


def _prune_now_and_then() -> int:
    if not take_turn("prune", every=PRUNE_EVERY):
        return 0
    pruned = pruning.prune(at_most=pruning.MOST_RUNS)
    if pruned >= pruning.MOST_RUNS:
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
