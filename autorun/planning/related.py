"""Plan the rows that read a related row, found by one query over the relation."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import DatabaseError, InterfaceError
from django.db.models import QuerySet

from autorun.declare import hooks
from autorun.declare.related import related_to
from autorun.declare.runner import Runner
from autorun.models import Batch, Chunk
from autorun.planning.named import leave_to_upkeep, plan_for_all
from autorun.planning.on_demand import backfill_now
from autorun.planning.scope import SOURCES, Scope
from autorun.state.transactions import is_passing

logger = logging.getLogger(__name__)

#: More rows than these are planned as a batch, which people can see and cancel.
MOST_ROWS = 2_000
KIND = "related"


def plan_related(
    runners: Iterable[Runner], lookup: str, values: Sequence[Any], *, is_suspect: bool = False
) -> None:
    """Plan and release, for each of `runners`, the rows whose `lookup` is one of `values`.

    What one of them raises keeps no other from its rows. After a process has died, a suspect is
    left to upkeep row by row. Raises the error of the database in the end if it was away.
    """
    away: Exception | None = None
    for runner in runners:
        try:
            _plan(runner, lookup, values, is_suspect=is_suspect)
        except (DatabaseError, InterfaceError) as error:
            away = error
        except Exception as error:
            if is_passing(error):
                raise
            message = "%s: rows were not found by %s. The next sweep finds them."
            logger.exception(message, runner.label, lookup)
    if away is not None:
        raise away


def _plan(runner: Runner, lookup: str, values: Sequence[Any], *, is_suspect: bool) -> None:
    rows = hooks.every_row(runner).filter(**{f"{lookup}__in": values}).order_by()
    keys = list(rows.values_list("pk", flat=True)[: MOST_ROWS + 1])
    if len(keys) > MOST_ROWS:
        source = {"kind": KIND, "lookup": lookup, "values": [*map(_plain, values)]}
        scope = Scope(source={**source, "words": f"whose {_relations(runner, lookup)} changed"})
        backfill_now(runner, scope, trigger=Batch.Trigger.RELATED)
    elif keys and is_suspect:
        leave_to_upkeep(runner, set(keys))
    elif keys:
        plan_for_all([runner], set(keys), priority=Chunk.Priority.RELATED)


def _plain(value: Any) -> int | str:
    return value if type(value) is int else str(value)


def _relations(runner: Runner, lookup: str) -> str:
    """The related rows that lead to rows of the runner by `lookup`, in words."""
    names = dict.fromkeys(each.relation for each in related_to(runner) if each.lookup == lookup)
    return " or ".join(name.replace("__", " ").replace("_", " ") for name in names)


def _rows_of(runner: Runner, source: Mapping[str, Any]) -> QuerySet[Any]:
    found = {f"{source['lookup']}__in": source["values"]}
    return hooks.base_queryset(runner).filter(**found)


SOURCES[KIND] = _rows_of
