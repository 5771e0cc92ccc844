"""Outputs of runners in querysets, on every database and for every kind of key."""

import datetime as dt
import pickle
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from django.core.exceptions import FieldError
from django.db import connection
from django.db.models import (
    Avg,
    Case,
    Count,
    F,
    FloatField,
    IntegerField,
    Max,
    Min,
    Model,
    Q,
    QuerySet,
    Sum,
    Value,
    When,
)
from django.db.models.functions import Cast, Coalesce, Upper
from django.test.utils import CaptureQueriesContext

from autorun.declare.returns import Kind, kind_of, type_at
from autorun.models import Node, Run
from autorun.outputs import OutputsQuerySet, with_outputs
from autorun.runner import QuerySetRunner
from autorun.upkeep.folding import prune
from tests.engine import declare, installed, work_off
from tests.library.models import Country, Document, Photo, Report

pytestmark = pytest.mark.django_db

#: A model for each kind of primary key, with the field that its runner reads.
MODELS = {
    "integer": (Document, "title"),
    "uuid": (Photo, "caption"),
    "text": (Country, "name"),
}
WORDS = ("to", "hippopotami", "reindeers")
MEANS = {2: 0.5, 11: 2.75, 9: 2.25}


def measure(value: str) -> dict:
    return {
        "mean": len(value) / 4,
        "letters": len(value),
        "word": value,
        "is_long": len(value) > 5,
        "nothing": None,
        "on": dt.date(2031, 5, len(value)),
        "mixed": len(value) if len(value) > 5 else "few",
        "parts": {"a b": list(value[:2]), 'quo"te': 1, "back\\slash": 2, "100%": 3, "$": 4},
    }


class Measures(TypedDict):
    mean: float
    letters: int
    word: str


def typed(value: str) -> Measures:
    return {"mean": len(value) / 4, "letters": len(value), "word": value}


def count(value: str) -> int:
    return len(value)


def make(model: type[Model], field: str, word: str) -> Any:
    key = {"code": word[:8]} if model is Country else {}
    return model.objects.create(**key, **{field: word})


@pytest.fixture(params=MODELS)
def runner(request: pytest.FixtureRequest) -> Iterator[QuerySetRunner]:
    """A runner that has measured three rows, of four, by each kind of primary key."""
    model, field = MODELS[request.param]
    for word in WORDS:
        make(model, field, word)
    runner_class = declare(measure, DATA_MODEL=model, INPUT_FIELDS=(field,))
    with installed(runner_class):
        runner_class().run()
        work_off()
        make(model, field, "later")
        yield runner_class()


def rows_of(runner: QuerySetRunner, **options: Any) -> Any:
    return with_outputs(runner.get_model().objects.all(), size=type(runner), **options)


def letters(rows: Any) -> set[int]:
    return {row.size["letters"] for row in rows}


def test_each_row_has_the_outputs_of_its_success(runner: QuerySetRunner) -> None:
    field = runner.get_input_fields()[0]

    found = {getattr(row, field): row.size for row in rows_of(runner)}

    assert found.pop("later") is None
    assert {word: outputs["letters"] for word, outputs in found.items()} == {
        word: len(word) for word in WORDS
    }
    for row in runner.get_model().objects.all():
        assert runner.outputs_of(row) == rows_of(runner).get(pk=row.pk).size


CONDITIONS: list[tuple[dict[str, Any], set[int]]] = [
    ({"size__mean__gt": 2}, {11, 9}),
    ({"size__mean__gt": Decimal("2.25")}, {11}),
    ({"size__mean__lte": 2.25}, {2, 9}),
    ({"size__mean__range": (0.1, 2.3)}, {2, 9}),
    ({"size__letters": 9}, {9}),
    ({"size__letters__in": [9, 11, 12]}, {9, 11}),
    ({"size__word": "to"}, {2}),
    ({"size__word__in": ["to", "reindeers"]}, {2, 9}),
    ({"size__word__startswith": "re"}, {9}),
    ({"size__word__contains": "ind"}, {9}),
    ({"size__word__icontains": "IND"}, {9}),
    ({"size__word__iexact": "TO"}, {2}),
    ({"size__word__regex": "^h.*i$"}, {11}),
    ({"size__word__gte": "reindeers"}, {2, 9}),
    ({"size__is_long": True}, {11, 9}),
    ({"size__is_long": False}, {2}),
    ({"size__on__gte": dt.date(2031, 5, 9)}, {11, 9}),
    ({"size__on": "2031-05-02"}, {2}),
    ({"size__nothing": None}, {2, 11, 9}),
    ({"size__nothing__isnull": False}, {2, 11, 9}),
    ({"size__missing": None}, set()),
    ({"size__missing__isnull": True, "size__isnull": False}, {2, 11, 9}),
    ({"size__mixed__gt": 1}, {11, 9}),
    ({"size__mixed": "few"}, {2}),
    ({"size__mixed__in": ["few", 9]}, {2, 9}),
    ({"size__parts__a b__0": "t"}, {2}),
    ({"size__parts__a b": ["h", "i"]}, {11}),
    ({"size__parts__a b__in": [["h", "i"], ["t", "o"]]}, {2, 11}),
    ({'size__parts__quo"te': 1}, {2, 11, 9}),
    ({"size__parts__back\\slash__gte": 2}, {2, 11, 9}),
    ({"size__parts__100%": 3, "size__parts__$": 4}, {2, 11, 9}),
    ({"size__parts__has_key": "a b"}, {2, 11, 9}),
    ({"size__parts__has_key": "c"}, set()),
    ({"size__has_keys": ["mean", "word"]}, {2, 11, 9}),
]


def test_rows_are_filtered_by_what_came_out(runner: QuerySetRunner) -> None:
    rows = rows_of(runner)

    found = [letters(rows.filter(**condition)) for condition, _ in CONDITIONS]

    for (condition, expected), each in zip(CONDITIONS, found, strict=True):
        assert each == expected, condition


def test_a_document_is_found_whatever_the_order_of_its_keys(runner: QuerySetRunner) -> None:
    parts = {"$": 4, "100%": 3, "back\\slash": 2, 'quo"te': 1, "a b": ["h", "i"]}

    assert letters(rows_of(runner).filter(size__parts=parts)) == {11}


@pytest.mark.slow
def test_rows_are_sorted_by_numbers_and_by_words(runner: QuerySetRunner) -> None:
    rows = rows_of(runner).filter(size__isnull=False)

    def order(*by: Any) -> list[int]:
        return [row.size["letters"] for row in rows.order_by(*by)]

    assert order("size__mean") == order("size__letters") == [2, 9, 11]
    assert order("-size__letters") == order(F("size__letters").desc()) == [11, 9, 2]
    assert order("size__word") == [11, 9, 2]
    assert order("size__is_long", "size__on") == [2, 9, 11]


def test_outputs_are_aggregated(runner: QuerySetRunner) -> None:
    rows = rows_of(runner)
    calls = {
        "average": Avg("size__mean"),
        "total": Sum("size__letters"),
        "least": Min("size__mean"),
        "most": Max("size__letters"),
        "number": Count("size__letters"),
        "first": Min("size__word"),
    }
    expected = {
        "average": pytest.approx(22 / 12),
        "total": 22,
        "least": 0.5,
        "most": 11,
        "number": 3,
        "first": "hippopotami",
    }

    assert rows.aggregate(**calls) == expected
    assert rows.distinct().aggregate(**calls) == expected
    longest = rows.filter(size__isnull=False).order_by("-size__letters")[:2]
    assert longest.aggregate(Avg("size__mean")) == {"size__mean__avg": 2.5}
    groups = rows.values("size__is_long").annotate(mean=Avg("size__mean"))
    assert {(each["size__is_long"], each["mean"]) for each in groups} == {
        (None, None),
        (False, 0.5),
        (True, 2.5),
    }


def test_an_average_over_nothing_is_none(runner: QuerySetRunner) -> None:
    Run.objects.all().delete()

    assert rows_of(runner).aggregate(Avg("size__mean")) == {"size__mean__avg": None}


def test_values_are_those_that_came_out(runner: QuerySetRunner) -> None:
    rows = rows_of(runner).filter(size__letters=11)

    assert rows.values("size__mean", "size__parts__$").get() == {
        "size__mean": 2.75,
        "size__parts__$": 4,
    }
    assert rows.values_list("size__mean", "size__on", "size__is_long", "size__nothing").get() == (
        2.75,
        "2031-05-11",
        True,
        None,
    )
    assert rows.values_list("size__mixed", flat=True).get() == 11
    assert rows.values_list("size__mean", "size__mean").get() == (2.75, 2.75)
    assert rows.values(part=F("size__parts__a b__1")).get() == {"part": "i"}
    assert rows.values("size").get()["size"]["word"] == "hippopotami"


def test_outputs_are_computed_with(runner: QuerySetRunner) -> None:
    rows = rows_of(runner).filter(size__isnull=False)

    def values(expression: Any) -> set[Any]:
        return set(rows.annotate(found=expression).values_list("found", flat=True))

    assert values(F("size__mean") * 2) == {1, 5.5, 4.5}
    assert values(F("size__letters") - F("size__mean")) == {1.5, 8.25, 6.75}
    assert values(Cast("size__mean", FloatField())) == set(MEANS.values())
    assert values(Cast("size__letters", IntegerField())) == set(MEANS)
    assert values(Upper("size__word")) == {word.upper() for word in WORDS}
    assert values(Case(When(size__mean__gt=2, then=Value("big")), default=Value(""))) == {"big", ""}
    absent = with_outputs(runner.get_model().objects.all(), size=type(runner), stale=True)
    assert set(absent.values_list(Coalesce("size__mean", -1.0), flat=True)) == {
        -1,
        *MEANS.values(),
    }


def test_outputs_are_compared_with_each_other_and_with_columns(runner: QuerySetRunner) -> None:
    field = runner.get_input_fields()[0]

    assert letters(rows_of(runner).filter(size__letters__gt=F("size__mean") * 4 - 1)) == {2, 11, 9}
    assert letters(rows_of(runner).filter(size__word=F(field))) == {2, 11, 9}
    assert not rows_of(runner).filter(~Q(size__word=F(field)), size__isnull=False).exists()


def test_outputs_are_compared_with_several_expressions(runner: QuerySetRunner) -> None:
    field = runner.get_input_fields()[0]

    def found(**condition: Any) -> set[int]:
        return letters(rows_of(runner).filter(**condition))

    assert found(size__letters__range=(F("size__mean"), 9)) == {2, 9}
    assert found(size__letters__range=(9, F("size__mean") * 4)) == {9, 11}
    assert found(size__letters__in=[F("size__mean") * 4, 11]) == {2, 9, 11}
    assert found(size__mixed__range=(F("size__mean") * 4, 11)) == {9, 11}
    assert found(size__word__in=[F(field), "absent"]) == {2, 9, 11}
    assert found(size__word__in=[F("size__on"), F("size__word")]) == {2, 9, 11}
    with pytest.raises(FieldError, match="several types, some of them of other fields"):
        found(size__letters__in=[F("size__word"), 2])


def test_outputs_are_compared_with_the_values_of_an_iterator(runner: QuerySetRunner) -> None:
    def found(**condition: Any) -> set[int]:
        return letters(rows_of(runner).filter(**condition))

    assert found(size__letters__in=(number for number in (2, 9))) == {2, 9}
    assert found(size__letters__range=map(int, "39")) == {9}
    assert found(size__parts__in=iter([])) == set()
    assert found(size__mean__in={0.5: 1}.keys()) == {2}


def test_two_runners_are_compared_in_one_query(runner: QuerySetRunner) -> None:
    model, field = runner.get_model(), runner.get_input_fields()
    counting = declare(
        count, NAME="CountRunner", TITLE="Count", DATA_MODEL=model, INPUT_FIELDS=field
    )
    with installed(type(runner), counting):
        counting().run()
        work_off()
        rows = with_outputs(model.objects.all(), size=type(runner), number=counting)

        with CaptureQueriesContext(connection) as queries:
            found = {row.number: row.size and row.size["letters"] for row in rows}

        assert found == {2: 2, 9: 9, 11: 11, 5: None}
        assert len([each for each in queries if "outputs" in each["sql"]]) == 1
        same = rows.filter(number=F("size__letters")).order_by("-number")
        assert list(same.values_list("number", flat=True)) == [11, 9, 2]
        assert rows.aggregate(Sum("number")) == {"number__sum": 27}


def test_a_queryset_with_outputs_is_sliced_counted_combined_and_iterated(
    runner: QuerySetRunner,
) -> None:
    model = runner.get_model()
    rows = rows_of(runner)
    measured = rows.filter(size__isnull=False)

    assert rows.count() == rows.distinct().count() == 4
    assert letters(measured.order_by("size__mean")[1:]) == {9, 11}
    assert len(with_outputs(model.objects.order_by("pk")[:2], size=type(runner))) == 2
    short, long = measured.filter(size__is_long=False), measured.filter(size__is_long=True)
    assert letters(short.union(long)) == letters(short | long) == {2, 9, 11}
    assert letters(measured.iterator(chunk_size=2)) == {2, 9, 11}
    assert model.objects.filter(pk__in=long).count() == 2
    assert long.exists()
    assert letters(measured.only("pk")) == letters(measured.select_for_update()) == {2, 9, 11}
    assert letters(measured.annotate(number=Count("pk"))) == {2, 9, 11}
    field = runner.get_input_fields()[0]
    assert long.update(**{field: F("size__mean")}) == 2
    assert set(long.values_list(field, flat=True)) == {"2.75", "2.25"}


def test_a_success_is_read_until_another_takes_its_place(runner: QuerySetRunner) -> None:
    model = runner.get_model()
    row = rows_of(runner).get(size__letters=2)
    before = row.size

    runner.backfill(force=True)

    assert runner.outputs_of(row) is None
    assert runner.outputs_of(row, stale=True) == before
    assert not rows_of(runner).filter(size__isnull=False).exists()
    assert letters(rows_of(runner, stale=True).filter(size__letters__gt=5)) == {9, 11}
    Run.objects.pending().filter(is_current=True).update(status=Run.Status.FAILED)
    assert runner.outputs_of(row, stale=True) == before
    work_off()
    prune()
    assert runner.outputs_of(row, stale=True) == before
    model.objects.filter(pk=row.pk).delete()
    assert runner.outputs_of(row) is None


def test_the_current_success_goes_before_a_newer_one(runner: QuerySetRunner) -> None:
    row = rows_of(runner).get(size__letters=2)
    first = Run.objects.current().get(outputs__letters=2)
    Run.objects.filter(pk=first.pk).update(is_current=None)
    first.pk, first.outputs = None, {"letters": 3}
    first.save(force_insert=True)
    Run.objects.filter(outputs__letters=3).update(is_current=None)
    Run.objects.filter(outputs__letters=2).update(is_current=True)

    assert runner.outputs_of(row, stale=True)["letters"] == 2
    assert rows_of(runner, stale=True).get(pk=row.pk).size["letters"] == 2


def test_a_type_that_is_not_annotated_is_that_of_recorded_outputs(runner: QuerySetRunner) -> None:
    rows = rows_of(runner)

    def type_of(path: str) -> str:
        return type(rows.annotate(found=F(path)).query.annotations["found"].output_field).__name__

    assert type_of("size") == "JSONField"
    assert type_of("size__letters") == type_of("size__mean") == "FloatField"
    assert type_of("size__word") == type_of("size__on") == "TextField"
    assert type_of("size__is_long") == "BooleanField"
    assert (
        type_of("size__mixed") == type_of("size__parts") == type_of("size__nothing") == "JSONField"
    )


class TestTyped:
    @pytest.fixture
    def runner(self) -> Iterator[QuerySetRunner]:
        for word in WORDS:
            Document.objects.create(title=word)
        runner_class = declare(typed, TITLE="Typed")
        with installed(runner_class):
            runner_class().run()
            work_off()
            yield runner_class()

    def test_a_declared_type_is_the_type_in_sql(self, runner: QuerySetRunner) -> None:
        rows = rows_of(runner)

        found = rows.values_list("size__letters", "size__mean", "size__word").order_by(
            "-size__letters"
        )

        assert found[0] == (11, 2.75, "hippopotami")
        assert type(found[0][0]) is int
        assert letters(rows.filter(size__letters__gte=8.5)) == {9, 11}
        assert rows.aggregate(total=Sum("size__letters")) == {"total": 22}

    def test_no_query_asks_for_a_declared_type(self, runner: QuerySetRunner) -> None:
        with CaptureQueriesContext(connection) as queries:
            list(rows_of(runner).order_by("size__mean").values_list("size__word"))

        assert len([each for each in queries if "outputs" in each["sql"]]) == 1

    def test_a_key_that_is_not_declared_is_named(self, runner: QuerySetRunner) -> None:
        message = "Outputs of tests.EchoRunner have no key 'maen'. Did you mean 'mean'?"
        with pytest.raises(FieldError, match=message.replace("?", r"\?")):
            rows_of(runner).filter(size__maen__gt=2)
        with pytest.raises(FieldError, match="Unsupported lookup 'gtt'"):
            rows_of(runner).filter(size__mean__gtt=2)


class Prices(TypedDict):
    price: Decimal
    number: int


def priced(value: str) -> Prices:
    price, number = value.split()
    return {"price": Decimal(price), "number": int(number)}


class TestExact:
    """Declared Decimals and large integers, whose texts sort otherwise than they do."""

    PRICES = ("9.50", "10.25", "-0.1", "1E+3", "12345678901234567.5")
    LARGE = (2**63, 2**64 + 2**20, -(2**70), 7, 10**30)

    @pytest.fixture
    def runner(self) -> Iterator[QuerySetRunner]:
        for price, number in zip(self.PRICES, self.LARGE, strict=True):
            Document.objects.create(title=f"{price} {number}")
        runner_class = declare(priced, TITLE="Priced")
        with installed(runner_class):
            runner_class().run()
            work_off()
            yield runner_class()

    def test_a_decimal_is_a_number(self, runner: QuerySetRunner) -> None:
        rows = rows_of(runner).filter(size__price__lt=10**6)

        def prices(**condition: Any) -> list[Decimal]:
            found = rows.filter(**condition).order_by("size__price")
            return list(found.values_list("size__price", flat=True))

        assert prices() == [Decimal(each) for each in ("-0.1", "9.5", "10.25", "1000")]
        assert prices(size__price__gt=9.5) == prices(size__price__gt=Decimal("9.50"))
        assert prices(size__price__gt=9) == prices(size__price__range=(9, Decimal(10**4)))
        assert prices(size__price__in=[Decimal("9.5"), 1000]) == [Decimal("9.5"), 1000]
        assert prices(size__price=-0.1) == prices(size__price__lt=0) == [Decimal("-0.1")]
        assert prices(size__price="9.50") == prices(size__price__startswith="9") == [Decimal("9.5")]
        assert rows.aggregate(Avg("size__price"), Max("size__price"), Sum("size__price")) == {
            "size__price__avg": pytest.approx(Decimal("254.9125")),
            "size__price__max": 1000,
            "size__price__sum": Decimal("1019.65"),
        }
        twice = rows.annotate(twice=F("size__price") * 2).order_by("-twice")
        assert twice[0].twice == 2000
        assert type(twice[0].twice) is Decimal

    def test_a_decimal_is_exact_where_the_database_has_them(self, runner: QuerySetRunner) -> None:
        large = Decimal("12345678901234567.5")
        row = rows_of(runner).annotate(price=F("size__price")).get(size__price__gt=10**6)

        assert row.size["price"] == str(large)
        assert abs(row.price - large) <= (100 if connection.vendor == "sqlite" else 0)

    def test_a_value_that_is_no_number_is_null(self, runner: QuerySetRunner) -> None:
        for wrong in ("NaN", "1E+5000", "-", "1.1.1", "", True, None, [1]):
            Run.objects.filter(outputs__price="9.50").update(outputs={"price": wrong})
            assert rows_of(runner).aggregate(number=Count("size__price"))["number"] == 4, wrong
            Run.objects.exclude(outputs__has_key="number").update(outputs={"price": "9.50"})

    def test_integers_have_any_size(self, runner: QuerySetRunner) -> None:
        rows = rows_of(runner)
        exactly = {round(each) for each in map(float, self.LARGE)}
        if connection.vendor != "sqlite":
            exactly = set(self.LARGE)

        assert set(rows.values_list("size__number", flat=True)) == exactly
        assert rows.get(size__number=2**63).size["number"] == 2**63
        assert rows.get(size__number__lt=-(2**63)).size["number"] == -(2**70)
        assert rows.filter(size__number__in=[7, 10**30]).count() == 2
        assert rows.filter(size__number__gte=2**63).count() == 3
        largest = rows.order_by("-size__number").values_list("size__number", flat=True)[0]
        assert largest == pytest.approx(10**30)
        assert type(largest) is int


def test_a_decimal_that_is_not_declared_is_found_by_a_decimal(runner: QuerySetRunner) -> None:
    for run in Run.objects.succeeded():
        price = str(Decimal(run.outputs["letters"]) / 10)
        Run.objects.filter(pk=run.pk).update(outputs={**run.outputs, "price": price})

    assert letters(rows_of(runner).filter(size__price__gt=Decimal("0.9"))) == {11}
    assert letters(rows_of(runner).filter(size__price="0.9")) == {9}


def test_a_runner_of_another_model_is_named(runner: QuerySetRunner) -> None:
    other = Document if runner.get_model() is not Document else Photo
    model = runner.get_model()._meta.label

    with pytest.raises(TypeError, match=f"has outputs of {model}, and the queryset is of"):
        with_outputs(other.objects.all(), size=type(runner))
    with pytest.raises(TypeError, match=f"has outputs of {model}, not of {other._meta.label}"):
        runner.outputs_of(other())
    instance: Any = runner
    with pytest.raises(TypeError, match="takes the class or label of a runner, not <"):
        with_outputs(runner.get_model().objects.all(), size=instance)
    with pytest.raises(TypeError, match="needs a runner"):
        with_outputs(other.objects.all())
    with pytest.raises(ValueError, match="conflicts with a field"):
        with_outputs(
            runner.get_model().objects,
            pk=type(runner),
            **{runner.get_input_fields()[0]: type(runner)},
        )


def test_a_child_of_the_model_has_the_outputs_of_its_parent() -> None:
    report = Report.objects.create(title="to")
    runner_class = declare(measure, TITLE="Of parents")
    with installed(runner_class):
        runner_class().run()
        work_off()

        found = with_outputs(Report.objects.all(), size=runner_class.get_label())

        assert found.get(size__letters=2) == report
        assert runner_class().outputs_of(report)["word"] == "to"


def test_a_queryset_class_gets_the_method_and_keeps_its_own() -> None:
    class Titled(QuerySet):
        def titled(self, title: str) -> Any:
            return self.filter(title=title)

    Document.objects.create(title="to")
    runner_class = declare(measure, TITLE="Of classes")
    with installed(runner_class):
        runner_class().run()
        work_off()

        own = with_outputs(Titled(Document), size=runner_class).titled("to")
        mixed = OutputsQuerySet(Document).with_outputs(size=runner_class)

        assert isinstance(own, Titled)
        assert list(own.values_list("size__letters", flat=True)) == [2]
        assert list(mixed.values_list("size__letters", flat=True)) == [2]


def test_querysets_with_outputs_can_be_pickled() -> None:
    from sample_app.models import Scan
    from sample_app.runners import ScanPreprocessingRunner

    rows = with_outputs(Scan.objects.filter(size__gt=1), found=ScanPreprocessingRunner)

    assert list(pickle.loads(pickle.dumps(rows.filter(found__mean__gt=2)))) == []


def test_a_queryset_is_made_without_a_query() -> None:
    from sample_app.models import Scan
    from sample_app.runners import ScanPreprocessingRunner

    with CaptureQueriesContext(connection) as queries:
        with_outputs(Scan.objects.all(), found=ScanPreprocessingRunner).filter(
            found__mean__gt=2
        ).order_by("found__mean").values("found__mean")

    assert not queries
    assert not Node.objects.exists()


@dataclass
class Point:
    x: float
    label: str | None = None


class Several(TypedDict):
    points: list[Point]
    by_name: dict[str, int]
    size: tuple[int, float]
    mode: Literal["a", "b"]
    extra: NotRequired[uuid.UUID]


@pytest.mark.once
@pytest.mark.parametrize(
    ("annotation", "path", "kind"),
    [
        (int, (), Kind.INTEGER),
        (bool, (), Kind.BOOLEAN),
        (int | float | None, (), Kind.NUMBER),
        (dict, (), Kind.JSON),
        (dict[str, float], ("any",), Kind.NUMBER),
        (dict, ("any",), None),
        (Any, (), None),
        (Several, ("points",), Kind.JSON),
        (Several, ("points", "0", "x"), Kind.NUMBER),
        (Several, ("points", "0", "label"), Kind.TEXT),
        (Several, ("by_name", "any"), Kind.INTEGER),
        (Several, ("size", "1"), Kind.NUMBER),
        (Several, ("size", "2"), None),
        (Several, ("mode",), Kind.TEXT),
        (Several, ("extra",), Kind.TEXT),
        (Decimal | int, (), Kind.DECIMAL),
        (int | str, (), None),
    ],
)
def test_an_annotation_tells_the_type_of_each_output(
    annotation: Any, path: tuple[str, ...], kind: Kind | None
) -> None:
    assert kind_of(type_at(annotation, path)) is kind
