"""Saved rows that wait in the database: portions of them are handed to workers, under a lease.

Preparing a row calls user code, which may raise, hang or end its process. So upkeep only leases a
portion and sends its message; the worker that receives it counts a try, plans the rows, and hands
out another portion like it. So a long queue is worked off without waiting for rounds.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

from django.db import DatabaseError, connections, transaction
from django.db.models import F, Max, Q, QuerySet, TextField
from django.db.models.functions import Cast

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.interruption import Interrupted, Interruptible, Termination
from autorun.declare.sets import RELATED
from autorun.dispatch.publishing import Message, publish, urgent_priority
from autorun.exceptions import BrokerUnavailable
from autorun.models import Chunk, SpilledTrigger
from autorun.planning.named import fail_lethal, hold_up, plan_for_all, plan_keys, plan_related
from autorun.planning.retiring import retire, retire_noted
from autorun.planning.windows import MOST_DEATHS
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.keys import key_kind
from autorun.state.leases import ends_at, kept
from autorun.state.logs import get_logger
from autorun.state.origins import WRITTEN
from autorun.state.probes import crash_point
from autorun.state.transactions import leave_connections, unlocked
from autorun.triggers import delivery

logger = get_logger(__name__)

#: About so many rows are planned for one message; so many triggers are read first.
MOST_ROWS = 10_000
FIRST = 100
#: Portions of one model, and suspects, that are handed out at once.
MOST_PORTIONS = 5
#: Seconds that saved rows wait for a process with a runner of their model.
UNKNOWN_FOR = 24 * 3600.0


def hand_out_spilled() -> int:
    """Let workers plan the saved rows that wait in the database. Return the number of triggers."""
    # Rows of a model without a runner here are left to other workers for a day, as during a
    # rollout.
    fresh = _free().filter(planned_here() | _is_old(), tries=0)
    groups = fresh.values_list("model_label", "runner").distinct()
    parts = [fresh.filter(model_label=name, runner=label) for name, label in groups]
    parts += _suspects(MOST_PORTIONS)
    return sum(len(portion) for part in parts for portion in _handed_out(part))


def plan_spilled(ids: Sequence[int], tries: int) -> int:
    """Plan the saved rows of a portion, unless another process has. Return how many rows."""
    some = _begin(ids, tries)
    if not some:
        return 0
    held = SpilledTrigger.objects.filter(pk__in=[each.pk for each in some], tries=tries + 1)
    keys = {key for trigger in some for key in trigger.keys}
    try:
        with Termination() as termination, kept(held), Interruptible(termination):
            _plan(some, keys)
    except Interrupted:
        held.update(tries=tries, expires_at=None)
        return 0
    except Exception as error:  # noqa: BLE001
        # It concerns these rows alone, such as a filter on a column that does not exist yet.
        logger.warning("Saved %s are not planned yet: %s", some[0].model_label, error)
        _give_back(some, error)
        return 0
    crash_point("spilled.planned")
    # Last: after a crash they are planned again, which does nothing.
    held.delete()
    _hand_out_another(some[0])
    return len(keys)


def _hand_out_another(planned: SpilledTrigger) -> None:
    """Hand out a portion like the one that this trigger was of."""
    alike = _free().filter(model_label=planned.model_label, runner=planned.runner, tries=0)
    try:
        for part in _suspects(1) if planned.tries else [alike]:
            next(_handed_out(part), None)
    except (BrokerUnavailable, DatabaseError) as error:
        logger.info("Upkeep hands out the rest of the saved rows: %s", error)


def _free() -> QuerySet[SpilledTrigger]:
    is_free = Q(expires_at=None) | Q(expires_at__lte=DatabaseNow())
    return SpilledTrigger.objects.filter(is_free)


def _suspects(number: int) -> list[QuerySet[SpilledTrigger]]:
    """Triggers of which a process has died, or was killed meanwhile: each alone, after others."""
    suspects = _free().filter(planned_here() | _is_old(), tries__gt=0).order_by("tries", "pk")
    return [_free().filter(pk=pk) for pk in suspects.values_list("pk", flat=True)[:number]]


def _give_back(some: Sequence[SpilledTrigger], error: Exception) -> None:
    """Leave the triggers to a later round; after a day, to the next sweep."""
    leave_connections()
    ours = SpilledTrigger.objects.filter(pk__in=[each.pk for each in some])
    ours.update(tries=some[0].tries, **hold_up(error))
    given_up, _ = ours.filter(_is_old()).delete()
    if given_up:
        message = "Saved %s could not be planned for a day; the next sweep finds them."
        logger.error(message, some[0].model_label)


def planned_here() -> Q:
    """The condition that this process has a runner for a spilled trigger."""
    labels = [runner.label for runner in registry.runners()]
    models = list(delivery.subscriptions())
    models += [delivery.label_of_deleted(each, using) for each in models for using in connections]
    models += delivery.dependents()
    return Q(runner="", model_label__in=models) | Q(runner__in=labels)


def _is_old() -> Q:
    return Q(created_at__lte=from_now(-UNKNOWN_FOR))


def _handed_out(part: QuerySet[SpilledTrigger]) -> Iterator[list[Any]]:
    """Portions of `part`, each leased and sent."""
    for _ in range(MOST_PORTIONS):
        portion = _lease(part)
        if not portion:
            return
        crash_point("spilled.leased")
        ids, tries = [each.pk for each in portion], portion[0].tries
        message = Message(
            delivery.PLAN_SPILLED,
            (ids, tries),
            queue=settings.QUEUE,
            priority=urgent_priority(),
            expires=settings.LEASE,
        )
        try:
            publish([message])
        except Exception:
            SpilledTrigger.objects.filter(pk__in=ids, tries=tries).update(expires_at=None)
            raise
        yield portion


def _lease(part: QuerySet[SpilledTrigger]) -> list[Any]:
    """The first triggers of `part`, for one worker to plan."""
    # Saves one by one leave thousands of triggers, each of which would be read and written four
    # times. So those that no try has failed to plan become one. They are named tuples, because
    # making instances takes as long as planning the rows.
    columns = ("pk", "model_label", "text", "tries", "reason")
    named: Any = part.annotate(text=Cast("keys", TextField())).values_list(*columns, named=True)
    with transaction.atomic(using=settings.DATABASE):
        found, keys = _with_keys(_locked(named, FIRST))
        if sum(map(len, keys)) < MOST_ROWS and len(found) == FIRST:
            found, keys = _with_keys(_locked(named, MOST_ROWS))
        rows = accumulate(map(len, keys))
        some = [each for each, total in zip(found, rows, strict=True) if total <= MOST_ROWS]
        portion = some or found[:1]
        if len(fresh := [each for each in portion if not each.reason]) > 1:
            of_each = zip(portion, keys, strict=False)
            _merge(fresh, chain(*(some for each, some in of_each if not each.reason)))
            portion = [fresh[0], *(each for each in portion if each.reason)]
        ids = [trigger.pk for trigger in portion]
        SpilledTrigger.objects.filter(pk__in=ids).update(expires_at=ends_at())
    return portion


def _with_keys(found: list[Any]) -> tuple[list[Any], list[Any]]:
    """The triggers, and the keys of each, read from their texts at once."""
    return found, json.loads(f"[{','.join(each.text for each in found)}]")


def _merge(some: Sequence[Any], keys: Iterable[Any]) -> None:
    """Give the first of the triggers the keys of all, and delete the others."""
    named = key_kind(SpilledTrigger).condition([each.pk for each in some], settings.DATABASE)
    every = SpilledTrigger.objects.filter(named)
    changes: dict[str, Any] = {"keys": list(dict.fromkeys(keys))}
    if some[0].model_label.startswith(delivery.DELETED):  # runs until then are of the deleted rows
        changes |= every.aggregate(created_at=Max("created_at"))
    SpilledTrigger.objects.filter(pk=some[0].pk).update(**changes)
    every.exclude(pk=some[0].pk)._raw_delete(settings.DATABASE)


def _begin(ids: Sequence[int], tries: int) -> list[SpilledTrigger]:
    """The triggers, for this process alone; a second message for them does nothing."""
    waiting = SpilledTrigger.objects.filter(pk__in=ids, tries=tries)
    # Another process than upkeep's: it may run older code.
    waiting = waiting.filter(planned_here() | _is_old())
    with transaction.atomic(using=settings.DATABASE):
        some = _locked(waiting, len(ids))
        SpilledTrigger.objects.filter(pk__in=[trigger.pk for trigger in some]).update(
            tries=F("tries") + 1, expires_at=ends_at()
        )
    return some


def _locked(triggers: QuerySet[Any, Any], number: int) -> list[Any]:
    return list(unlocked(triggers.order_by("pk"))[:number])


def _plan(some: Sequence[SpilledTrigger], keys: set[int | str]) -> None:
    """Plan the rows of the triggers, which are alike; suspects are alone."""
    first = some[0]
    # Those of the model, or the one that the trigger names.
    named = registry.find(first.runner)
    runners = [named] if named else () if first.runner else delivery.runners_of(first.model_label)
    if not runners:
        message = "Saved %s have had no runner for a day: %d rows are dropped."
        logger.warning(message, first.model_label, len(keys))
    elif first.model_label.startswith(RELATED):
        lookup = first.model_label.rpartition(":")[2]
        plan_related(runners, lookup, list(keys), is_suspect=first.tries > 0)
        return
    elif first.model_label.startswith(delivery.DELETED):
        latest = max(each.created_at for each in some)
        if first.runner:
            retire_noted(runners[0], keys, deleted_at=latest)
        else:
            retire(runners, keys, using=first.model_label.split(":")[1], deleted_at=latest)
    if first.tries and len(keys) * len(runners) > 1:
        _divide(first, runners)
    elif first.tries >= MOST_DEATHS and runners:
        fail_lethal(runners[0], *keys, deaths=first.tries)
    elif first.runner and runners:
        is_noted = first.model_label.startswith((delivery.DELETED, delivery.WRITTEN))
        # The label ends in the origin, unless it is that of the model.
        written = WRITTEN.get(first.model_label.rpartition(":")[2], Chunk.Priority.WRITE)
        plan_keys(runners[0], keys, priority=written if is_noted else Chunk.Priority.LIVE)
    else:
        plan_for_all(runners, keys)


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
