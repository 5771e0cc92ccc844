"""Plan the rows that read a related row, found by one query over the relation."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from django.db import DatabaseError, InterfaceError
from django.db.models import QuerySet

from autorun.declare import hooks, registry
from autorun.declare.base import Runner
from autorun.declare.nodes import digest_of
from autorun.models import Batch, Chunk
from autorun.planning import named
from autorun.planning.on_demand import backfill_now
from autorun.planning.scope import SOURCES, Scope
from autorun.state.keys import Key, as_json
from autorun.state.logs import get_logger
from autorun.state.transactions import is_passing, repeated_while_away
from autorun.state.words import spoken

logger = get_logger(__name__)

#: More rows than these are planned as a batch, which people can see and cancel.
MOST_ROWS = 2_000
KIND = "related"


def plan_dependents(
    runner: Runner, dependents: Sequence[Runner], keys: Collection[Key], *, priority: int
) -> None:
    """Plan what depends on new successes of `runner` on these rows. Never raises."""
    alike, sets = _by_kind(runner, dependents)
    named.plan_or_write_down(alike, keys, priority=priority)
    for dependent, lookup in sets:
        plan = partial(plan_related, [dependent], lookup, list(keys), priority=priority)
        try:
            repeated_while_away(plan)
        except Exception as error:  # noqa: BLE001
            logger.warning("%s: not planned. Upkeep tries again. %s", dependent.label, error)
            try:
                named.leave_to_upkeep(dependent, keys, lookup=lookup, **named.hold_up(error))
            except Exception:
                message = "%s: its sets could not be stored. The next sweep finds them."
                logger.exception(message, dependent.label)


def leave_dependents(runner: Runner, dependents: Sequence[Runner], keys: Collection[Key]) -> None:
    """Leave to upkeep what depends on successes of `runner` on these rows."""
    alike, sets = _by_kind(runner, dependents)
    for dependent in alike:
        named.leave_to_upkeep(dependent, keys)
    for dependent, lookup in sets:
        named.leave_to_upkeep(dependent, keys, lookup=lookup)


def _by_kind(
    runner: Runner, dependents: Sequence[Runner]
) -> tuple[list[Runner], list[tuple[Runner, str]]]:
    """Those that process the same rows, and the others with the lookup that leads to the rows."""
    digest = digest_of(runner)
    alike = [
        dependent
        for dependent in dependents
        if digest in map(digest_of, registry.dependencies_of(dependent))
    ]
    sets = [
        (dependent, f"{each.relation}__pk")
        for dependent in dependents
        for each, upstream in registry.sets_before(dependent)
        if digest_of(upstream) == digest
    ]
    return alike, sets


def plan_related(
    runners: Iterable[Runner],
    lookup: str,
    values: Sequence[Any],
    *,
    priority: int = Chunk.Priority.RELATED,
    is_suspect: bool = False,
) -> None:
    """Plan and release, for each of `runners`, the rows whose `lookup` is one of `values`.

    An error of one runner does not stop the others. After a process has died, suspect rows are left
    to upkeep one by one. In the end, raises the error of a database that was unreachable.
    """
    away: Exception | None = None
    for runner in runners:
        try:
            _plan(runner, lookup, values, priority=priority, is_suspect=is_suspect)
        except (DatabaseError, InterfaceError) as error:
            away = error
        except Exception as error:
            if is_passing(error):
                raise
            message = "%s: rows were not found by %s. The next sweep finds them."
            logger.exception(message, runner.label, lookup)
    if away is not None:
        raise away


def _plan(
    runner: Runner, lookup: str, values: Sequence[Any], *, priority: int, is_suspect: bool
) -> None:
    rows = hooks.every_row(runner).filter(**{f"{lookup}__in": values}).order_by()
    keys = list(rows.values_list("pk", flat=True)[: MOST_ROWS + 1])
    if len(keys) > MOST_ROWS:
        known = [each.relation for each in runner.related() if each.lookup == lookup]
        related = " or ".join(map(spoken, dict.fromkeys(known or [lookup.rpartition("__")[0]])))
        source = {"kind": KIND, "lookup": lookup, "values": as_json(values)}
        scope = Scope(source={**source, "words": f"whose {related} changed"})
        backfill_now(runner, scope, trigger=Batch.Trigger.RELATED)
    elif keys and is_suspect:
        named.leave_to_upkeep(runner, set(keys))
    elif keys:
        named.plan_for_all([runner], set(keys), priority=priority)


def _rows_of(runner: Runner, source: Mapping[str, Any]) -> QuerySet[Any]:
    found = {f"{source['lookup']}__in": source["values"]}
    return hooks.base_queryset(runner).filter(**found)


SOURCES[KIND] = _rows_of
