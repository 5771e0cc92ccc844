"""Each system check by its id. None of them may query the database.

So no test here has one, but to count queries.
"""

import datetime as dt
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from celery.schedules import crontab
from django.apps import apps
from django.core.checks import CheckMessage, run_checks
from django.db import connections, models, transaction
from django.db.models import Q
from django.test import override_settings
from django.test.utils import isolate_apps

from autorun.analysis import Analysis, temporarily_registered
from autorun.conf import DEFAULTS
from autorun.declare import registry
from autorun.declare.base import declared
from autorun.exceptions import ImproperRunner
from autorun.limits import Limit
from autorun.observe.checks import installation, names, values
from autorun.runner import Candidate, Each, Members, QuerySetRunner
from autorun.testing import registered
from autorun.triggers import installing
from tests.celery_settings import configured
from tests.library.models import Country, Document, DraftDocument, Photo, Report, Stamped, Tag


def measure(text: Any, *, depth: int = 1, unit: str = "mm") -> dict[str, Any]:
    return {}


MEASURE = Analysis("Measuring", "1.0", measure)


@pytest.fixture(autouse=True)
def _no_other_runners() -> Iterator[None]:
    with (
        registry.registered(alone=True),
        patch.dict(declared, clear=True),
        temporarily_registered(MEASURE),
    ):
        yield


def declare(
    name: str = "MeasuringRunner", bases: Any = (QuerySetRunner,), **attributes: Any
) -> Any:
    """A runner class without anything to complain of but what `attributes` bring in."""
    defaults = {
        "DATA_MODEL": Document,
        "ANALYSIS": "Measuring",
        "ANALYSIS_VERSION": "1.0",
        "INPUT_KEY": "text",
        "__module__": "tests.library.runners",
    }
    return type(name, bases, defaults | attributes)


def complaints(*runners: Any) -> list[CheckMessage]:
    with registry.registered(*runners):
        return run_checks(tags=["autorun"])


def ids(*runners: Any) -> list[str]:
    return [str(each.id).removeprefix("autorun.") for each in complaints(*runners)]


def only(number: str, *runners: Any) -> CheckMessage:
    """The one complaint there is, which has that id and a hint."""
    found = complaints(*runners)
    assert [each.id for each in found] == [f"autorun.{number}"], found
    assert found[0].hint
    return found[0]


def test_a_runner_as_it_should_be_has_no_complaints():
    runner = declare(
        ANALYSIS_CONFIGURATION={"depth": 2},
        INPUT_FIELDS=("title", "body", "pk"),
        BASE_QUERY=Q(title__startswith="a"),
        FILTERS={"empty": Q(body=""), "late": lambda rows: rows.filter(pk__gt=3)},
        SCHEDULE=crontab(minute="5"),
        MAX_ATTEMPTS=1,
        RETRY_BACKOFF=0,
        BATCH_SIZE=10,
        TIMEOUT=None,
        QUEUE="slow",
        PRIORITY=0,
        ON_SAVE=False,
        _OWN_CONSTANT=3,
    )

    assert complaints(runner) == []


def test_runners_of_an_app_are_checked_alone():
    from django.apps import apps

    with registry.registered(declare(MAX_ATTEMPTS=0)):
        elsewhere = run_checks(app_configs=[apps.get_app_config("auth")], tags=["autorun"])
        here = run_checks(app_configs=[apps.get_app_config("library")], tags=["autorun"])

    assert ([each.id for each in elsewhere], [each.id for each in here]) == ([], ["autorun.E014"])


# Runners


def test_e001_an_analysis_without_a_model():
    class Forgetful(QuerySetRunner):
        ANALYSIS = "Measuring"

    assert "Set DATA_MODEL in" in only("E001").hint


def test_e001_is_not_for_bases():
    class Base(QuerySetRunner):
        ANALYSIS = "Measuring"

    assert ids(declare(bases=(Base,))) == []


def test_what_a_hook_raises_reaches_no_terminal_as_it_is():
    def create_configuration(self):
        raise KeyError("\x1b]52;c;ZXZpbA==\x07 postgres://ada:secret@db/lab")

    told = [each.msg for each in complaints(declare(create_configuration=create_configuration))]

    assert any("raises KeyError" in each for each in told)
    assert not any("\x1b" in each or "\x07" in each or "secret" in each for each in told)


@pytest.mark.parametrize("model", ["library.Document", 3, Stamped])
def test_e002_no_concrete_model(model):
    assert "DATA_MODEL is" in only("E002", declare(DATA_MODEL=model)).msg


@isolate_apps("tests.library")
@override_settings(LIBRARY_SHELF="library.Document")
def test_e002_a_swapped_model():
    class Shelf(models.Model):
        class Meta:
            app_label = "library"
            swappable = "LIBRARY_SHELF"

    assert "is swapped for library.Document" in only("E002", declare(DATA_MODEL=Shelf)).msg


@isolate_apps("tests.library")
def test_e002_is_not_for_unmanaged_models():
    class View(models.Model):
        class Meta:
            app_label = "library"
            managed = False

    assert ids(declare(DATA_MODEL=View)) == []


@pytest.mark.parametrize("model", [DraftDocument, Report, Photo, Country])
def test_e002_is_not_for_proxies_children_and_keys_of_other_kinds(model):
    assert ids(declare(DATA_MODEL=model)) == []


@isolate_apps("tests.library")
def test_e003_a_composite_primary_key():
    class Page(models.Model):
        pk = models.CompositePrimaryKey("book", "number")
        book = models.IntegerField()
        number = models.IntegerField()

        class Meta:
            app_label = "library"

    runner = declare(DATA_MODEL=Page, ON_WRITE=True, INPUT_FIELDS=("number",))

    assert "UniqueConstraint" in only("E003", runner).hint
    with registered(runner):
        assert installing.wanted() == []
        with pytest.raises(ImproperRunner, match=r"library\.Page, whose primary key has several"):
            runner().pending()


@isolate_apps("tests.library")
def test_e032_members_of_a_composite_primary_key():
    class Book(models.Model):
        class Meta:
            app_label = "library"

    class Page(models.Model):
        pk = models.CompositePrimaryKey("book", "number")
        book = models.ForeignKey(Book, models.CASCADE, related_name="pages")
        number = models.IntegerField()

        class Meta:
            app_label = "library"

    hint = only("E032", declare(DATA_MODEL=Book, INPUT_FIELDS=(Members("pages"),))).hint
    assert "Name them instead: 'book', 'number'." in hint


@pytest.mark.parametrize(
    ("key", "is_long"),
    [
        (models.CharField(primary_key=True, max_length=256), True),
        (models.URLField(primary_key=True, max_length=500), True),
        (models.CharField(primary_key=True), True),
        (models.TextField(primary_key=True), True),
        (models.TextField(primary_key=True, max_length=40), True),
        (models.CharField(primary_key=True, max_length=255), False),
        (models.SlugField(primary_key=True), False),
    ],
)
@isolate_apps("tests.library")
def test_e022_a_primary_key_that_may_be_longer_than_what_is_kept_of_it(key, is_long):
    class Path(models.Model):
        name = key

        class Meta:
            app_label = "library"

    class Child(Path):
        class Meta:
            app_label = "library"

    for model in (Path, Child):
        runner = declare(DATA_MODEL=model)
        if is_long:
            assert "SILENCED_SYSTEM_CHECKS" in only("E022", runner).hint
        else:
            assert ids(runner) == []


class Typed:
    """As the keys of django-hashid-field."""

    def from_db_value(self, value, expression, connection):
        return value


class TypedAutoField(Typed, models.AutoField):
    pass


class TypedCharField(Typed, models.CharField):
    pass


class Slug(models.SlugField):
    """A field of the project's own that changes nothing."""


@pytest.mark.parametrize(
    ("key", "leads_back"),
    [
        (models.AutoField(primary_key=True), True),
        (models.PositiveSmallIntegerField(primary_key=True), True),
        (models.UUIDField(primary_key=True), True),
        (models.EmailField(primary_key=True), True),
        (Slug(primary_key=True), True),
        (TypedAutoField(primary_key=True), False),
        (TypedCharField(primary_key=True, max_length=20), False),
        (models.GenericIPAddressField(primary_key=True), False),
        (models.DateTimeField(primary_key=True), False),
        (models.FloatField(primary_key=True), False),
        (models.DecimalField(primary_key=True, max_digits=9, decimal_places=2), False),
        (models.FileField(primary_key=True, max_length=300), False),
    ],
)
@isolate_apps("tests.library")
def test_e030_a_primary_key_that_does_not_lead_back_to_its_row(key, leads_back):
    class Device(models.Model):
        name = key

        class Meta:
            app_label = "library"

    class Child(Device):
        class Meta:
            app_label = "library"

    class Note(models.Model):
        device = models.OneToOneField(Device, models.CASCADE, primary_key=True)

        class Meta:
            app_label = "library"

    for model in (Device, Child, Note):
        runner = declare(DATA_MODEL=model)
        if leads_back:
            assert ids(runner) == []
        else:
            assert "integer, UUID or text key" in only("E030", runner).hint


@isolate_apps("tests.library")
def test_w004_a_primary_key_that_may_be_too_great():
    class Counter(models.Model):
        number = models.PositiveBigIntegerField(primary_key=True)

        class Meta:
            app_label = "library"

    runner = declare(DATA_MODEL=Counter)
    if connections["default"].vendor == "mysql":
        assert "BigAutoField" in only("W004", runner).hint
    else:
        assert ids(runner) == []


@pytest.mark.parametrize("analysis", [None, "", 3, measure])
def test_e004_no_analysis(analysis):
    assert "Registered: " in only("E004", declare(ANALYSIS=analysis)).hint


@pytest.mark.parametrize("version", [None, 1.0, ""])
def test_e005_no_version(version):
    assert "'1.0'" in only("E005", declare(ANALYSIS_VERSION=version)).hint


def test_e005_is_not_for_a_function_that_knows_its_version():
    assert ids(declare(ANALYSIS=MEASURE, ANALYSIS_VERSION=None)) == []


@pytest.mark.parametrize(
    "options",
    [
        {"ANALYSIS": "Meassuring"},
        {"ANALYSIS_VERSION": "2.0"},
        {"ANALYSIS": MEASURE, "ANALYSIS_VERSION": "1.1"},
    ],
)
def test_e006_an_analysis_that_is_not_registered(options):
    assert "@analysis(" in only("E006", declare(**options)).hint


def test_e006_suggests_what_was_meant():
    assert "Did you mean 'Measuring'?" in only("E006", declare(ANALYSIS="Meassuring")).msg


@pytest.mark.parametrize("key", [None, 3, ""])
def test_e007_no_input_key(key):
    assert "one of 'text', 'depth', 'unit'" in only("E007", declare(INPUT_KEY=key)).hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ANALYSIS_CONFIGURATION": {"dept": 2}}, "no argument 'dept'"),
        ({"ANALYSIS_CONFIGURATION": {"depth": "deep"}}, "depth"),
        ({"INPUT_KEY": "txt"}, "no argument 'txt'"),
        ({"INPUT_KEY": "depth"}, "requires the argument 'text'"),
    ],
)
def test_e008_a_configuration_that_does_not_fit(options, message):
    found = complaints(declare(**options))

    assert {each.id for each in found} == {"autorun.E008"}
    assert message in " ".join(each.msg for each in found)
    assert all(each.hint for each in found)


def test_a_misspelled_input_key_is_one_problem():
    found = only("E008", declare("First"), declare("Second", INPUT_KEY="document"))

    assert "no argument 'document' to receive the input" in found.msg
    assert found.hint == "Did you mean 'text'?"


@pytest.mark.parametrize("configuration", [{"unit": object()}, {"unit": float("nan")}, "deep", 3])
def test_e009_a_configuration_that_json_cannot_hold(configuration):
    assert (
        "create_configuration()" in only("E009", declare(ANALYSIS_CONFIGURATION=configuration)).hint
    )


def test_e010_create_configuration_raises():
    def create_configuration(self):
        raise KeyError("SCANNER")

    found = only("E010", declare(create_configuration=create_configuration))
    assert "KeyError: 'SCANNER'" in found.msg


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("get_base_queryset", lambda self: None),
        ("get_base_queryset", lambda self: Country.objects.all()),
        ("get_base_queryset", lambda self: 1 / 0),
        ("filter_queryset", lambda self, queryset, log_level=20: 1 / 0),
        ("filter_queryset", lambda self, queryset, log_level=20: None),
        ("filter_queryset", lambda self, queryset, log_level=20: [queryset]),
        ("filter_queryset", lambda self, queryset, log_level=20: Document.objects),
        ("filter_queryset", lambda self, queryset, log_level=20: Country.objects.all()),
        ("filter_queryset", lambda self, queryset, log_level=20: queryset.filter(titel="a")),
        ("filter_queryset", lambda self, queryset, log_level=20: queryset[:5]),
        ("get_timeout", lambda self: "600"),
        ("get_schedule", lambda self: "0 3 * * *"),
        ("get_retry_backoff", lambda self, attempt: 1 / 0),
    ],
)
def test_e011_a_hook_that_raises_or_gives_the_wrong_thing(name, hook):
    assert f"{name}()" in only("E011", declare(**{name: hook})).msg


def counting(rows, then):
    """A filter that says how many `rows` it lets through, and gives what `then` makes of them."""

    def filter_queryset(self, queryset, log_level=logging.INFO):
        self.log_filter_start(log_level)
        self.log_filter_end(rows(queryset), log_level)
        return then(queryset)

    return filter_queryset


@pytest.mark.parametrize(
    "then", [lambda queryset: None, lambda queryset: queryset[:5], lambda queryset: []]
)
def test_e011_a_filter_that_counts_and_gives_the_wrong_thing(then):
    hook = counting(lambda queryset: queryset.filter(title="a").count(), then)

    assert "filter_queryset() returns" in only("E011", declare(filter_queryset=hook)).msg


def swallowing(self, queryset, log_level=logging.INFO):
    try:
        shelf = Country.objects.get(pk="x")
    except Exception:  # noqa: BLE001
        shelf = None
    return shelf and queryset


def in_a_transaction(self, queryset, log_level=logging.INFO):
    with transaction.atomic():
        return queryset.filter(pk__gt=Country.objects.count())


@pytest.mark.parametrize(
    "hook",
    [
        counting(lambda queryset: queryset.count(), lambda queryset: queryset),
        counting(lambda queryset: len(queryset), lambda queryset: queryset.distinct()),
        counting(lambda queryset: queryset.latest("pk").pk, lambda queryset: queryset),
        counting(lambda queryset: Country.objects.count(), lambda queryset: queryset),
        swallowing,
        in_a_transaction,
    ],
)
def test_e011_is_not_for_filters_that_query(hook):
    assert ids(declare(filter_queryset=hook)) == []


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        (
            "get_base_queryset",
            lambda self: Document.objects.filter(pk__in=list(Country.objects.all())),
        ),
        ("get_timeout", lambda self: Country.objects.count()),
    ],
)
def test_e011_is_not_for_other_hooks_that_query(name, hook):
    assert ids(declare(**{name: hook})) == []


@pytest.mark.parametrize("model", [Document, DraftDocument, Report])
def test_e011_is_not_for_filters_of_sliced_or_combined_rows(model):
    def get_base_queryset(self):
        return model.objects.order_by("pk")[:100]

    def filter_queryset(self, queryset, log_level=logging.INFO):
        return queryset.filter(title="a") | queryset.filter(title="b")

    runner = declare(
        DATA_MODEL=model, get_base_queryset=get_base_queryset, filter_queryset=filter_queryset
    )
    assert ids(runner) == []


@pytest.mark.django_db
def test_hooks_that_are_looked_at_query_nothing(django_assert_num_queries):
    hook = counting(lambda queryset: queryset.count(), lambda queryset: queryset)

    with django_assert_num_queries(0):
        assert ids(declare(filter_queryset=hook)) == []

    assert Document.objects.count() == 0


def test_a_filter_says_nothing_when_it_is_looked_at(caplog, capsys):
    hook = counting(lambda queryset: 0, lambda queryset: queryset)

    with caplog.at_level(logging.DEBUG):
        ids(declare(filter_queryset=hook))

    assert (caplog.text, capsys.readouterr().out) == ("", "")


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("filter_queryset", lambda self, queryset: queryset),
        ("get_instance_representation", lambda self: "x"),
        ("log_filter_end", lambda self, n_candidates: None),
    ],
)
def test_e012_a_hook_that_cannot_be_called(name, hook):
    assert f"def {name}(self" in only("E012", declare(**{name: hook})).hint


def test_e012_an_async_hook():
    async def get_instance_representation(self, instance):
        return "x"

    runner = declare(get_instance_representation=get_instance_representation)
    assert "is async" in only("E012", runner).msg


def test_e012_is_not_for_hooks_with_other_names_of_arguments():
    def filter_queryset(self, rows, log_level=logging.INFO):
        return rows

    assert ids(declare(filter_queryset=filter_queryset)) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FILTER_QUERYSET_STRAT", "FILTER_QUERYSET_START"),
        ("MAX_ATTEMPT", "MAX_ATTEMPTS"),
        ("INPUTFIELDS", "INPUT_FIELDS"),
    ],
)
def test_e013_a_misspelt_option(name, meant):
    found = only("E013", declare(**{name: "x"}))

    assert f"Did you mean {meant}?" in found.msg
    assert found.obj == "tests.library.runners.MeasuringRunner"


def test_e013_is_said_once_of_the_base_that_has_the_misspelling():
    class Base(QuerySetRunner):
        MAX_ATTEMPT = 3

    found = only("E013", declare("One", (Base,)), declare("Two", (Base,)))
    assert str(found.obj).endswith("Base")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ON_SAVE", 1),
        ("MAX_ATTEMPTS", 0),
        ("MAX_ATTEMPTS", "3"),
        ("MAX_ATTEMPTS", True),
        ("RETRY_BACKOFF", -1),
        ("RETRY_BACKOFF", dt.timedelta(seconds=3)),
        ("MAX_PARALLEL", None),
        ("MAX_PARALLEL", -1),
        ("LIMIT", ""),
        ("LIMIT", 3),
        ("BATCH_SIZE", 0),
        ("BATCH_SIZE", 1.5),
        ("TIMEOUT", 0),
        ("TIMEOUT", "60"),
        ("TIMEOUT", float("nan")),
        ("QUEUE", ""),
        ("QUEUE", 3),
        ("PRIORITY", 256),
        ("PRIORITY", -1),
        ("MAX_PER_SWEEP", 0),
        ("FILTER_QUERYSET_START", None),
    ],
)
def test_e014_a_wrong_value(name, value):
    found = only("E014", declare(**{name: value}))

    assert found.msg.startswith(f"{name} is {value!r}. It must be ")
    assert f"{name} = " in found.hint


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("30 2 * * 1", 'crontab(minute="30", hour="2", day_of_week="1")'),
        (3600, "datetime.timedelta(seconds=3600)"),
        (dt.timedelta(0), "None for no sweeps"),
        ("nightly", "None for no sweeps"),
    ],
)
def test_e015_a_wrong_schedule(value, advice):
    assert advice in only("E015", declare(SCHEDULE=value)).hint


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("title", "INPUT_FIELDS = ('title',)"),
        ({"title"}, "a tuple of field names"),
        (("titel",), "Did you mean 'title'?"),
        (("title", 3), "Use names of fields"),
        (("tags",), "Members('tags', ...)"),
        (("tags__name",), "get_instance_representation()"),
        (("title__nonsense",), "Its fields:"),
    ],
)
def test_e016_wrong_input_fields(value, advice):
    assert advice in only("E016", declare(INPUT_FIELDS=value)).hint


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("tags", "WATCH = ('tags',)"),
        (("tag",), "Did you mean 'tags'?"),
        (("title",), "Its relations: report, summary, tags"),
        (("tags__document_set",), "Did you mean 'document'?"),
        (("tags", 3), "Use names of relations"),
    ],
)
def test_e031_wrong_names_of_relations(value, advice):
    assert advice in only("E031", declare(WATCH=value)).hint


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (Members("tag", "name"), "Did you mean 'tags'?"),
        (Members("title", "name"), "Its relations: report, summary, tags"),
        (Members("tags", "nme"), "Did you mean 'name'?"),
        (Members("tags", "document"), "Members('document', ...)"),
        (Members("tags", "name", where=Q(nme="a")), "Write where=Q(...)"),
    ],
)
def test_e032_wrong_members(value, advice):
    assert advice in only("E032", declare(INPUT_FIELDS=("title", value))).hint


def test_e032_two_members_of_one_name():
    value = (Members("tags", "name"), Members("tags", "name", where=Q(name="a")))

    assert 'name="..."' in only("E032", declare(INPUT_FIELDS=value)).hint


def test_e033_each_of_other_rows():
    first = declare(name="First")
    tags = declare(name="Tags", DATA_MODEL=Tag, INPUT_FIELDS=("name",))

    def complaint(each):
        second = declare(name="Second", ANALYSIS_CONFIGURATION={"depth": 2}, DEPENDS_ON=(each,))
        with registry.registered(first, tags):
            return only("E033", second)

    assert "Did you mean 'tags'?" in complaint(Each(tags, "tag")).hint
    assert "leads to library.Tag" in complaint(Each(first, "tags")).msg
    assert "Write where=Q(...)" in complaint(Each(tags, "tags", where=Q(nme="a"))).hint


def test_e019_a_cycle_over_models():
    second = declare(
        name="Second", DATA_MODEL=Tag, DEPENDS_ON=(Each("library.FirstRunner", "document"),)
    )
    first = declare(name="FirstRunner", DEPENDS_ON=(Each(second, "tags"),))

    found = [each.id for each in complaints(first, second)]

    assert found == ["autorun.E019"] * 2


def test_relations_in_both_directions_may_be_watched():
    assert not complaints(declare(WATCH=("tags", "tags__document", "report")))


def test_e016_is_not_for_fields_of_related_rows():
    runner = declare(DATA_MODEL=Report, INPUT_FIELDS=("document_ptr__title", "title", "pages"))

    assert ids(runner) == []


@pytest.mark.parametrize(
    "options",
    [
        {"BASE_QUERY": {"title": "a"}},
        {"BASE_QUERY": Q(titel="a")},
        {"BASE_QUERY": Q(pk="x")},
        {"FILTERS": [Q()]},
        {"FILTERS": {"late": {"pk": 3}}},
        {"FILTERS": {"late": Q(titel="a")}},
        {"FILTERS": {3: Q()}},
    ],
)
def test_e017_a_wrong_query(options):
    assert next(iter(options)) in only("E017", declare(**options)).msg


@pytest.mark.parametrize(
    "value", ["library.Other", ("library.Nobody",), (3,), (QuerySetRunner,), declare("Unknown")]
)
def test_e018_depends_on_what_is_no_runner(value):
    assert "DEPENDS_ON" in only("E018", declare(DEPENDS_ON=value)).msg


def test_w007_code_that_cannot_be_read():
    names: dict[str, Any] = {}
    exec("def unreadable(text): return text", names)
    unreadable = Analysis("Unreadable", "1.0", names["unreadable"])
    with temporarily_registered(unreadable):
        assert only("W007", declare(ANALYSIS=unreadable, ON_CODE_CHANGE="rerun")).hint


@pytest.mark.parametrize("value", [("library.Other",), {"value": 3}, "library.Nobody", Document])
def test_e018_input_from_what_is_no_runner(value):
    assert "INPUT_FROM" in only("E018", declare(INPUT_FIELDS=None, INPUT_FROM=value)).msg


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"DEPENDS_ON": Each("library.Other", "tags")}, "(Each('library.Other', 'tags'),)"),
        ({"DEPENDS_ON": Each(declare("Other"), "tags", Q())}, "(Each(Other, 'tags'),)"),
        ({"INPUT_FROM": ("library.Other",)}, "INPUT_FROM"),
        ({"INPUT_FROM": "library.Nobody"}, "INPUT_FROM"),
    ],
)
def test_e018_of_one_of_two_runners_of_one_node(options, hint):
    found = only("E018", declare("First"), declare("Second", INPUT_FIELDS=None, **options))

    assert hint in found.hint


def test_e019_input_from_itself_in_the_end():
    first = declare("First", INPUT_FROM={"text": "library.Second"})
    second = declare("Second", DEPENDS_ON=("library.First",), ANALYSIS_CONFIGURATION={"depth": 2})

    found = complaints(first, second)

    assert [each.id for each in found] == ["autorun.E019", "autorun.E019"]
    assert found[0].msg.startswith("INPUT_FROM leads back")


def test_e019_depends_on_itself_in_the_end():
    first = declare("First", DEPENDS_ON=("library.Second",), ANALYSIS_CONFIGURATION={"depth": 1})
    second = declare("Second", DEPENDS_ON=("library.First",), ANALYSIS_CONFIGURATION={"depth": 2})
    third = declare("Third", DEPENDS_ON=(first,), ANALYSIS_CONFIGURATION={"depth": 3})

    found = complaints(first, second, third)

    assert [each.id for each in found] == ["autorun.E019", "autorun.E019"]
    assert "library.First -> library.Second -> library.First" in found[0].msg


def test_e020_depends_on_rows_of_another_model():
    photos = declare("Photos", DATA_MODEL=Photo)

    assert "library.Photo" in only("E020", photos, declare(DEPENDS_ON=(photos,))).msg


def test_e008_input_from_for_an_argument_that_is_missing():
    first = declare("First")

    found = only(
        "E008", first, declare(ANALYSIS_CONFIGURATION={"depth": 1}, INPUT_FROM={"cleaned": first})
    )

    assert "has no argument 'cleaned'" in found.msg


def test_e035_input_from_what_stores_no_outputs():
    first = declare("First", STORE_OUTPUTS=False)

    assert (
        "stores no outputs"
        in only("E035", first, declare(INPUT_FROM=first, ANALYSIS_CONFIGURATION={"depth": 1})).msg
    )


def test_e036_two_inputs_for_one_argument():
    first = declare("First")
    second = declare(INPUT_FIELDS=("title",), INPUT_FROM=first, ANALYSIS_CONFIGURATION={"depth": 1})

    assert "INPUT_FIELDS" in only("E036", first, second).msg


def test_e020_depends_on_rows_of_another_database():
    def elsewhere(self):
        return Document.objects.using("replica")

    first = declare("First", get_base_queryset=elsewhere, ANALYSIS_CONFIGURATION={"depth": 1})
    second = declare("Second", get_base_queryset=lambda self: Document.objects.using("default"))
    second.DEPENDS_ON = (first,)

    assert "another database" in only("E020", first, second).msg


@pytest.mark.parametrize("model", [Report, DraftDocument])
def test_e020_is_not_for_children_and_proxies(model):
    documents = declare("Documents")
    dependent = declare(
        DATA_MODEL=model, DEPENDS_ON=(documents,), ANALYSIS_CONFIGURATION={"depth": 2}
    )

    assert ids(documents, dependent) == []


@pytest.mark.parametrize(
    "options", [{"INPUT_FIELDS": ("title",)}, {"DEPENDS_ON": ("library.Upstream",)}]
)
def test_e021_two_runners_of_one_node_that_differ(options):
    upstream = declare("Upstream", ANALYSIS_CONFIGURATION={"depth": 9})
    found = only("E021", upstream, declare("First"), declare("Second", **options))

    assert next(iter(options)) in found.msg


def test_e021_two_runners_of_one_node_look_for_their_rows_in_two_databases():
    def archived(self):
        return Document.objects.using("archive")

    upstream = declare("First", INPUT_FIELDS=("title",))
    archive = declare("Second", INPUT_FIELDS=("title",), get_base_queryset=archived)

    found = only("E021", upstream, archive)

    assert "the database" in found.msg


def test_e021_is_not_for_runners_of_one_node_that_are_alike():
    first = declare("First", ANALYSIS_CONFIGURATION={"depth": 2}, INPUT_FIELDS=("title",))
    second = declare("Second", ANALYSIS_CONFIGURATION={"depth": 2.0}, INPUT_FIELDS=["title"])

    assert ids(first, second) == []


@pytest.mark.parametrize(
    "options",
    [
        {"OUTPUT_FIELDS": {"value": "body"}},
        {"STORE_OUTPUTS": False},
        {"save_outputs": lambda self, results: None},
        {"CANDIDATE": Candidate("1.1", rows=20)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_w008_two_runners_of_one_node_with_results_of_their_own(options):
    (name,) = options
    candidate = Candidate("1.1", rows=10) if name == "CANDIDATE" else None
    with temporarily_registered(Analysis("Measuring", "1.1", measure)):
        first, second = declare("First", CANDIDATE=candidate), declare("Second", **options)
        found = only("W008", first, second)

    assert name in found.msg


def test_w008_is_not_for_what_is_executed_as_the_runner_says_that_planned_it():
    assert ids(declare("First"), declare("Second", TIMEOUT=9, QUEUE="slow", MAX_PARALLEL=2)) == []


@pytest.mark.parametrize("name", sorted(names.REPLACEMENTS))
def test_w005_a_name_of_django_analyses(name):
    value = "x" if name.isupper() else helping
    found = only("W005", declare(**{name: value}))

    assert name in found.msg
    assert names.REPLACEMENTS[name] in found.hint


@pytest.mark.parametrize("default", [{}, {"default": logging.INFO}])
def test_w005_a_base_queryset_with_a_log_level(default):
    def required(self, log_level):
        return Document.objects.all()

    def optional(self, log_level=logging.INFO):
        return Document.objects.all()

    runner = declare(get_base_queryset=optional if default else required)
    assert ids(runner) == (["W005"] if default else ["E012", "W005"])


def test_w005_is_not_for_names_of_ones_own():
    assert ids(declare(node="x", configuration="y", prepare_input=helping)) == []


@pytest.mark.parametrize("declares", ["ANALYSIS_CONFIGURATION", "create_configuration"])
def test_w006_all_that_looks_like_a_secret(declares):
    unit = ["https://user:SECRET@host/", {"apiKey": "SECRET", "page": 1}]
    value = {"unit": unit} if declares.isupper() else lambda self: {"unit": unit}

    with temporarily_registered(Analysis("Any unit", "1.0", lambda text, *, unit: {})):
        found = only("W006", declare(ANALYSIS="Any unit", **{declares: value}))

    assert "secrets: unit[0], unit[1].apiKey." in found.msg
    assert "SECRET" not in found.msg + found.hint


def test_w006_is_not_for_the_settings_of_an_analysis():
    assert ids(declare(ANALYSIS_CONFIGURATION={"unit": "https://host/?page=1"})) == []


def test_w001_a_constant_of_ones_own():
    assert "_SCANNER" in only("W001", declare(SCANNER="big")).hint


def test_w002_two_runners_of_one_node_with_representations_of_their_own():
    first = declare("First", get_instance_representation=lambda self, instance: 1)
    second = declare("Second", get_instance_representation=lambda self, instance: 2)

    assert "get_instance_representation()" in only("W002", first, second).msg


def helping(self, *args):
    return args


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("get_instance_represention", "get_instance_representation"),
        ("get_instance_repr", None),
        ("filter_query_set", "filter_queryset"),
        ("filterQueryset", "filter_queryset"),
        ("create_configurations", "create_configuration"),
        ("get_shedule", "get_schedule"),
        ("log_filter_starts", "log_filter_start"),
        ("get_basequeryset", "get_base_queryset"),
    ],
)
@pytest.mark.parametrize("kind", [lambda each: each, staticmethod, classmethod])
def test_w003_a_misspelt_hook(name, meant, kind):
    runner = declare(**{name: kind(helping)})
    if meant is None:
        assert ids(runner) == []
        return

    found = only("W003", runner)

    assert f"Did you mean {meant}()?" in found.msg
    assert f"_{name}()" in found.hint
    assert found.obj == "tests.library.runners.MeasuringRunner"


@pytest.mark.parametrize(
    "name",
    [
        *("get_path", "get_scanner", "get_rows", "filter_scans", "filter_by_age", "prepare"),
        *("get_instance", "get_representation", "create", "configure", "log_filter", "log"),
        *("get_queryset", "get_base_queryset_for", "raw_filter_queryset", "get_timeout_of"),
        *("schedule", "timeout", "queue", "_get_shedule", "get_backoff", "retry_backoff"),
    ],
)
def test_w003_is_not_for_methods_of_ones_own(name):
    assert ids(declare(**{name: helping})) == []


def test_w003_is_not_for_what_stands_beside_the_hook():
    def get_instance_representations(self, instances):
        return [self.get_instance_representation(each) for each in instances]

    runner = declare(
        get_instance_representation=lambda self, instance: instance.pk,
        get_instance_representations=get_instance_representations,
    )

    assert ids(runner) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_attempts", 2), ("timeout", 60), ("filters", {}), ("on_save", property(helping))],
)
def test_w003_an_option_in_lower_case(name, value):
    found = only("W003", declare(**{name: value}))

    assert f"Did you mean {name.upper()}?" in found.msg
    assert f"may be called _{name}." in found.hint


def test_w003_is_not_for_attributes_of_ones_own():
    assert ids(declare(scanner="big", attempts=3, _max_attempts=2, Meta=type("Meta", (), {}))) == []


def test_w003_is_said_once_of_the_base_that_has_the_misspelling():
    class Base(QuerySetRunner):
        max_attempts = 3

    found = only("W003", declare("One", (Base,)), declare("Two", (Base,)))
    assert str(found.obj).endswith("Base")


# Settings


def test_e024_a_limit_that_is_not_in_the_settings():
    with override_settings(AUTORUN={"LIMITS": {"openai": Limit(parallel=3)}}):
        found = only("E024", declare(LIMIT="open_ai"))
        assert not complaints(declare(LIMIT="openai"))

    assert "Did you mean 'openai'?" in found.msg
    assert '{"open_ai": Limit(parallel=20)}' in found.hint


@pytest.mark.parametrize("value", ["WINDOW", ["WINDOW"], 3])
def test_e101_no_dict(value):
    with override_settings(AUTORUN=value):
        assert "not a dict" in only("E101").msg


@pytest.mark.parametrize(
    ("name", "meant"), [("WINDOWS", "WINDOW"), ("HEART_BEAT", "HEARTBEAT"), ("window", "WINDOW")]
)
def test_e102_an_unknown_setting(name, meant):
    with override_settings(AUTORUN={name: 3}):
        assert f"Did you mean {meant!r}?" in only("E102").msg


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SCHEDULE", "0 3 * * *"),
        ("WINDOW", 0),
        ("LEASE", "60"),
        ("HEARTBEAT", 0),
        ("TIMEOUT", 0),
        ("UPKEEP_INTERVAL", None),
        ("PUBLISH", "background"),
        ("MAX_OUTPUT_BYTES", 0),
        ("MAX_TRACEBACK_BYTES", None),
        ("RETENTION", 30),
        ("QUEUE", 3),
        ("DATABASE", None),
        ("LIMITS", {"openai": "3000/m"}),
        ("LIMITS", [Limit(parallel=3)]),
    ],
)
def test_e103_a_wrong_setting(name, value):
    with override_settings(AUTORUN={name: value}):
        found = complaints()

    assert found[0].id == "autorun.E103"
    assert found[0].msg.startswith(f"AUTORUN[{name!r}] is {value!r}. It must be ")


@pytest.mark.parametrize("given", [{"LEASE": 30}, {"HEARTBEAT": 30}, {"LEASE": 8, "HEARTBEAT": 4}])
def test_e104_a_lease_that_one_lost_heartbeat_ends(given):
    with override_settings(AUTORUN=given):
        assert "2 times HEARTBEAT" in only("E104").hint


def test_e105_a_database_that_is_not_there():
    with override_settings(AUTORUN={"DATABASE": "replica"}):
        assert "'default'" in only("E105").hint


def test_every_setting_and_every_simple_option_is_checked():
    by_other_checks = {
        *("DATA_MODEL", "ANALYSIS", "ANALYSIS_VERSION", "ANALYSIS_CONFIGURATION", "INPUT_KEY"),
        *("BASE_QUERY", "INPUT_FIELDS", "FILTERS", "SCHEDULE", "DEPENDS_ON", "INPUT_FROM", "WATCH"),
        *("OUTPUT_FIELDS", "OUTPUT_MODEL", "OUTPUT_KEY"),
    }

    assert values.SETTINGS.keys() == DEFAULTS.keys()
    assert values.OPTION_VALUES.keys() | by_other_checks == names.OPTIONS


def test_the_defaults_pass():
    assert all(values.SETTINGS[name].holds(value) for name, value in DEFAULTS.items())


# The project


def test_e201_no_content_types(monkeypatch):
    monkeypatch.setattr(apps, "is_installed", lambda name: name == "django_celery_beat")

    assert "manage.py migrate" in only("E201").hint


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///broker.sqlite3",
        "sqlite://broker.sqlite3",
        "sqlite:broker.sqlite3",
        "sqlite:////",
        "sqlite://",
        "sqlite:////srv/app/broker.sqlite3?timeout=5",
        ["amqp://localhost", "sqlite:///broker.sqlite3"],
        "amqp://localhost;sqlite:///broker.sqlite3",
    ],
)
@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL"])
def test_e202_a_broker_in_a_file_without_an_absolute_path(name, url):
    with override_settings(**{name: url}):
        found = only("E202")

    assert found.msg.startswith(f"{name}: The broker URL 'sqlite:")
    assert f"{name} = f\"sqlite:///{{BASE_DIR / 'broker.sqlite3'}}\"" in found.hint
    assert found.obj == f"settings.{name}"


def test_e202_by_the_celery_app():
    with configured(broker_write_url="sqlite:///broker.sqlite3"):
        assert only("E202").obj == "celery.conf.broker_write_url"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////srv/app/broker.sqlite3",
        "sqlite:////srv/a%20pp/broker%3F.sqlite3",
        "sqla+sqlite:///broker.sqlite3",
        "amqp://mysite:secret@localhost:5672//",
        "memory://",
        "",
        None,
    ],
)
def test_e202_is_not_for_absolute_paths_and_other_brokers(url):
    with override_settings(CELERY_BROKER_URL=url):
        assert ids() == []


def test_w201_pickle_by_setting():
    with override_settings(CELERY_ACCEPT_CONTENT=["json", "pickle"]):
        assert "CELERY_ACCEPT_CONTENT" in only("W201").hint


def test_w201_pickle_by_the_celery_app():
    with configured(accept_content=["json", "application/x-python-serialize"]):
        assert "CELERY_ACCEPT_CONTENT" in only("W201").hint


def test_e204_workers_accept_no_json():
    with configured(accept_content=["yaml"]):
        assert '"json"' in only("E204").hint
    with configured(accept_content=["yaml", "application/json"]):
        assert ids() == []


def _as_if(monkeypatch, **database):
    connection = SimpleNamespace(
        vendor=database.pop("vendor"), settings_dict={"NAME": "x", **database}
    )
    monkeypatch.setattr("autorun.observe.checks.installation.connections", {"default": connection})


@pytest.mark.parametrize("options", [{}, {"transaction_mode": "DEFERRED"}])
def test_w202_sqlite_that_locks_late(monkeypatch, options):
    _as_if(monkeypatch, vendor="sqlite", OPTIONS=options)

    assert "IMMEDIATE" in only("W202").hint


def test_w202_is_not_for_databases_in_memory(monkeypatch):
    _as_if(monkeypatch, vendor="sqlite", NAME=":memory:")

    assert ids() == []


def test_w203_another_isolation_level(monkeypatch):
    _as_if(monkeypatch, vendor="mysql", OPTIONS={"isolation_level": "repeatable read"})

    assert "read committed" in only("W203").hint


def test_w203_another_isolation_level_of_postgresql(monkeypatch):
    levels = {}
    for level in (1, 2, 3, 4):
        _as_if(monkeypatch, vendor="postgresql", OPTIONS={"isolation_level": level})
        levels[level] = ids()

    assert levels == {1: [], 2: [], 3: ["W203"], 4: ["W203"]}


TIMES = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5}
TIMES |= {"keepalives_count": 3, "tcp_user_timeout": 25_000}


@pytest.mark.parametrize("left_out", TIMES)
def test_w205_a_postgresql_that_may_vanish(monkeypatch, left_out):
    given = {name: value for name, value in TIMES.items() if name != left_out}
    _as_if(monkeypatch, vendor="postgresql", HOST="db.example.org", OPTIONS=given)

    assert f'"{left_out}": ' in only("W205").hint


@pytest.mark.parametrize(("driver", "expected"), [("MySQLdb", ["W205"]), ("pymysql", [])])
def test_w205_a_mariadb_that_may_vanish(monkeypatch, driver, expected):
    _as_if(monkeypatch, vendor="mysql", HOST="db.example.org")
    connection = installation.connections["default"]
    monkeypatch.setattr(connection, "Database", SimpleNamespace(__name__=driver), raising=False)

    assert ids() == expected


@pytest.mark.parametrize(
    "database",
    [
        {"HOST": "db.example.org", "OPTIONS": TIMES},
        {"HOST": "db.example.org", "OPTIONS": {"service": "mine"}},
        {"HOST": "/var/run/postgresql"},
        {"HOST": "127.0.0.1"},
    ],
)
def test_w205_is_not_for_databases_that_are_here_or_have_limits(monkeypatch, database):
    _as_if(monkeypatch, vendor="postgresql", **database)

    assert ids() == []


@pytest.mark.parametrize("vendor", ["mysql", "postgresql"])
def test_w203_is_not_for_djangos_default(monkeypatch, vendor):
    _as_if(monkeypatch, vendor=vendor)

    assert ids() == []


@pytest.mark.parametrize("vendor", ["mysql", "sqlite"])
@pytest.mark.parametrize("zone", ["America/New_York", "UTC"])
def test_e230_times_of_which_nobody_knows_the_zone(monkeypatch, settings, vendor, zone):
    _as_if(monkeypatch, vendor=vendor, OPTIONS={"transaction_mode": "IMMEDIATE"})
    settings.USE_TZ, settings.TIME_ZONE = False, zone

    assert "USE_TZ = True" in only("E230").hint


def test_e230_a_zone_of_the_databases_own(monkeypatch):
    _as_if(monkeypatch, vendor="mysql", TIME_ZONE="Europe/London")

    assert "Remove TIME_ZONE from settings.DATABASES['default']" in only("E230").hint


@pytest.mark.parametrize(
    ("vendor", "use_tz", "zone"),
    [
        pytest.param("postgresql", False, "Asia/Tokyo", id="which keeps the zone"),
        pytest.param("mysql", True, "Asia/Tokyo", id="for people only"),
    ],
)
def test_e230_is_not_for_times_that_autorun_reads_as_it_writes_them(
    monkeypatch, settings, vendor, use_tz, zone
):
    _as_if(monkeypatch, vendor=vendor)
    settings.USE_TZ, settings.TIME_ZONE = use_tz, zone

    assert ids() == []


def test_w204_schedules_without_beat(monkeypatch):
    monkeypatch.setattr(
        apps, "is_installed", lambda name: name not in ("django_celery_beat", "cachalot")
    )

    assert "django_celery_beat" in only("W204", declare()).hint
    assert ids(declare(SCHEDULE=None)) == []


@pytest.mark.parametrize("scheduler", ["celery.beat:PersistentScheduler", "celery.beat.Scheduler"])
def test_w208_a_scheduler_of_beat_that_does_not_know_the_schedules(scheduler):
    with configured(beat_scheduler=scheduler):
        assert "CELERY_BEAT_SCHEDULE and set AUTORUN" in only("W208", declare()).hint
        assert ids(declare(SCHEDULE=None)) == []


@pytest.mark.parametrize("scheduler", ["django", "no_such.scheduler:Scheduler"])
def test_w208_is_not_for_schedulers_of_beats_tables(scheduler):
    with configured(beat_scheduler=scheduler):
        assert ids(declare()) == []


@pytest.mark.parametrize(
    ("is_complaint", "changes"),
    [
        (True, {}),
        (True, {"CACHALOT_UNCACHABLE_APPS": ("shop",)}),
        (False, {"CACHALOT_UNCACHABLE_APPS": ("shop", "autorun")}),
        (False, {"CACHALOT_ONLY_CACHABLE_APPS": ("shop",)}),
        (False, {"CACHALOT_ENABLED": False}),
    ],
)
def test_w209_cached_queries_of_autoruns_tables(monkeypatch, settings, is_complaint, changes):
    monkeypatch.setattr(apps, "is_installed", lambda name: True)
    for name, value in changes.items():
        setattr(settings, name, value)

    assert ids(declare()) == ["W209"] * is_complaint


@pytest.mark.parametrize("name", ["tests.library", "tests.library.apps.LibraryConfig"])
def test_e203_a_model_with_a_table_for_each_tenant(settings, name):
    settings.TENANT_APPS = ("tests.libr", name)

    assert "library.Document" in only("E203", declare()).msg


def test_e203_autorun_in_the_schemas_of_tenants(settings):
    settings.TENANT_APPS = ("shop", "autorun")

    assert "SHARED_APPS" in only("E203", declare()).hint


def test_the_databases_of_this_suite_pass():
    assert connections["default"].vendor in ("sqlite", "postgresql", "mysql")
    assert ids() == []


SETTINGS = """
SECRET_KEY = "secret"
INSTALLED_APPS = ["django.contrib.contenttypes", "autorun", "shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
AUTORUN = {"SCHEDULE": None}
CELERY_BROKER_URL = "redis://127.0.0.1/9"
"""


CHECK = ("-m", "django", "check", "--tag", "autorun")


def checked_in_a_project(folder, command=CHECK, module="mysite.settings", **files):
    """Return what the checks, or another command, print in a new project with these files."""
    for name, text in {"mysite/settings": SETTINGS, "shop/__init__": "", **files}.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    process = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"DJANGO_SETTINGS_MODULE": module, "PYTHONPATH": f"{folder}:{Path.cwd()}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return process.stdout + process.stderr


CELERY_APP = 'from celery import Celery\napp = Celery("mysite")\n'


def test_w206_a_celery_app_that_is_not_imported(tmp_path):
    printed = checked_in_a_project(tmp_path, **{"mysite/__init__": "", "mysite/celery": CELERY_APP})

    assert "(autorun.W206) This process has not imported the project's Celery app" in printed
    assert "in mysite/__init__.py: `from mysite.celery import app as celery_app`" in printed


def test_w206_settings_that_are_in_no_package(tmp_path):
    printed = checked_in_a_project(tmp_path, module="flat", flat=SETTINGS)

    assert "autorun.W206" in printed
    assert "Import it in the __init__.py of an app in INSTALLED_APPS." in printed
    assert "flat" not in printed.partition("autorun.W206")[2]


IN_READY = """
from django.apps import AppConfig

class ShopConfig(AppConfig):
    name = "shop"

    def ready(self):
        {before}
        from mysite.celery import app
"""
THREAD = """
import threading, django; django.setup()
from celery import current_app
threading.Thread(target=lambda: print("found", current_app.main)).start()
"""


def test_an_app_that_is_created_late_is_found_by_all_threads(tmp_path):
    late = {"mysite/celery": CELERY_APP, "shop/apps": IN_READY.format(before="")}

    assert "found mysite" in checked_in_a_project(tmp_path, ("-c", THREAD), **late)


def test_w206_a_celery_app_that_other_threads_do_not_find(tmp_path):
    before = "from celery import current_app; current_app.conf"
    late = {"mysite/celery": CELERY_APP, "shop/apps": IN_READY.format(before=before)}

    told = "(autorun.W206) Only the thread that created the Celery app 'mysite' finds it."
    assert told in checked_in_a_project(tmp_path, **late)
    late["mysite/celery"] += "app.set_default()"
    assert told not in checked_in_a_project(tmp_path, **late)


SWEPT = """
from django.contrib.contenttypes.models import ContentType

from autorun.analysis import analysis
from autorun.runner import QuerySetRunner

@analysis("Length", version="1.0")
def length(text: str) -> int:
    return len(text)

class LengthRunner(QuerySetRunner):
    DATA_MODEL, ANALYSIS, ANALYSIS_VERSION = ContentType, "Length", "1.0"
    INPUT_KEY, INPUT_FIELDS = "text", ("model",)
"""


def test_an_app_that_is_not_imported_says_nothing_about_beats_scheduler(tmp_path):
    settings = SETTINGS.replace('"shop"', '"django_celery_beat", "shop"').replace(
        "AUTORUN =", "_ ="
    )
    files = {"mysite/settings": settings, "shop/runners": SWEPT}

    printed = checked_in_a_project(tmp_path, **files, **{"mysite/celery": CELERY_APP})
    imported = "from mysite.celery import app\n"
    with_app = checked_in_a_project(tmp_path, **files, **{"mysite/__init__": imported})

    assert "W206" in printed
    assert "W208" not in printed
    assert "W208" in with_app


@pytest.mark.parametrize("reads_settings", [False, True])
def test_w206_a_celery_app_that_does_not_read_the_settings(tmp_path, reads_settings):
    reading = 'app.config_from_object("django.conf:settings", namespace="CELERY")\n'
    printed = checked_in_a_project(
        tmp_path,
        **{
            "mysite/__init__": "from mysite.celery import app",
            "mysite/celery": CELERY_APP + reading * reads_settings,
        },
    )

    told = "(autorun.W206) The Celery app 'mysite' does not read CELERY_BROKER_URL."
    assert (told in printed) != reads_settings


#: The app has a module of another name than Celery's, and reads Celery's old names.
OLD_STYLE = {
    "mysite/__init__": "",
    "mysite/base/__init__": "",
    "mysite/base/celeryapp": f'{CELERY_APP}app.config_from_object("django.conf:settings")\n',
    "mysite/settings": SETTINGS + "CELERY_ALWAYS_EAGER = True\n",
    "shop/models": "from mysite.base.celeryapp import app",
}


def test_w206_a_celery_app_that_reads_old_names(tmp_path):
    printed = checked_in_a_project(tmp_path, **OLD_STYLE)

    assert "(autorun.W206) The Celery app 'mysite' does not read CELERY_BROKER_URL." in printed
    assert "otherwise may call them BROKER_URL." in printed


def test_commands_to_paste_name_the_module_of_the_celery_app(tmp_path):
    show = "from autorun.observe.celery_app import *; print(celery_command('beat'))"
    script = f"import django; django.setup(); {show}"

    printed = checked_in_a_project(tmp_path, ("-c", script), **OLD_STYLE)

    assert "`celery -A mysite.base.celeryapp beat`" in printed


def test_w207_modules_of_a_package_that_are_not_imported(tmp_path):
    printed = checked_in_a_project(
        tmp_path,
        **{
            "mysite/__init__": "",
            "shop/runners/__init__": "from shop.runners import imported",
            "shop/runners/imported": "class ItsRunner: pass",
            "shop/runners/rows": "from autorun.runner import QuerySetRunner\n"
            "class RowsRunner(QuerySetRunner): pass",
            "shop/runners/odd": "class Odd(Sizes):\n    ANALYSIS = 'Size'",
            "shop/runners/tests/helping": "class Helper: pass",
            "shop/analyses/__init__": "",
            "shop/analyses/deep/sizes": "from autorun import analysis\n@analysis.analysis('Size')",
            "shop/analyses/full": "import autorun.analysis\n@autorun.analysis.analysis('Full')",
            "shop/analyses/other": "from autorun.analysis import analysis as of\n@of('Other')",
        },
    )

    assert printed.count("(autorun.W207)") == 5
    analyses = ("analyses.deep.sizes", "analyses.full", "analyses.other")
    for name in ("runners.rows", "runners.odd", *analyses):
        assert f"Add `import shop.{name}` to " in printed
