"""Outputs that are compared with the return annotation of their function."""

import datetime as dt
import enum
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NotRequired, Required, TypedDict

import pytest

from autorun.analysis import Analysis
from autorun.declare.returns import of_one
from autorun.exceptions import OutputError
from autorun.models import Failure, Run
from autorun.state.encoding import encode_outputs
from tests.engine import declare, installed, statuses, work_off
from tests.library.models import Document


class Size(TypedDict):
    mean: float
    unit: NotRequired[str | None]


# As in a module with `from __future__ import annotations`.
class Postponed(TypedDict):
    mean: "float"
    unit: "NotRequired[str]"


class Partial(TypedDict, total=False):
    mean: "Required[float]"
    unit: "str"


@dataclass
class Point:
    x: int
    y: int


class Colour(enum.Enum):
    RED = "red"


class Foreign:
    """A class of which an annotation says nothing about the JSON."""


def checked(value: Any, annotation: Any) -> str:
    """The value as it is recorded by a function with the return annotation."""

    def function() -> Any: ...

    function.__annotations__["return"] = annotation
    check = Analysis("Test", "1.0", function).check_outputs
    return encode_outputs(value, max_bytes=None, check=check)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int),
        (1, float),
        (1.0, int),
        ("a", str),
        (None, None),
        (None, int | None),
        (True, bool),
        (dt.date(2031, 5, 4), dt.date),
        (dt.datetime(2031, 5, 4, tzinfo=dt.UTC), dt.date),
        (dt.timedelta(1), dt.timedelta),
        (uuid.UUID(int=1), uuid.UUID),
        (Decimal("1.5"), Decimal),
        (Path("a"), Path),
        (Colour.RED, Colour),
        ("b", Literal["a", "b"]),
        ([1, 2], list[int]),
        ((1, "a"), tuple[int, str]),
        ({1, 2}, set[int]),
        ({"a": [1.5]}, dict[str, list[float]]),
        ({"mean": 1}, Size),
        ({"mean": 1.5, "unit": None}, Size),
        ({"mean": 1}, Postponed),
        ({"mean": 1}, Partial),
        (Point(1, 2), Point),
        ([Point(1, 2)], list[Point]),
        ({"anything": 1}, dict),
        ({"anything": 1}, Any),
        ({"anything": 1}, Foreign),
        ({"anything": 1}, "an unknown name"),
    ],
)
def test_outputs_that_fit_are_recorded(value, annotation):
    assert checked(value, annotation) == encode_outputs(value, max_bytes=None)


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        ("a", int, "'outputs' must be int, not 'a' (str)"),
        (True, int, "'outputs' must be int, not True (bool)"),
        (1, str, "'outputs' must be str, not 1 (int)"),
        (None, float, "'outputs' must be float, not None"),
        ({}, None, "'outputs' must be None, not {}"),
        ("c", Literal["a", "b"], "must be one of 'a', 'b'"),
        ({"mean": "x"}, Size, "'outputs['mean']' must be float, not 'x' (str)"),
        ({"mean": "x"}, Size | None, "'outputs['mean']' must be float, not 'x' (str)"),
        ({"means": 1.0}, Size, "outputs of Size lack the key 'mean'"),
        ({"unit": "mm"}, Postponed, "outputs of Postponed lack the key 'mean'"),
        ({"unit": "mm"}, Partial, "outputs of Partial lack the key 'mean'"),
        ({"mean": 1.0, "more": 1}, Size, "outputs of Size have no key 'more'"),
        (Point("a", 2), Point, "'outputs['x']' must be int, not 'a' (str)"),
        ([1, "a"], list[int], "'outputs[1]' must be int, not 'a' (str)"),
        ([1], tuple[int, str], "'outputs' must be tuple[int, str]"),
        ({"a": {"b": 1}}, dict[str, dict[str, str]], "'outputs['a']['b']' must be str"),
        ("text", list[str], "'outputs' must be list[str]"),
        ([1], Size, "'outputs' must be Size"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_with_the_key(value, annotation, words):
    with pytest.raises(OutputError) as refused:
        checked(value, annotation)

    assert words in str(refused.value)


def test_a_function_without_an_annotation_is_not_checked():
    for annotation in (Any, object):
        assert checked({"a": 1}, annotation) == '{"a":1}'
    assert Analysis("Test", "1.0", lambda: 1).check_outputs is None


def test_models_of_pydantic_are_recorded_as_dicts():
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Found", mean=(float, ...), on=(dt.date, ...))
    found = model(mean=1.5, on=dt.date(2031, 5, 4))

    assert checked(found, model) == '{"mean":1.5,"on":"2031-05-04"}'
    with pytest.raises(OutputError, match="'mean'"):
        checked({"mean": "x", "on": "2031-05-04"}, model)


def measured(value: str) -> Size:
    return {"mean": value if value == "b" else 1.5}  # type: ignore[typeddict-item]


@pytest.mark.django_db
def test_a_run_whose_outputs_do_not_fit_fails_with_the_key():
    for title in "ab":
        Document.objects.create(title=title)
    runner = declare(measured, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()

    assert statuses() == [Run.Status.SUCCEEDED, Run.Status.FAILED]
    assert "outputs['mean']" in Failure.objects.get().message


@pytest.mark.parametrize(
    ("annotation", "one"),
    [
        (list[int], int),
        (Sequence[Size], Size),
        (tuple[float, ...], float),
        (list[list[float]], list[float]),
        (list[int | ValueError], int),
        (list[int | Exception | None], int | None),
        (list[ValueError], Any),
        (list, Any),
        (tuple[int, str], Any),
        (dict[str, int], Any),
        (Foreign, Any),
        (Any, Any),
    ],
)
def test_a_batch_is_annotated_with_a_list_of_what_each_row_has(annotation, one):
    assert of_one(annotation) == one


def measured_together(value: list[str]) -> list[Size | ValueError]:
    return [ValueError("no") if each == "c" else measured(each) for each in value]


@pytest.mark.django_db
def test_a_row_of_a_batch_whose_outputs_do_not_fit_fails_alone_with_the_key():
    for title in "abc":
        Document.objects.create(title=title)
    analysis = Analysis("Together", "1.0", measured_together, batch=8)
    runner = declare(ANALYSIS=analysis, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()

    assert statuses() == [Run.Status.SUCCEEDED, Run.Status.FAILED, Run.Status.FAILED]
    assert "outputs['mean']" in Failure.objects.get(exception_class__endswith="OutputError").message
