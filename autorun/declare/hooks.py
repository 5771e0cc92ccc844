"""Hooks of a project's runners, called so that what they raise says whose it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from django.db import Error as DatabaseError
from django.db.models import Manager, Model, QuerySet

from autorun.declare.backoff import FALLBACK, exponential
from autorun.declare.runner import Runner
from autorun.exceptions import AutorunError, ImproperRunner

logger = logging.getLogger(__name__)


def base_queryset(runner: Runner) -> QuerySet[Any]:
    """What `get_base_queryset()` gives.

    Raises ImproperRunner where that raises anything, or gives no queryset of the runner's model.
    """
    with named(runner, "get_base_queryset"):
        given: Any = runner.get_base_queryset()
    if isinstance(given, Manager):
        given = given.all()
    return _queryset(runner, "get_base_queryset", given)


def filtered(runner: Runner, queryset: QuerySet[Any], *, log_level: int) -> QuerySet[Any]:
    """What `filter_queryset()` lets through of `queryset`.

    Raises ImproperRunner where that raises anything, or gives no queryset of the runner's model.
    """
    with named(runner, "filter_queryset"):
        given: Any = runner.filter_queryset(queryset, log_level=log_level)
    return _queryset(runner, "filter_queryset", given)


def every_row(runner: Runner) -> QuerySet[Any]:
    """All rows of the runner's model, whatever its default manager leaves out."""
    return runner.get_model()._base_manager.using(database_of(runner))


def database_of(runner: Runner) -> str:
    """The alias of the database that the runner's rows are in, asked once an instance."""
    known: str | None = vars(runner).get("_database")
    if known is None:
        known = vars(runner)["_database"] = base_queryset(runner).db
    return known


def is_of(queryset: QuerySet[Any] | Manager[Any], model: type[Model]) -> bool:
    """Whether the rows of `queryset` are rows of `model`, maybe of a proxy or a child of it."""
    given = queryset.model._meta.concrete_model or queryset.model
    return issubclass(given, model._meta.concrete_model or model)


@contextmanager
def named(runner: Runner, hook: str) -> Iterator[None]:
    """Errors of a project's own hook as ImproperRunner, which says whose it is."""
    try:
        yield
    except (AutorunError, DatabaseError, SoftTimeLimitExceeded):
        # A database that is away is no fault of the hook's, and tasks try again then. Nor is it
        # one to be told, while it runs, that the time is up.
        raise
    except Exception as error:
        raise ImproperRunner(
            f"{runner.label}: {hook}() raises {type(error).__name__}: {error}. Correct it in "
            f"{type(runner).__module__}.{type(runner).__qualname__}."
        ) from error


def _queryset(runner: Runner, hook: str, given: Any) -> QuerySet[Any]:
    if not isinstance(given, QuerySet):
        raise ImproperRunner(
            f"{runner.label}.{hook}() returned {type(given).__name__}, not a queryset. "
            "Does it end in a return?"
        )
    model = runner.get_model()
    if not is_of(given, model):
        raise ImproperRunner(
            f"{runner.label}.{hook}() returned a queryset of {given.model._meta.label}, not of "
            f"{model._meta.label}. Correct it in "
            f"{type(runner).__module__}.{type(runner).__qualname__}."
        )
    return given


def backoff_of(runner: Runner, attempt: int) -> float:
    """What the runner's hook says; a hook that is broken costs time, never an attempt."""
    try:
        return max(0.0, float(runner.get_retry_backoff(attempt)))
    except Exception:
        logger.exception("%s: get_retry_backoff(%d) failed.", runner.label, attempt)
        return exponential(FALLBACK, attempt)
