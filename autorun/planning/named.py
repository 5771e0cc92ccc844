"""Plan rows given by their keys, just saved or processed upstream, or by those of related rows."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from django.db import DatabaseError, InterfaceError
from django.db.models import QuerySet

from autorun.conf import settings
from autorun.declare import hooks, nodes, registry
from autorun.declare.base import Runner
from autorun.declare.sets import label_of_related
from autorun.dispatch.releasing import release
from autorun.exceptions import AutorunError
from autorun.models import Batch, Chunk, Node, SpilledTrigger
from autorun.planning.batches import Outcome
from autorun.planning.on_demand import backfill_now
from autorun.planning.planner import Planner
from autorun.planning.rows import eligible_named, primary_keys
from autorun.planning.scope import SOURCES, Scope
from autorun.planning.windows import Window, lethal, unprepared, whole
from autorun.state import probes, transactions
from autorun.state.clock import from_now
from autorun.state.exception_text import one_line
from autorun.state.keys import Key, as_json, key_kind
from autorun.state.logs import get_logger
from autorun.state.parameters import LEAST
from autorun.state.words import spoken

logger = get_logger(__name__)

#: Upkeep may pass 500,000 at once, saved while no broker answered.
KEYS_AT_ONCE = 10_000
#: More rows than these are planned as a batch, which people can see and cancel.
MOST_ROWS = 2_000
KIND = "related"


def plan_keys(
    runner: Runner, keys: Collection[Any], *, priority: int = Chunk.Priority.LIVE
) -> Outcome:
    """Plan and release those rows of the base queryset whose primary keys are `keys`."""
    node_id = nodes.node_of(runner).pk
    planner = Planner(runner, node_id=node_id, priority=priority)
    outcome = Outcome()

    def plan(windows: Iterable[Window]) -> None:
        nonlocal outcome
        for window in windows:
            outcome += planner.plan(window)

    def probe() -> None:
        nothing = eligible_named(runner, found[:1], is_probe=True)
        for window in whole(runner, nothing, node_id=node_id):
            planner.count(window)

    found = primary_keys(runner, keys)
    with probes.span("autorun.plan") as span:
        halving = transactions.Halving(
            found,
            fail=lambda pk, error: plan([unprepared(runner, pk, error)]),
            probe=probe,
            using=settings.DATABASE,
        )
        for some in halving:
            try:
                plan(_windows(runner, some, node_id=node_id))
            except Exception as error:  # noqa: BLE001  halved, and raised if it hits all
                halving.errors.append(error)
        span.note(runner=runner.label, candidates=outcome.candidates, planned=outcome.planned)
    if outcome.planned:
        logger.info("%s: planned %d of %d rows.", runner.label, outcome.planned, len(keys))
        release(node_id)
    if runner.CANDIDATE is not None and (trial := registry.trial_of(runner)) is not None:
        _try_to_plan(trial, keys, priority=priority)
    return outcome


def _try_to_plan(trial: Runner, keys: Collection[Any], *, priority: int) -> None:
    try:
        plan_keys(trial, keys, priority=priority)
    except AutorunError:  # the next sweep tries again
        logger.exception("%s: its candidate version was not planned.", trial.label)


def fail_lethal(runner: Runner, key: Any, *, deaths: int) -> None:
    """Record the row as failed without reading it, because too many processes have died of it."""
    planner = Planner(runner, node_id=nodes.node_of(runner).pk, priority=Chunk.Priority.LIVE)
    for pk in primary_keys(runner, [key]):
        planner.plan(unprepared(runner, pk, lethal(deaths)))


def plan_for_all(
    runners: Iterable[Runner], keys: Collection[Any], *, priority: int = Chunk.Priority.LIVE
) -> None:
    """`plan_keys` for several runners; an error of one does not stop the others.

    Rows that a runner cannot plan are left to upkeep. In the end, raises the error of a database
    that was unreachable or did not store these.
    """
    away: Exception | None = None
    for runner in runners:
        try:
            plan_keys(runner, keys, priority=priority)
        except Exception as error:  # noqa: BLE001
            try:
                if transactions.is_passing(error):
                    raise
                _write_down(runner, keys, error)
            except (DatabaseError, InterfaceError) as refused:
                away = refused
    if away is not None:
        raise away


def hold_up(error: Exception) -> dict[str, Any]:
    """The columns of saved rows that could not be planned: why, and when to try again.

    After a pause if the error affects all rows of a runner and will do so again.
    """
    if transactions.is_passing(error):
        return {"reason": "", "expires_at": None}
    return {"reason": one_line(error), "expires_at": from_now(transactions.PAUSE_FOR_ALL)}


def _write_down(runner: Runner, keys: Collection[Any], error: Exception) -> None:
    message = "%s: %d rows were not planned. Upkeep tries again. %s: %s"
    logger.warning(message, runner.label, len(keys), type(error).__name__, error)
    leave_to_upkeep(runner, keys, **hold_up(error))


def leave_to_upkeep(
    runner: Runner, keys: Collection[Any], *, lookup: str = "", **columns: Any
) -> None:
    """Leave the rows to upkeep, for that runner alone: it need not process rows that are saved.

    With a `lookup`, `keys` are values of it.
    """
    label = runner.get_model()._meta.label
    spilled = SpilledTrigger(
        model_label=label_of_related(label, lookup) if lookup else label,
        runner=runner.label,
        keys=as_json(keys),
        **columns,
    )
    create = partial(spilled.save, force_insert=True, using=settings.DATABASE)
    transactions.repeated_on_conflict(create, is_idempotent=True)


def _windows(runner: Runner, keys: Sequence[Any], *, node_id: int) -> Iterator[Window]:
    """The eligible rows of these primary keys, so many at once as one short transaction plans."""
    # Keys that are numbers are in their order, and bound the runs that are compared with them: else
    # a database whose statistics are old would read all runs of the node for each window.
    are_numbers = key_kind(runner.get_model()).is_integer and set(map(type, keys)) == {int}
    ordered = sorted(keys) if are_numbers else keys
    for begin in range(0, len(keys), KEYS_AT_ONCE):
        some = ordered[begin : begin + KEYS_AT_ONCE]
        bounds = {}
        if are_numbers and LEAST < some[0] < some[-1]:
            bounds = {"above": some[0] - 1, "up_to": some[-1]}
        yield from whole(runner, eligible_named(runner, some), node_id=node_id, **bounds)


def plan_dependents(node: Node, keys: Collection[Key], *, priority: int) -> None:
    """Plan what depends on new successes of the node on these rows.

    An error of one dependent stops no other; the last one is raised in the end.
    """
    alike, sets = _by_kind(node)
    plans = [partial(plan_for_all, alike, keys, priority=priority)]
    for dependent, lookup in sets:
        plans.append(partial(plan_related, [dependent], lookup, list(keys), priority=priority))
    failed: Exception | None = None
    for plan in plans:
        try:
            transactions.repeated_while_away(plan)
        except (DatabaseError, InterfaceError) as error:
            failed = error
    if failed is not None:
        raise failed


def leave_dependents(node: Node, keys: Collection[Key]) -> None:
    """Leave to upkeep what depends on successes of the node on these rows."""
    alike, sets = _by_kind(node)
    for dependent in alike:
        leave_to_upkeep(dependent, keys)
    for dependent, lookup in sets:
        leave_to_upkeep(dependent, keys, lookup=lookup)


def _by_kind(node: Node) -> tuple[list[Runner], list[tuple[Runner, str]]]:
    """Dependents that process the same rows, and others with the lookup that leads to the rows."""
    digest, dependents = node.digest, nodes.dependents(node)
    alike = [
        dependent
        for dependent in dependents
        if digest in map(nodes.digest_of, registry.dependencies_of(dependent))
    ]
    sets = [
        (dependent, f"{each.relation}__pk")
        for dependent in dependents
        for each, upstream in registry.sets_before(dependent)
        if nodes.digest_of(upstream) == digest
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
            if transactions.is_passing(error):
                raise
            message = "%s: rows were not found by %s. The next sweep finds them."
            logger.exception(message, runner.label, lookup)
    if away is not None:
        raise away


def _plan(
    runner: Runner, lookup: str, values: Sequence[Any], *, priority: int, is_suspect: bool
) -> None:
    values = primary_keys(runner, values, lookup=lookup)
    rows = hooks.every_row(runner).filter(**{f"{lookup}__in": values}).order_by()
    keys = list(rows.values_list("pk", flat=True)[: MOST_ROWS + 1])
    if len(keys) > MOST_ROWS:
        known = [each.relation for each in runner.related() if each.lookup == lookup]
        related = " or ".join(map(spoken, dict.fromkeys(known or [lookup.rpartition("__")[0]])))
        source = {"kind": KIND, "lookup": lookup, "values": as_json(values)}
        scope = Scope(source={**source, "words": f"whose {related} changed"})
        backfill_now(runner, scope, trigger=Batch.Trigger.RELATED)
    elif keys and is_suspect:
        leave_to_upkeep(runner, set(keys))
    elif keys:
        plan_for_all([runner], set(keys), priority=priority)


def _rows_of(runner: Runner, source: Mapping[str, Any]) -> QuerySet[Any]:
    found = {f"{source['lookup']}__in": source["values"]}
    return hooks.base_queryset(runner).filter(**found)


SOURCES[KIND] = _rows_of
