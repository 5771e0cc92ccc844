"""Filters that compare rows with each other choose the same ones, however a row is looked at."""

import pytest
from django.db import connection
from django.db.models import Count, Exists, F, Max, Min, OuterRef, Subquery, Window
from django.db.models.functions import RowNumber

from autorun.planning.named import plan_keys
from tests.engine import current_runs, declare, installed, work_off
from tests.library.models import Document, DraftDocument, Tag

pytestmark = pytest.mark.django_db


def by_window(rows):
    number = Window(RowNumber(), partition_by=F("state"), order_by=F("pk").asc())
    return rows.annotate(rn=number).filter(rn=1)


def by_slice_of_given(rows):
    if connection.vendor == "mysql":
        return by_window(rows)  # it refuses LIMIT in a subquery
    return rows.filter(pk__in=rows.order_by("pk").values("pk")[:1])


def by_subquery(rows):
    first = rows.filter(state=OuterRef("state")).order_by("pk").values("pk")
    return rows.filter(pk=Subquery(first[:1]))


def by_absence(rows):
    return rows.filter(~Exists(rows.filter(state=OuterRef("state"), pk__lt=OuterRef("pk"))))


def by_distinct_on(rows):
    if connection.vendor != "postgresql":
        return by_window(rows)
    return rows.order_by("state", "pk").distinct("state")


def by_aggregate(rows):
    return rows.filter(pk=rows.aggregate(least=Min("pk"))["least"])


def by_first(rows):
    return rows.filter(pk__lt=rows.order_by("pk").first().pk + 1)  # of no rows, first() is None


def by_earliest_value(rows):
    return rows.filter(pk=rows.values_list("pk", flat=True).order_by("pk")[0])


def by_list_of_groups(rows):
    groups = rows.order_by().values("state").annotate(least=Min("pk"))
    return rows.filter(pk__in=[group["least"] for group in groups])


def by_list_of_firsts(rows):
    return rows.filter(pk__in=[row.pk for row in by_window(rows)])


def by_union(rows):
    return by_absence(rows).union(by_absence(rows).filter(title="none"))


CHOICES = [
    by_window,
    by_slice_of_given,
    by_subquery,
    by_absence,
    by_distinct_on,
    by_union,
    by_aggregate,
    by_first,
    by_earliest_value,
    by_list_of_groups,
    by_list_of_firsts,
]


def filtering(choose, **options):
    def filter_queryset(self, queryset, log_level=20):
        return choose(queryset)

    return declare(filter_queryset=filter_queryset, **options)


BY_PYTHON = {"get_instance_representation": lambda self, row: row.title, "INPUT_FIELDS": None}


@pytest.mark.faults(47)
@pytest.mark.parametrize("options", [{}, BY_PYTHON], ids=["fields", "representation"])
@pytest.mark.parametrize("choose", CHOICES)
def test_only_the_first_of_a_group_ever_runs(choose, options):
    first, second, third = (Document.objects.create(title=str(n), state="a") for n in range(3))
    with installed(runner_class := filtering(choose, **options)):
        runner = runner_class()
        plan_keys(runner, [second.pk, third.pk])
        assert current_runs() == {}
        assert runner.explain(second).code == "filtered_out"
        assert [row.pk for row in runner.pending()] == [first.pk]
        assert runner.run(Document.objects.filter(pk=second.pk)).planned == 0
        assert runner.backfill().planned == 1
        work_off()
        assert runner.explain(first).code == "succeeded"
        assert runner.pending().count() == 0
        assert runner.run().planned == 0
        Document.objects.filter(pk=second.pk).update(title="new")
        plan_keys(runner, [second.pk])
        assert set(current_runs()) == {first.pk}


@pytest.mark.faults(47)
def test_a_base_queryset_may_compare_rows():
    first, second = (Document.objects.create(title=str(n), state="a") for n in range(2))
    base = {"get_base_queryset": lambda self: by_window(Document.objects.all())}
    with installed(runner_class := declare(**base)):
        plan_keys(runner_class(), [second.pk])
        assert [row.pk for row in runner_class().pending()] == [first.pk]
        assert runner_class().run().planned == 1
        work_off()
        assert runner_class().pending().count() == 0


@pytest.mark.faults(47)
@pytest.mark.parametrize("model", [Document, DraftDocument])
def test_a_filter_may_compare_what_a_base_queryset_annotates(model):
    first, second, third = (Document.objects.create(title=str(n), state="a") for n in range(3))
    number = Window(RowNumber(), partition_by=F("state"), order_by=F("pk").asc())
    base = model.objects.exclude(pk=first.pk).annotate(rn=number)
    options = {"get_base_queryset": lambda self: base.all()}
    with installed(runner_class := filtering(lambda rows: rows.filter(rn=1), **options)):
        plan_keys(runner_class(), [third.pk])
        assert [row.pk for row in runner_class().pending()] == [second.pk]
        assert runner_class().run().planned == 1
        work_off()
        assert runner_class().pending().count() == 0


@pytest.mark.faults(47)
def test_a_named_filter_may_compare_rows():
    first, _ = (Document.objects.create(title=str(n), state="a") for n in range(2))
    with installed(runner_class := declare(FILTERS={"first": by_window})):
        assert runner_class().backfill(filter="first").planned == 1
        work_off()
        assert set(current_runs()) == {first.pk}


@pytest.mark.faults(47)
@pytest.mark.parametrize(
    "choose",
    [
        lambda rows: rows.annotate(n=Count("tags")).filter(n__gt=1),
        lambda rows: rows.filter(tags__name="a").distinct(),
        lambda rows: rows.annotate(last=Max("tags__name")).filter(last="b"),
        lambda rows: rows.exclude(tags=None),
    ],
)
def test_related_rows_choose_each_row_alone(choose):
    tagged, bare = (Document.objects.create(title=str(n)) for n in range(2))
    tagged.tags.set(Tag.objects.create(name=name) for name in "ab")
    with installed(runner_class := filtering(choose)):
        plan_keys(runner_class(), [tagged.pk, bare.pk])
        work_off()
        assert set(current_runs()) == {tagged.pk}
        assert runner_class().pending().count() == 0


def of_the_manager(rows):
    return Document.objects.filter(state="a")


def of_either_side(rows):
    return Document.objects.filter(state="a") & rows


def of_python(rows):
    return Document.objects.filter(pk__in=[row.pk for row in rows if row.state == "a"])


def of_more(rows):
    return rows | Document.objects.filter(state="a")


@pytest.mark.parametrize("options", [{}, BY_PYTHON], ids=["fields", "representation"])
@pytest.mark.parametrize("choose", [of_the_manager, of_either_side, of_python])
def test_a_filter_that_starts_from_the_manager_keeps_only_rows_that_it_is_given(choose, options):
    first, second = (Document.objects.create(title=str(n), state="a") for n in range(2))
    other = Document.objects.create(title="other", state="b")
    with installed(runner_class := filtering(choose, **options)):
        runner = runner_class()
        plan_keys(runner, [second.pk, other.pk])
        assert set(current_runs()) == {second.pk}
        work_off()
        assert runner.explain(second).code == "succeeded"
        assert runner.explain(other).code == "filtered_out"
        assert [row.pk for row in runner.pending()] == [first.pk]
        assert runner.run(Document.objects.filter(pk=other.pk)).planned == 0
        assert runner.run().planned == 1
        work_off()
        assert runner.pending().count() == 0


@pytest.mark.parametrize("choose", [of_more, by_union])
def test_a_filter_that_adds_rows_adds_none(choose):
    first, _ = (Document.objects.create(title=str(n), state="a") for n in range(2))
    with installed(runner_class := filtering(choose)):
        plan_keys(runner_class(), [first.pk])
        assert set(current_runs()) == {first.pk}


def test_a_count_and_going_through_all_rows_compare_none():
    asked = []

    def choose(rows):
        asked.append(rows.count())
        asked.append(rows.values("state").annotate(n=Count("pk")).count())
        return rows.filter(pk__in=[row.pk for row in rows])

    documents = [Document.objects.create(title=str(n)) for n in range(2)]
    with installed(runner_class := filtering(choose)):
        plan_keys(runner_class(), [documents[0].pk])

    assert asked == [1, 1]
