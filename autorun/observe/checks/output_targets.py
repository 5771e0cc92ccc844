"""Checks of where a runner's outputs are written."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.checks import CheckMessage
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model, UniqueConstraint

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.hooks import database_of
from autorun.declare.returns import members_of
from autorun.observe.checks.declarations import analysis_of, model_of
from autorun.observe.checks.problems import error, place, shown
from autorun.state.keys import concrete
from autorun.state.words import suggestion


def check_landing(runner: Runner) -> Iterator[CheckMessage]:
    """E040-E044: the fields, the model, the database and the keys of landed outputs."""
    model = model_of(runner)
    if model is None or not (runner.lands or runner.OUTPUT_KEY):
        return
    declared: Any = runner.OUTPUT_FIELDS
    target: Any = runner.OUTPUT_MODEL
    if declared is not None and not isinstance(declared, (str, Mapping)):
        yield error(runner, "E040")(
            f"OUTPUT_FIELDS is {shown(declared)}, not a dict.",
            f'Edit {place(runner)}: OUTPUT_FIELDS = {{"output": "field"}}.',
        )
        return
    if target is not None or runner.OUTPUT_KEY is not None:
        problem = _target_problem(runner, model, target)
        if problem:
            yield error(runner, "E042")(*problem)
            return
    yield from _fields(runner, target or model)
    if target is None:
        yield from _inputs(runner)
    yield from _database(runner)
    yield from _keys(runner)


def _fields(runner: Runner, model: type[Model]) -> Iterator[CheckMessage]:
    for path, name in runner.output_fields.items():
        problem = ""
        try:
            field: Any = model._meta.get_field(name)
        except (FieldDoesNotExist, TypeError):
            known = [each.name for each in model._meta.concrete_fields]
            question = suggestion(str(name), known)
            problem = f"{model._meta.label} has no field {name!r}. {question}".rstrip()
        else:
            if not getattr(field, "concrete", False) or field.many_to_many:
                problem = f"{name} has no column."
            elif field.primary_key or getattr(field, "generated", False):
                problem = f"{name} cannot be written."
        if problem:
            yield error(runner, "E040")(
                f"OUTPUT_FIELDS has {shown(path)}: {shown(name)}. {problem}",
                f"Name a field of {model._meta.label} in {place(runner)}.",
            )


def _inputs(runner: Runner) -> Iterator[CheckMessage]:
    read = {str(each).partition("__")[0] for each in runner.INPUT_FIELDS or ()}
    for name in runner.output_fields.values():
        if name in read:
            yield error(runner, "E041")(
                f"{name!r} is in both OUTPUT_FIELDS and INPUT_FIELDS, so each result would "
                "make its row pending again.",
                f"Write the output of {place(runner)} to a field that it does not read.",
            )


def _target_problem(runner: Runner, model: type[Model], target: Any) -> tuple[str, str] | None:
    """Why OUTPUT_MODEL and OUTPUT_KEY name no row for an input row, and what to do; or None."""
    where = place(runner)
    if not (isinstance(target, type) and issubclass(target, Model)) or target._meta.abstract:
        return (
            f"OUTPUT_MODEL is {shown(target)}, which is not a model with a table.",
            f"Set OUTPUT_MODEL in {where} to a model that has a unique key to {model._meta.label}.",
        )
    label = target._meta.label
    if target._meta.parents:
        advice = f"Set OUTPUT_MODEL in {where} to a model without parents."
        return f"OUTPUT_MODEL is {label}, a child of another model.", advice
    key: Any = runner.OUTPUT_KEY
    advice = (
        f"Set OUTPUT_KEY in {where} to a OneToOneField to {model._meta.label}, or to another "
        "unique field that holds its primary key."
    )
    try:
        field: Any = target._meta.get_field(key)
    except (FieldDoesNotExist, TypeError, AttributeError):
        return f"OUTPUT_KEY is {shown(key)}, which is not a field of {label}.", advice
    alone = [
        list(each.fields)
        for each in target._meta.constraints
        if isinstance(each, UniqueConstraint) and each.condition is None
    ]
    if not (field.unique or [key] in alone):
        return f"OUTPUT_KEY is {key!r}, which is not unique in {label}.", advice
    related = field.related_model
    if related is not None and concrete(related) is not concrete(model):
        return f"OUTPUT_KEY is {key!r}, which leads to {related._meta.label}.", advice
    return None


def _database(runner: Runner) -> Iterator[CheckMessage]:
    try:
        database = database_of(runner)
    except Exception:  # noqa: BLE001  another check reports it
        return
    if database != settings.DATABASE:
        yield error(runner, "E043")(
            f"Its rows are in the database {database!r}, and autorun's tables in "
            f"{settings.DATABASE!r}: no transaction is in both, so its outputs cannot be landed.",
            f"Remove OUTPUT_FIELDS, OUTPUT_MODEL and save_outputs() from {place(runner)} and read "
            "its outputs from autorun's tables, or move these by AUTORUN['DATABASE'].",
        )


def _keys(runner: Runner) -> Iterator[CheckMessage]:
    analysis = analysis_of(runner)
    known = members_of(analysis.return_annotation if analysis else Any)
    for path in runner.output_fields:
        key = path.partition("__")[0]
        if known is not None and path and key not in known:
            yield error(runner, "E044")(
                f"OUTPUT_FIELDS has {path!r}, which {analysis} does not return: its annotation has "
                f"{', '.join(map(repr, known))}.",
                suggestion(key, known, otherwise=f"Edit OUTPUT_FIELDS in {place(runner)}."),
            )
