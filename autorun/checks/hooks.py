"""Checks of the methods a runner overrides."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.core.checks import CheckMessage
from django.db import Error as DatabaseError
from django.db.models import Manager, Model, QuerySet

from autorun.checks.declarations import model_of
from autorun.checks.expectations import NONE, SCHEDULE, Expectation, not_negative, positive
from autorun.checks.problems import error, place, runners_in, shown

if TYPE_CHECKING:
    from autorun.runner import QuerySetRunner

#: What each hook is called with: positional arguments, then names of keyword arguments.
CALLS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "get_base_queryset": ((), ()),
    "filter_queryset": (("queryset",), ("log_level",)),
    "log_filter_start": (("log_level",), ()),
    "log_filter_end": (("n_candidates", "log_level"), ()),
    "get_instance_representation": (("instance",), ()),
    "create_configuration": ((), ()),
    "get_schedule": ((), ()),
    "get_timeout": ((), ()),
    "get_retry_backoff": (("attempt",), ()),
}
#: Hooks that stand for an option, what they are tried with, and what they must give.
COMPUTED: Mapping[str, tuple[tuple[Any, ...], Expectation]] = {
    "get_schedule": ((), SCHEDULE),
    "get_timeout": ((), positive(example=600) | NONE),
    "get_retry_backoff": ((1,), not_negative(example=10)),
}


def check_hooks(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """E011 and E012: hooks that raise, give the wrong thing, or cannot be called."""
    found: list[CheckMessage] = []
    for runner in runners_in(app_configs):
        improper = {name: problem for name in CALLS if (problem := _signature(runner, name))}
        found += improper.values()
        model = model_of(runner)
        if model is not None and "get_base_queryset" not in improper:
            found += _base_queryset(runner, model)
        for name in COMPUTED.keys() - improper.keys():
            if runner.overrides(name):
                found += _computed(runner, name)
    return found


def _signature(runner: QuerySetRunner, name: str) -> CheckMessage | None:
    if not runner.overrides(name):
        return None
    method = getattr(runner, name)
    positional, named = CALLS[name]
    arguments = ", ".join(("self", *positional, *named))
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        problem = "is async, but it is called without await."
    else:
        try:
            inspect.signature(method).bind(*positional, **dict.fromkeys(named))
        except TypeError as mismatch:
            problem = f"cannot be called as it is: {mismatch}."
        except ValueError:  # a callable that has no signature to look at
            return None
        else:
            return None
    return error(
        runner,
        "E012",
        f"{name}() {problem}",
        f"Declare it in {place(runner)} as `def {name}({arguments}):`.",
    )


def _base_queryset(runner: QuerySetRunner, model: type[Model]) -> Iterator[CheckMessage]:
    if not runner.overrides("get_base_queryset"):
        return  # it fails only where BASE_QUERY does, which has a check of its own
    try:
        queryset: Any = runner.get_base_queryset()
    except DatabaseError:  # a check must not depend on tables that may not be there yet
        return
    except Exception as problem:  # noqa: BLE001
        yield _raised(runner, "get_base_queryset", problem)
        return
    given = queryset.model if isinstance(queryset, (QuerySet, Manager)) else None
    concrete = model._meta.concrete_model or model
    if given is not None and issubclass(given._meta.concrete_model or given, concrete):
        return
    what = "None" if queryset is None else f"a queryset of {given._meta.label}" if given else ""
    yield error(
        runner,
        "E011",
        f"get_base_queryset() returns {what or shown(queryset)}, not a queryset of "
        f"{model._meta.label}.",
        f"Edit get_base_queryset() in {place(runner)}: `return "
        f"super().get_base_queryset().filter(...)`.",
    )


def _computed(runner: QuerySetRunner, name: str) -> Iterator[CheckMessage]:
    arguments, expected = COMPUTED[name]
    try:
        value = getattr(runner, name)(*arguments)
    except DatabaseError:
        return
    except Exception as problem:  # noqa: BLE001
        yield _raised(runner, name, problem)
        return
    if not expected.holds(value):
        yield error(
            runner,
            "E011",
            f"{name}() returns {shown(value)}. It must be {expected.words}.",
            f"Edit {name}() in {place(runner)} to return {expected.example}, for example.",
        )


def _raised(runner: QuerySetRunner, name: str, problem: Exception) -> CheckMessage:
    return error(
        runner,
        "E011",
        f"{name}() raises {type(problem).__name__}: {problem}",
        f"Correct {name}() in {place(runner)}.",
    )
