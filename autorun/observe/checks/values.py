"""Checks of the values of a runner's options."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.checks import CheckMessage
from django.core.exceptions import FieldDoesNotExist
from django.db.models import CompositePrimaryKey, Model, Q

from autorun.conf import settings
from autorun.declare.base import BY_SETTING, Runner
from autorun.declare.sets import Members
from autorun.observe.checks.declarations import model_of
from autorun.observe.checks.expectations import OPTION_VALUES, advice
from autorun.observe.checks.problems import error, place, shown
from autorun.state.words import meant, suggestion


def check_values(runner: Runner) -> Iterator[CheckMessage]:
    """E014-E017, E024: values of the runner's options."""
    for name, expected in OPTION_VALUES.items():
        value = getattr(runner, name)
        if value is not BY_SETTING and not expected.holds(value):
            yield error(runner, "E015" if name == "SCHEDULE" else "E014")(
                f"{name} is {shown(value)}. It must be {expected.words}.",
                f"Edit {place(runner)}: {advice(name, expected, value)}",
            )
    yield from _limit(runner)
    model = model_of(runner)
    if model is not None:
        yield from _input_fields(runner, model)
        yield from _queries(runner, model)


def _limit(runner: Runner) -> Iterator[CheckMessage]:
    limits: Any = settings.LIMITS
    name: Any = runner.LIMIT
    if not name or not isinstance(name, str) or not isinstance(limits, Mapping) or name in limits:
        return
    yield error(runner, "E024")(
        f"LIMIT is {name!r}, and AUTORUN['LIMITS'] has no such limit. "
        f"{suggestion(name, limits)}".rstrip(),
        f'Edit {place(runner)}, or the settings: AUTORUN = {{"LIMITS": {{"{name}": '
        "Limit(parallel=20)}}, with `from autorun.limits import Limit`.",
    )


def _input_fields(runner: Runner, model: type[Model]) -> Iterator[CheckMessage]:
    names = runner.INPUT_FIELDS
    if names is None:
        return
    if not isinstance(names, (tuple, list)):
        example = f"({names!r},)" if isinstance(names, str) else "a tuple of field names, or None"
        yield error(runner, "E016")(
            f"INPUT_FIELDS is {shown(names)}, not a tuple of field names.",
            f"Edit {place(runner)}: INPUT_FIELDS = {example}.",
        )
        return
    for name in names:
        if isinstance(name, Members):
            continue  # another check has a look at these
        problem = field_problem(model, name)
        if problem:
            yield error(runner, "E016")(
                f"INPUT_FIELDS has {shown(name)}: {problem[0]}",
                f"Edit INPUT_FIELDS in {place(runner)}. {problem[1]}",
            )


def field_problem(model: type[Model], path: Any) -> tuple[str, str] | None:
    """Why `path` does not name one value per row, and what to do; or None."""
    if not isinstance(path, str) or not path:
        return "it is not the name of a field.", f"Use names of fields of {model._meta.label}."
    current: Any = model
    field: Any = None
    for name in path.split("__"):
        if current is None:
            # The rest of the path may be a key of a JSON field, or a transform such as `year`.
            return None if field.get_transform(name) else _unknown_field(model, path, name)
        try:
            field = current._meta.pk if name == "pk" else current._meta.get_field(name)
        except FieldDoesNotExist:
            return _unknown_field(current, path, name)
        if problem := _no_single_value(field, path):
            return problem
        current = field.related_model if field.is_relation else None
    return None


def _no_single_value(field: Any, path: str) -> tuple[str, str] | None:
    if isinstance(field, CompositePrimaryKey):
        columns = ", ".join(map(repr, field.field_names))
        return f"{path} has several columns.", f"Name them instead: {columns}."
    if field.many_to_many or field.one_to_many:
        return (
            f"{field.name} gives several values per row.",
            f"Write Members({field.name!r}, ...), or read it in get_instance_representation().",
        )
    if field.is_relation and field.related_model is None:
        return (
            f"{field.name} is a generic relation, which has no column.",
            f"Name its columns instead: {field.ct_field!r} and {field.fk_field!r}.",
        )
    return None


def _unknown_field(model: type[Model], path: str, name: str) -> tuple[str, str]:
    known = sorted(
        each.name
        for each in model._meta.get_fields()
        if getattr(each, "concrete", False) and not each.many_to_many
    )
    close = meant(name, known)
    hint = f"Did you mean {path.replace(name, close)!r}?" if close else ""
    return (
        f"{model._meta.label} has no field {name!r}.",
        hint or f"Its fields: {', '.join(known)}.",
    )


def _queries(runner: Runner, model: type[Model]) -> Iterator[CheckMessage]:
    misfit = error(runner, "E017")
    problem = None if runner.BASE_QUERY is None else _query_problem(model, runner.BASE_QUERY)
    if problem:
        yield misfit(
            f"BASE_QUERY {problem}",
            f'Edit {place(runner)}: BASE_QUERY = Q(field="value"), or override '
            "get_base_queryset().",
        )
    filters: Any = {} if runner.FILTERS is None else runner.FILTERS
    if not isinstance(filters, Mapping):
        yield misfit(
            f"FILTERS is {shown(filters)}, not a dict.",
            f'Edit {place(runner)}: FILTERS = {{"recent": Q(...)}}.',
        )
        return
    for name, filter_ in filters.items():
        if not isinstance(name, str) or not name:
            problem = "has a name that is not a string."
        else:
            problem = None if callable(filter_) else _query_problem(model, filter_)
        if problem:
            yield misfit(
                f"FILTERS[{shown(name)}] {problem}",
                f"Edit FILTERS in {place(runner)}: names with a Q, or with a function that takes "
                "a queryset and returns one.",
            )


def _query_problem(model: type[Model], query: Any) -> str | None:
    if not isinstance(query, Q):
        return f"is {shown(query)}, not a Q."
    try:
        model._base_manager.filter(query)
    except Exception as problem:  # noqa: BLE001 - FieldError, ValidationError, TypeError, ...
        return f"cannot be applied to {model._meta.label}: {problem}"
    return None
