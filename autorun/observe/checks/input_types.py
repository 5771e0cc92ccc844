"""A check of the input: its argument is annotated with a type that the input fits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, get_args

from django.core.checks import CheckMessage
from django.db.models import FileField, JSONField

from autorun.analysis import Analysis
from autorun.declare.arguments import Arguments
from autorun.declare.base import Runner
from autorun.declare.conversion import Mismatch, choices
from autorun.declare.inputs import Input, given
from autorun.declare.nodes import configuration_of
from autorun.declare.sets import MembersInput
from autorun.observe.checks.declarations import analysis_of, model_of
from autorun.observe.checks.problems import error, place

#: Each field makes its examples of those that it can read.
_TEXTS = ("1", "a", "2026-03-04", "05:06:07", f"{1:032x}", "10.0.0.1", "::1")


def check_input_types(runner: Runner) -> Iterator[CheckMessage]:
    """E023: an annotation that refuses every value of the input.

    Examples are converted as the input of a run is. There are none, and so no complaint, if a hook
    makes the input, or for keys of JSON, transforms and fields of other packages.
    """
    if runner.overrides("get_instance_representation") or not model_of(runner):
        return
    analysis = analysis_of(runner)
    with suppress(Exception):  # another check reports what is wrong with the options
        is_output = runner.INPUT_KEY in runner.input_from
        if (
            analysis
            and not is_output
            and not analysis.check(configuration_of(runner), *runner.receivers)
        ):
            misfit = _misfit(runner, analysis)
            if misfit:
                yield error(runner, "E023")(*misfit)


def _misfit(runner: Runner, analysis: Analysis) -> tuple[str, str] | None:
    key, model, arguments = runner.get_input_key(), runner.get_model(), analysis.arguments

    def refused(value: object) -> Mismatch | None:
        return _refusal(arguments, key, value if analysis.batch is None else [value])

    if runner.takes_instances:
        refusal = refused(model.__new__(model))
        what = f"without INPUT_FIELDS it is an instance of {model._meta.label}"
        hint = f"Set INPUT_FIELDS in {place(runner)} to the field to pass"
    else:
        annotation = arguments.type_hints.get(key, Any)
        if analysis.batch is not None:
            annotation = next(iter(get_args(annotation)), Any)
        refusal, what = _refusal_of_fields(refused, annotation, runner.inputs)
        hint = f"Change INPUT_FIELDS in {place(runner)}"
    if refusal is None:
        return None
    hint = f"{hint}, or change the annotation in {arguments.location}."
    if analysis.batch is not None and not refusal.keys:
        what = f"with batch={analysis.batch} it is a list"
        hint = f"Annotate it as a list, such as list[str], in {arguments.location}."
    return f"{arguments.owner}: argument {refusal.claim}, but {what}.", hint


def _refusal(arguments: Arguments, key: str, value: object) -> Mismatch | None:
    try:
        arguments.convert(key, value)
    except Mismatch as refusal:
        return refusal
    return None


def _refusal_of_fields(
    refusal_of: Callable[[object], Mismatch | None],
    annotation: Any,
    inputs: Sequence[Input | MembersInput],
) -> tuple[Mismatch | None, str]:
    """The refusal of one field's last example, after all others; and what was refused."""
    fields = [each for each in inputs if isinstance(each, Input)]
    left = {each: list(_examples(each, annotation)) for each in fields}
    left = {each: examples for each, examples in left.items() if examples}
    while left:
        values = {each.path: examples[0] for each, examples in left.items()}
        value = values if len(inputs) > 1 else next(iter(values.values()))
        refusal = refusal_of(value)
        if refusal is None:
            break
        if len(inputs) > 1 and not refusal.keys:
            is_unknown = any(map(is_dataclass, (annotation, *get_args(annotation))))
            return None if is_unknown else refusal_of({}), "INPUT_FIELDS gives a dict"
        path = refusal.keys[-1] if len(inputs) > 1 else inputs[0].path
        refused = next(each for each in left if each.path == path)
        kind = type(left[refused].pop(0)).__name__
        if not left[refused]:
            return refusal, f"the {type(refused.field).__name__} {path!r} gives {kind}"
    return None, ""


def _examples(each: Input, annotation: Any) -> Iterator[Any]:
    field = each.field
    if each.path.split("__")[-1] not in ("pk", field.name, getattr(field, "attname", "pk")):
        return
    while field.is_relation:
        field = field.target_field
    field = getattr(field, "output_field", field)
    is_known = type(field).__module__.startswith("django.db.models.fields")
    if not is_known or isinstance(field, JSONField):
        return
    kinds = set()
    for text in _TEXTS:
        with suppress(Exception):
            is_file = isinstance(field, FileField)
            value = field.attr_class(None, field, text) if is_file else field.to_python(text)
            kinds.add(type(value))
            yield given(value, field)
    yield from (each for each in choices(annotation) if type(each) in kinds)
