"""Any queryset a Django developer holds, as a plain one of the runner's model."""

from __future__ import annotations

from typing import Any

from django.db import connections, models
from django.db.models import Manager, Q, QuerySet

from autorun.declare import hooks
from autorun.declare.hooks import database_of
from autorun.declare.runner import Runner
from autorun.exceptions import ImproperRunner


def as_plain(runner: Runner, queryset: Any) -> QuerySet[Any]:
    """The rows of `queryset` as an unsliced, uncombined queryset of the runner's model.

    Raises TypeError for what is no queryset of that model's rows, naming both models.
    """
    model = runner.get_model()
    if isinstance(queryset, Manager):
        queryset = queryset.all()
    _require_rows_of(runner, model, queryset)
    rows: QuerySet[Any] = queryset.using(database_of(runner))
    query = rows.query
    query.select_for_update = False
    is_other_model = rows.model._meta.concrete_model is not model._meta.concrete_model
    if is_other_model or getattr(rows, "_fields", None) is not None or _is_exotic(query):
        return _narrowed(model, rows)
    return rows


def _require_rows_of(runner: Runner, model: type[models.Model], queryset: Any) -> None:
    if not isinstance(queryset, QuerySet):
        raise TypeError(
            f"{runner.label} takes a queryset of {model._meta.label}, not "
            f"{type(queryset).__name__}. For a list of instances, pass "
            f"{model.__name__}.objects.filter(pk__in=[...])."
        )
    if not hooks.is_of(queryset, model):
        raise TypeError(
            f"{runner.label} takes a queryset of {model._meta.label}, "
            f"not of {queryset.model._meta.label}."
        )
    database = database_of(runner)
    # Only what was asked for by name: a router may give a queryset another replica each time.
    if getattr(queryset, "_db", None) is not None and queryset.db != database:
        raise ImproperRunner(
            f"{runner.label} looks for its rows in the database {database!r}, but the queryset "
            f"is of {queryset.db!r}: its workers would not find them. Override "
            f"get_base_queryset() to return {model.__name__}.objects.using({queryset.db!r})."
        )


def _is_exotic(query: Any) -> bool:
    return bool(
        query.is_sliced
        or query.combinator
        or query.distinct
        or query.group_by is not None
        or query.extra_tables
        or _may_repeat_rows(query)
    )


def _may_repeat_rows(query: Any) -> bool:
    """Whether a join of the query can give one row several times."""
    return any(
        not (field.many_to_one or field.one_to_one)
        for alias, join in query.alias_map.items()
        if (field := getattr(join, "join_field", None)) is not None
        and query.alias_refcount.get(alias)
    )


def _narrowed(model: type[models.Model], queryset: QuerySet[Any]) -> QuerySet[Any]:
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
