"""Checks of the relations that a runner names."""

from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model

from autorun.declare.base import Runner
from autorun.declare.related import relation_at
from autorun.declare.sets import Each, Members, rows_in
from autorun.observe.checks.declarations import model_of
from autorun.observe.checks.problems import error, place, shown
from autorun.observe.checks.values import field_problem
from autorun.state.words import meant


def check_related(runner: Runner) -> Iterator[CheckMessage]:
    """E031 and E032: names in WATCH and Members that lead to no related rows."""
    model = model_of(runner)
    if model is not None:
        yield from _members(runner, model)
    watched: Any = runner.WATCH
    if not isinstance(watched, (tuple, list)):
        example = f"({watched!r},)" if isinstance(watched, str) else '("relation",)'
        yield error(runner, "E031")(
            f"WATCH is {shown(watched)}, not a tuple of names of relations.",
            f"Edit {place(runner)}: WATCH = {example}.",
        )
        return
    for path in watched if model else ():
        problem = relation_problem(model, path)
        if problem:
            yield error(runner, "E031")(
                f"WATCH has {shown(path)}: {problem[0]}",
                f"Edit WATCH in {place(runner)}. {problem[1]}",
            )


def _members(runner: Runner, model: type[Model]) -> Iterator[CheckMessage]:
    named: Any = runner.INPUT_FIELDS if isinstance(runner.INPUT_FIELDS, (tuple, list)) else ()
    names: list[Any] = []
    for each in named:
        names.append(each.name if isinstance(each, Members) else each)
        if not isinstance(each, Members):
            continue
        problem = set_problem(model, each)
        if problem is None:
            rows = rows_in(model, each)
            problems = (field_problem(rows.model, field) for field in each.fields)
            problem = next(filter(None, problems), None)
        if problem is None and names.count(each.name) > 1:
            problem = (
                f"{each.name!r} is the name of another input.",
                f'Give it another one: Members({each.relation!r}, ..., name="...").',
            )
        if problem:
            yield error(runner, "E032")(
                f"INPUT_FIELDS has Members({shown(each.relation)}, ...): {problem[0]}",
                f"Edit INPUT_FIELDS in {place(runner)}. {problem[1]}",
            )


def set_problem(model: Any, each: Members | Each) -> tuple[str, str] | None:
    """Why the rows of a set cannot be found, and what to write; or None."""
    problem = relation_problem(model, each.relation)
    if problem:
        return problem
    try:
        rows_in(model, each)
    except Exception as refused:  # noqa: BLE001 - FieldError, ValidationError, TypeError, ...
        if each.where is None:
            hint = "Give the relation a related_name, or a generic one a related_query_name."
            return f"its rows do not lead back: {refused}", hint
        return (
            f"its `where` cannot be applied: {refused}",
            "Write where=Q(...) with fields of the related rows.",
        )
    return None


def relation_problem(model: Any, path: Any) -> tuple[str, str] | None:
    """Why `path` does not lead over relations of `model`, and what to write; or None."""
    if not isinstance(path, str) or not path:
        return "it is not a name.", f"Use names of relations of {model._meta.label}."
    for name in path.split("__"):
        try:
            model = relation_at(model, name).related_model
        except FieldDoesNotExist:
            return _not_a_relation(model, name)
    return None


def _not_a_relation(model: type[Model], name: str) -> tuple[str, str]:
    fields: list[Any] = [each for each in model._meta.get_fields() if each.is_relation]
    relations = [each for each in fields if each.related_model is not None]
    names = sorted(each.name for each in relations)
    # A reverse relation is filtered by another name than it is read by.
    accessors = {each.get_accessor_name(): each.name for each in relations if each.auto_created}
    close = accessors.get(name) or meant(name, names)
    hint = f"Did you mean {close!r}?" if close else f"Its relations: {', '.join(names) or 'none'}."
    return f"{model._meta.label} has no relation {name!r}.", hint
