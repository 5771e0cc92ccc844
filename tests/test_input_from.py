"""INPUT_FROM: the outputs of one runner are an input of another on the same row."""

from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from autorun.admin.runner_pages import _facts
from autorun.analysis import Analysis
from autorun.models import Run
from autorun.planning import rows as planning_rows
from autorun.planning.rows import load
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db

by_python: dict[str, Any] = {
    "get_instance_representation": lambda self, row: row.title,
    "INPUT_FIELDS": None,
}
PLANNERS = pytest.mark.parametrize(
    "options", [pytest.param({}, id="database"), pytest.param(by_python, id="python")]
)


@dataclass
class Cleaned:
    text: str
    cut: int


def clean(value: str) -> dict[str, Any]:
    return {"text": value.strip(), "cut": len(value) - len(value.strip())}


def describe(value: Any, cleaned: Any = None, **configuration: Any) -> list[Any]:
    return [value.title if isinstance(value, Document) else value, cleaned]


def both(function: Any = describe, **options: Any) -> Any:
    first = declare(clean, NAME="First", TITLE="First")
    options = {"INPUT_FROM": {"cleaned": first}, "ON_SAVE": False, **options}
    return first, declare(function, NAME="Second", TITLE="Second", **options)


def outputs(runner: Any) -> list[Any]:
    runs = Run.objects.current().succeeded().of(runner().get_node().pk).order_by("object_id")
    return list(runs.values_list("outputs", flat=True))


def number_of_runs(runner: Any) -> int:
    return Run.objects.of(runner().get_node().pk).count()


@PLANNERS
def test_an_argument_gets_the_outputs_once_there_are_some(options):
    Document.objects.create(title=" a ")
    first, second = both(**options)
    with installed(first, second):
        assert second().run().planned == 0
        first().run()
        work_off()

        assert outputs(second) == [[" a ", {"text": "a", "cut": 2}]]
        assert second().run().planned == 0


@PLANNERS
def test_a_new_result_that_is_equal_runs_nothing_again(options):
    document = Document.objects.create(title=" a ")
    first, second = both(**options)
    with installed(first, second):
        first().run()
        work_off()
        first().backfill(force=True)
        work_off()

        assert number_of_runs(first) == 2
        assert number_of_runs(second) == 1
        assert second().has_run(document)


@pytest.mark.parametrize(
    "options", [{}, {**by_python, "get_instance_representation": lambda *_: 1}]
)
def test_a_new_result_that_differs_runs_it_again(options):
    document = Document.objects.create(title=" a ")
    first, second = both(**({"INPUT_FIELDS": ()} | options))
    with installed(first, second):
        first().run()
        work_off()
        Document.objects.filter(pk=document.pk).update(title=" a")
        first().run()
        work_off()

        assert number_of_runs(second) == 2
        assert outputs(second)[0][1] == {"text": "a", "cut": 1}


def test_a_lone_runner_is_the_input_itself_and_is_converted_as_the_argument_is_annotated():
    def length(value: Cleaned) -> list[int]:
        return [len(value.text), value.cut]

    Document.objects.create(title=" abc ")
    first, second = both(length, INPUT_FIELDS=None)
    second.INPUT_FROM = first
    with installed(first, second):
        first().run()
        work_off()

        assert outputs(second) == [[3, 2]]


def test_it_stands_beside_the_instance_and_beside_other_outputs():
    def sizes(value: Document, cleaned: Cleaned, told: list[Any]) -> list[Any]:
        return [value.title, cleaned.cut, told]

    Document.objects.create(title=" a ")
    first, second = both(INPUT_FIELDS=())
    third = declare(
        sizes,
        NAME="Third",
        TITLE="Third",
        INPUT_FIELDS=None,
        INPUT_FROM={"cleaned": first, "told": second},
        DEPENDS_ON=(first,),
    )
    with installed(first, second, third):
        first().run()
        work_off()

        [[title, cut, [_, cleaned]]] = outputs(third)
        assert (title, cut, cleaned["text"]) == (" a ", 2, "a")


def test_a_batch_body_gets_a_list_of_outputs():
    def lengths(value: list[str], cleaned: list[Cleaned]) -> list[list[Any]]:
        return [[one, other.text] for one, other in zip(value, cleaned, strict=True)]

    for title in (" a ", "b "):
        Document.objects.create(title=title)
    first, second = both(lengths)
    second.ANALYSIS = Analysis("Second", "1.0", lengths, batch=8)
    with installed(first, second):
        first().run()
        work_off()

        assert outputs(second) == [[" a ", "a"], ["b ", "b"]]


def test_concurrent_bodies_get_their_own_outputs():
    async def length(value: str, cleaned: Cleaned) -> list[Any]:
        return [value, cleaned.text]

    for title in (" a ", "b "):
        Document.objects.create(title=title)
    first, second = both(length)
    second.ANALYSIS = Analysis("Second", "1.0", length, concurrency=2)
    with installed(first, second):
        first().run()
        work_off()

        assert outputs(second) == [[" a ", "a"], ["b ", "b"]]


def test_the_outputs_of_a_chunk_are_loaded_with_one_query():
    for number in range(20):
        Document.objects.create(title=f" {number} ")
    first, second = both()
    with installed(first, second):
        first().run()
        work_off()
        keys = list(Document.objects.values_list("pk", flat=True))
        with CaptureQueriesContext(connection) as queries:
            rows = load(second(), keys, within_base=True)

    read = [each["sql"] for each in queries if connection.ops.quote_name("outputs") in each["sql"]]
    assert len([sql for sql in read if Document._meta.db_table not in sql]) == 1
    assert {row.upstream["cleaned"]["cut"] for row in rows.values()} == {2}


def test_a_row_whose_success_is_lost_while_it_is_loaded_is_left_to_planning(monkeypatch):
    Document.objects.create(title="a")
    first, second = both()
    with installed(first, second):
        first().run()
        work_off()
        runs = Run.objects.of(first().get_node().pk)
        keys = list(Document.objects.values_list("pk", flat=True))

        def lose_and_read(runner, rows):
            runs.update(is_current=None)
            return read(runner, rows)

        read = planning_rows._with_outputs
        monkeypatch.setattr(planning_rows, "_with_outputs", lose_and_read)

        assert load(second(), keys, within_base=True) == {}


def test_an_adopted_success_without_outputs_gives_none():
    Document.objects.create(title="a")
    first, second = both()
    with installed(first, second):
        first().adopt()
        second().run()
        work_off()

        assert outputs(second) == [["a", None]]


def test_explain_names_the_runner_that_it_waits_for():
    document = Document.objects.create(title="a")
    first, second = both()
    with installed(first, second):
        explanation = second().explain(document)

    assert explanation.code == "dependency"
    assert "Waiting for tests.First, which has not run on the row." in explanation.reason


def test_the_pages_facts_and_the_card_say_what_it_receives():
    first, second = both()
    with installed(first, second):
        facts = dict(_facts(second()))

    assert facts["After"] == "tests.First"
    assert facts["Input of other runners"] == "cleaned: outputs of tests.First"
