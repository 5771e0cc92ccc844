"""Long lists of keys, `filter(pk__in=keys)`, are planned in parts."""

import uuid

import pytest
from django.db import connection
from django.db.models import IntegerField
from django.db.models.functions import Cast

from autorun.models import Batch, Run
from autorun.planning import listed, windows
from autorun.planning.on_demand import backfill_now, go_on
from autorun.planning.scope import Scope
from autorun.state.keys import key_kind
from tests.crashes import crashed_at
from tests.engine import declare, installed
from tests.library.models import Country, Document, Photo, Report

pytestmark = pytest.mark.django_db(transaction=True)

READ_BY = {
    "database": {},
    "python": {"INPUT_FIELDS": None, "get_instance_representation": lambda self, row: str(row.pk)},
}


@pytest.fixture(autouse=True)
def short_parts(set_constants):
    set_constants(listed, LONG=4, PART=2)
    set_constants(windows, PYTHON_WINDOW=1)


def rows_of(model, number):
    keys = {
        Photo: [uuid.uuid4() for _ in range(number)],
        Country: [f"C{each:03}" for each in range(number)],
    }
    if model in keys:
        model.objects.bulk_create(model(pk=key) for key in keys[model])
        return keys[model]
    return [model.objects.create(title=str(each)).pk for each in range(number)]


def planned(model):
    kind = key_kind(model)
    return {kind.to_pk(kind.of(run)) for run in Run.objects.current()}


@pytest.mark.parametrize("read_by", READ_BY)
@pytest.mark.parametrize("model", [Document, Photo, Country, Report])
def test_the_rows_of_a_long_list_are_planned_and_no_others(model, read_by):
    keys = rows_of(model, 9)
    options = {"DATA_MODEL": model, "INPUT_FIELDS": ("pk",), "ON_SAVE": False}
    runner = declare(**options | READ_BY[read_by])
    given = [None, keys[7], keys[0], keys[3], keys[3], keys[1], keys[5]]

    with installed(runner):
        counted = runner().run(model.objects.filter(pk__in=given), dry=True)
        batch = runner().backfill(model.objects.filter(pk__in=given))
        again = runner().backfill(model.objects.filter(pk__in=given))

    assert planned(model) == set(given) - {None}
    assert (counted.candidates, counted.planned) == (5, 5)
    assert (batch.candidates, batch.planned, batch.state) == (5, 5, Batch.State.RUNNING)
    assert batch.planned_at is not None
    assert (again.existing, again.planned) == (5, 0)


def test_a_list_of_integers_is_one_parameter(set_constants):
    keys = rows_of(Document, 60)
    set_constants(listed, LONG=4, PART=100)
    runner = declare()
    numbers = []

    def count(execute, sql, params, many, context):
        numbers.append(len(params or ()))
        return execute(sql, params, many, context)

    with installed(runner), connection.execute_wrapper(count):
        runner().backfill(Document.objects.filter(pk__in=keys).exclude(title="7"))

    assert len(planned(Document)) == 59
    assert max(numbers) < 59


def test_a_list_without_rows_is_planned_at_once():
    runner = declare()

    with installed(runner):
        batch = runner().backfill(Document.objects.filter(pk__in=range(1, 9)))

    assert (batch.candidates, batch.state) == (0, Batch.State.FINISHED)


@pytest.mark.parametrize("read_by", READ_BY)
def test_another_process_goes_on_behind_the_part_that_is_planned(read_by):
    keys = rows_of(Document, 9)
    runner = declare(**READ_BY[read_by])

    with installed(runner):
        with crashed_at("backfill.window"):
            backfill_now(runner(), Scope(pks=tuple(keys[:7])))
        batch = Batch.objects.get()
        assert len(planned(Document)) < 7
        go_on(batch)

    batch.refresh_from_db()
    assert planned(Document) == set(keys[:7])
    assert (batch.candidates, batch.planned) == (7, 7)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="the others cast any text")
def test_a_row_that_the_database_refuses_fails_alone():
    keys = rows_of(Document, 7)
    Document.objects.filter(pk=keys[2]).update(title="refused")
    runner = declare()

    with installed(runner):
        rows = Document.objects.annotate(number=Cast("title", IntegerField()))
        batch = runner().backfill(rows.filter(pk__in=keys, number__gte=0))

    assert (batch.planned, batch.unprepared) == (6, 1)
    assert planned(Document) == set(keys)
