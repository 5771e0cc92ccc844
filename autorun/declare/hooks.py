"""Hooks of a project's runners, and the querysets they return.

An error that a hook raises says which runner and which hook it comes from. Any queryset a Django
developer may return becomes a plain one of the runner's model.
"""

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from django.db import connections
from django.db.models import Manager, Model, Q, QuerySet
from django.db.models.sql import Query

from autorun.conf import settings
from autorun.declare import page_time
from autorun.declare.base import Runner, exponential
from autorun.declare.console import SILENT
from autorun.exceptions import AutorunError, ImproperRunner, bare_message
from autorun.state.encoding import qualified_name
from autorun.state.keys import concrete, key_kind
from autorun.state.logs import get_logger
from autorun.state.transactions import is_passing
from autorun.state.user_code import UserCode

logger = get_logger(__name__)

#: Seconds before another attempt that a hook may ask for, at most; and if it raises.
MOST_BACKOFF, FALLBACK_BACKOFF = 30 * 24 * 3600.0, 60.0
#: A run with a longer TIMEOUT has none: the system's timers end there.
MOST_TIMEOUT = 1e8
#: Hooks that are called for all runners: one that hangs must not hold up the others.
LIMITED = ("create_configuration", "get_analysis", "get_schedule", "get_timeout")


def base_queryset(runner: Runner) -> QuerySet[Any]:
    """The rows of `get_base_queryset()`, as `as_plain` returns them.

    Raises ImproperRunner if the hook raises, or returns no queryset of the runner's model.
    """
    return _plain_result(runner, "get_base_queryset", call(runner, "get_base_queryset"))


def filtered(runner: Runner, queryset: QuerySet[Any], *, log_level: int) -> QuerySet[Any]:
    """The rows of a plain `queryset` that `filter_queryset()` keeps, in the same way.

    If the filter compares rows with each other, it is asked for those of the base queryset and of
    `queryset` together: the best of a group must not depend on which rows are looked at.
    """
    if not runner.overrides("filter_queryset"):
        return queryset
    given, read = _marked(queryset)
    try:
        passed = call(runner, "filter_queryset", given, log_level=log_level)
        rows = _plain_result(runner, "filter_queryset", passed)
    except ImproperRunner:
        if not read:  # a value that it reads of no rows is None
            raise
    else:
        query = getattr(passed, "query", None)
        if not (read or (query and _compares_rows(query))):
            is_of_given = query and getattr(query, "read", None) is read and not query.combinator
            return rows if is_of_given else rows.filter(pk__in=_keys(queryset))
    base = base_queryset(runner)
    others = base.model._base_manager.using(base.db).filter(pk__in=_keys(queryset))
    passed = call(runner, "filter_queryset", base | others, log_level=SILENT)
    return queryset.filter(pk__in=_keys(_plain_result(runner, "filter_queryset", passed)))


def as_plain(runner: Runner, queryset: Any) -> QuerySet[Any]:
    """The rows of a caller's `queryset` as an unsliced, uncombined queryset of the runner's model.

    Raises TypeError for anything but a queryset of that model's rows, naming both models.
    """
    if isinstance(queryset, Manager):
        queryset = queryset.all()
    _require_rows_of(runner, queryset)
    return _plain(runner.get_model(), queryset.using(database_of(runner)))


def every_row(runner: Runner) -> QuerySet[Any]:
    """All rows of the model with usable keys, whatever its default manager leaves out."""
    model = runner.get_model()
    # An order by related rows would drop the rows without one.
    rows: QuerySet[Any] = model._base_manager.using(database_of(runner)).order_by()
    return rows if (kind := key_kind(model)).is_bigint else kind.nameable(rows)


def database_of(runner: Runner) -> str:
    """The alias of the database that the runner's rows are in, asked once an instance."""
    known: str | None = vars(runner).get("_database")
    if known is None:
        known = vars(runner)["_database"] = base_queryset(runner).db
    return known


def is_of(queryset: QuerySet[Any], model: type[Model]) -> bool:
    """Whether the rows of `queryset` are rows of `model`, of a proxy or of a child of it."""
    return issubclass(concrete(queryset.model), concrete(model))


def call(runner: Runner, hook: str, *args: Any, **options: Any) -> Any:
    """Call a hook of a project's own.

    Raises ImproperRunner, which names the runner and the hook, for anything that it raises. If the
    database is away, that is not the hook's fault; nor is it that the task's time is up. Raises
    RunTimeout if a page has no time left for it, or one of LIMITED takes too long.
    """
    is_own = getattr(type(runner), hook) is not getattr(Runner, hook)
    name = f"{runner.label}.{hook}()"
    try:
        with UserCode(name) if is_own else nullcontext():
            ask = partial(getattr(runner, hook), *args, **options)
            seconds = page_time.SECONDS if hook in LIMITED else None
            code = getattr(type(runner), hook)
            is_limited = is_own and (seconds is not None or page_time.current.get() is not None)
            return page_time.limited(name, ask, code=code, seconds=seconds) if is_limited else ask()
    except AutorunError as error:
        error.bare = bare_message(error)  # while its traceback says who has raised it
        raise
    except Exception as error:
        if is_passing(error) or isinstance(error, SoftTimeLimitExceeded):
            raise
        raised = f"{runner.label}: {hook}() raises {type(error).__name__}"
        advice = f"Correct it in {qualified_name(type(runner))}."
        improper = ImproperRunner(f"{raised}: {error}. {advice}")
        improper.bare = f"{raised}. {advice}"
        raise improper from error


def backoff_of(runner: Runner, attempt: int) -> float:
    """The seconds that `get_retry_backoff()` returns, at least 0 and at most MOST_BACKOFF."""
    # A hook that is broken costs time, never an attempt.
    try:
        given = float(call(runner, "get_retry_backoff", attempt))
        if math.isnan(given):
            raise ValueError("it returned NaN")
        seconds = max(0.0, min(given, MOST_BACKOFF))
        if given != seconds:
            logger.error("%s: get_retry_backoff(%d) returned %s.", runner.label, attempt, given)
    except Exception:
        logger.exception("%s: get_retry_backoff(%d) failed.", runner.label, attempt)
        return exponential(FALLBACK_BACKOFF, attempt)
    return seconds


def timeout_of(runner: Runner) -> float | None:
    """The seconds that `get_timeout()` returns, or None if a run may take any time.

    AUTORUN["TIMEOUT"] replaces a value that is not a positive number.
    """
    try:
        given = call(runner, "get_timeout")
        seconds = math.inf if given is None else float(given)
        if not seconds > 0:
            raise ValueError(f"{given!r} is not a positive number of seconds")
    except Exception:
        logger.exception("%s: get_timeout() failed.", runner.label)
        return settings.TIMEOUT
    return None if seconds > MOST_TIMEOUT else seconds


def is_scheduled(runner: Runner) -> bool:
    """Whether `get_schedule()` returns one; False if it raises, which a check reports."""
    try:
        return call(runner, "get_schedule") is not None
    except AutorunError:
        return False


def _plain_result(runner: Runner, hook: str, given: Any) -> QuerySet[Any]:
    if isinstance(given, Manager):
        given = given.all()
    if not isinstance(given, QuerySet):
        raise ImproperRunner(
            f"{runner.label}.{hook}() returned {type(given).__name__}, not a queryset. "
            "Does it end in a return?"
        )
    model = runner.get_model()
    if given.model is not model and not is_of(given, model):
        raise ImproperRunner(
            f"{runner.label}.{hook}() returned a queryset of {given.model._meta.label}, not of "
            f"{model._meta.label}. Correct it in {qualified_name(type(runner))}."
        )
    return _plain(model, given)


def _require_rows_of(runner: Runner, queryset: Any) -> None:
    model = runner.get_model()
    if not isinstance(queryset, QuerySet):
        raise TypeError(
            f"{runner.label} takes a queryset of {model._meta.label}, not "
            f"{type(queryset).__name__}. For a list of instances, pass "
            f"{model.__name__}.objects.filter(pk__in=[...])."
        )
    if not is_of(queryset, model):
        raise TypeError(
            f"{runner.label} takes a queryset of {model._meta.label}, "
            f"not of {queryset.model._meta.label}."
        )
    database = database_of(runner)
    # Only an explicit `using()` counts: a router may pick another replica for each queryset.
    if getattr(queryset, "_db", None) is not None and queryset.db != database:
        raise ImproperRunner(
            f"{runner.label} looks for its rows in the database {database!r}, but the queryset "
            f"is of {queryset.db!r}: its workers would not find them. Override "
            f"get_base_queryset() to return {model.__name__}.objects.using({queryset.db!r})."
        )


def _plain(model: type[Model], rows: QuerySet[Any]) -> QuerySet[Any]:
    query: Any = rows.query
    query.select_for_update = False
    if query.select_related:
        query.select_related = _lossless(rows.model, query.select_related)
    if (
        rows.model._meta.concrete_model is not model._meta.concrete_model
        or getattr(rows, "_fields", None) is not None
        or query.is_sliced
        or query.combinator
        or query.distinct
        or query.group_by is not None
        or query.extra_tables
        or query.where.contains_over_clause
        or (len(query.alias_map) > 1 and _may_repeat_rows(query))
    ):
        rows = _narrowed(model, rows)
    return rows if (kind := key_kind(model)).is_bigint else kind.nameable(rows)


def _compares_rows(query: Any) -> bool:
    """Whether a row passes depending on the other rows that the filter was given."""
    if query.is_sliced or query.distinct_fields or query.where.contains_over_clause:
        return True
    if any(map(_compares_rows, query.combined_queries)):
        return True
    parts = list(query.where.children)
    while parts:
        part = parts.pop()
        if isinstance(part, Query):
            if getattr(part, "read", None) is not None or _compares_rows(part):
                return True
        elif hasattr(part, "get_source_expressions"):
            parts += part.get_source_expressions()
    return False


def _marked(queryset: QuerySet[Any]) -> tuple[QuerySet[Any], list[bool]]:
    """`queryset` for a filter, and a list that is empty until it reads a value of several rows."""
    read: list[bool] = []
    given: Any = queryset.all()
    kind = type(given.query)
    is_plain = kind is Query
    given.query = given.query.chain(_Reading if is_plain else type("_", (_Reading, kind), {}))
    given.query.read = read
    return given, read


class _Reading(Query):
    """A query that notes in `read`, as its clones do, that it is executed for a value.

    A count and all rows are not such values: filters log the one, and go through the others. One
    row of each group is.
    """

    read: list[bool] | None = None

    def get_aggregation(self, using: Any, aggregate_exprs: Any) -> Any:
        if self.read == [] and "__count" not in aggregate_exprs:
            self.read.append(True)
        self.read = None  # it is a clone, made for this
        return super().get_aggregation(using, aggregate_exprs)

    def get_compiler(self, *args: Any, **options: Any) -> Any:
        if self.read == [] and (isinstance(self.group_by, tuple) or _compares_rows(self)):
            self.read.append(True)
        return super().get_compiler(*args, **options)

    def combine(self, rhs: Query, connector: str) -> None:
        super().combine(rhs, connector)
        if connector != Q.AND and getattr(rhs, "read", None) is not self.read:
            self.read = None  # the other's rows need not be given ones


def _may_repeat_rows(query: Any) -> bool:
    """Whether a join of the query can give one row several times."""
    return any(
        not (field.many_to_one or field.one_to_one)
        for alias, join in query.alias_map.items()
        if (field := getattr(join, "join_field", None)) is not None
        and query.alias_refcount.get(alias)
    )


def _lossless(model: type[Model], names: Any) -> Any:
    """The `select_related` of a query without what refers to no row: a join would drop its row."""
    forward: dict[str, Any] = {each.name: each for each in model._meta.fields if each.remote_field}
    dangling = {
        name
        for name, field in forward.items()
        if not (field.null or getattr(field, "db_constraint", False))
    }
    if names is True:
        return not dangling
    kept = {name: further for name, further in names.items() if name not in dangling}
    for name in kept.keys() & forward.keys():
        kept[name] = _lossless(forward[name].related_model, kept[name])
    return kept


def _narrowed(model: type[Model], queryset: QuerySet[Any]) -> QuerySet[Any]:
    """All rows of `model` whose primary key is one of `queryset`'s."""
    rows = model._base_manager.using(queryset.db)
    if queryset.query.is_empty():
        return rows.none()
    keys = _keys(queryset)
    is_subquery_allowed = (
        not (queryset.query.is_sliced or queryset.query.combinator)
        or connections[queryset.db].features.allow_sliced_subqueries_with_in
    )
    if is_subquery_allowed:
        return rows.filter(pk__in=keys)
    return rows.filter(Q(pk__in=[row[0] for row in keys]))


def _keys(queryset: QuerySet[Any]) -> QuerySet[Any]:
    if queryset.query.combinator:
        return queryset.values_list("pk")
    if not queryset.query.is_sliced and not queryset.query.distinct_fields:
        queryset = queryset.order_by()
    return queryset.values_list("pk")
