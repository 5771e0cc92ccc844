"""Every type of field as an input: one fingerprint in every session, and a value for the body."""

import copy
import datetime as dt
import ipaddress
import json
import uuid
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from django.conf import settings as project
from django.db import connection, models
from django.db.backends.postgresql.psycopg_any import DateRange, DateTimeTZRange, NumericRange
from django.db.backends.signals import connection_created
from django.db.models import F
from django.test.utils import isolate_apps
from django.utils import timezone

from autorun.models import Failure, Run
from autorun.planning.on_demand import sweep_now
from autorun.planning.rows import load
from autorun.state.counts import Progress
from autorun.state.documents import found_at
from tests.engine import declare, installed, statuses, work_off
from tests.library.models import Image, Patient, Visit

pytestmark = pytest.mark.django_db(transaction=True)

MOMENT = dt.datetime(2026, 3, 4, 5, 6, 7, 89, dt.UTC)
LATER = MOMENT + dt.timedelta(microseconds=1)
DAY = dt.date(2026, 3, 4)
LONG = 0.1 + 2**-56
JSON = models.JSONField()


class Money:
    def __init__(self, text):
        self.text = text


class MoneyField(models.CharField):
    """A field whose value is an object, as those of many packages are."""

    def from_db_value(self, value, expression, connection):
        return None if value is None else Money(value)

    def get_prep_value(self, value):
        return value.text if isinstance(value, Money) else value


class Place:
    """A value without a text."""

    def __init__(self, name):
        self.name = name

    def __eq__(self, other):
        return isinstance(other, Place) and other.name == self.name

    def __hash__(self):
        return hash(self.name)


class PlaceField(models.CharField):
    """A field that makes its text for the database alone."""

    def from_db_value(self, value, expression, connection):
        return None if value is None else Place(value)

    def get_prep_value(self, value):
        return value

    def get_db_prep_value(self, value, connection, prepared=False):
        return value.name if isinstance(value, Place) else value


class PlaceDecoder(json.JSONDecoder):
    def __init__(self):
        super().__init__(object_hook=lambda read: Place(**read) if "name" in read else read)


class PlaceEncoder(json.JSONEncoder):
    def default(self, value):
        return vars(value)


class DoubleField(models.FloatField):
    """A field with another name of its type."""

    def db_type(self, connection):
        return "float8"


class ShapeField(models.Field):
    """A field of a type that only the database knows, as those of geometries are."""

    def db_type(self, connection):
        return {"postgresql": "polygon", "mysql": "longblob"}.get(connection.vendor, "shape")


class MultirangeField(models.Field):
    """A field of ranges of a type, which Django does not have."""

    def __init__(self, kind, **options):
        super().__init__(**options)
        self.kind = kind

    def deconstruct(self):
        name, path, args, options = super().deconstruct()
        return name, path, [self.kind, *args], options

    def db_type(self, connection):
        return self.kind


def shape(points):
    if connection.vendor == "postgresql":
        return f"({points})"
    return f"\0\xff{points}".encode("latin-1")


#: Fields by name: the field, a value, the smallest change of it.
FIELDS = {
    "big": (models.BigIntegerField(null=True), 2**62, 2**62 + 1),
    "binary": (models.BinaryField(null=True), b"\0\xff", b"\0\xfe"),
    "boolean": (models.BooleanField(null=True), True, False),
    "char": (models.CharField(max_length=9, null=True), "é:1", "e:1"),
    "date": (models.DateField(null=True), DAY, dt.date(2026, 4, 3)),
    "moment": (models.DateTimeField(null=True), MOMENT, LATER),
    "decimal": (
        models.DecimalField(max_digits=12, decimal_places=2, null=True),
        Decimal("100.50"),
        Decimal("100.51"),
    ),
    "whole": (
        models.DecimalField(max_digits=12, decimal_places=0, null=True),
        Decimal(100),
        Decimal(10),
    ),
    "duration": (
        models.DurationField(null=True),
        dt.timedelta(40, 5),
        dt.timedelta(40, 5, 1),
    ),
    "email": (models.EmailField(null=True), "a@b.de", "a@b.dk"),
    "file": (models.FileField(null=True), "a/é.nii", "a/e.nii"),
    "path": (models.FilePathField(null=True), "/a/é", "/a/e"),
    "float": (models.FloatField(null=True), 0.1, LONG),
    "long": (models.FloatField(null=True), LONG, LONG + 2**-55),
    "ip": (models.GenericIPAddressField(null=True), "10.0.0.1", "10.0.0.2"),
    "integer": (models.IntegerField(null=True), 1, -1),
    "json": (
        models.JSONField(null=True),
        {"b": [1, {"y": LONG, "x": None}], "a": "é"},
        {"b": [1, {"y": 0.1, "x": None}], "a": "é"},
    ),
    "positive": (models.PositiveIntegerField(null=True), 2**31 - 1, 0),
    "positive_big": (models.PositiveBigIntegerField(null=True), 2**62, 2**62 + 1),
    "small": (models.PositiveSmallIntegerField(null=True), 1, 2),
    "small_integer": (models.SmallIntegerField(null=True), -1, 1),
    "slug": (models.SlugField(null=True), "a-b", "a_b"),
    "text": (models.TextField(null=True), "a\n", "a"),
    "time": (models.TimeField(null=True), dt.time(5, 6, 7, 89), dt.time(5, 6, 7, 90)),
    "url": (models.URLField(null=True), "https://a.de", "https://a.dk"),
    "uuid": (models.UUIDField(null=True), uuid.UUID(int=1), uuid.UUID(int=2)),
    "money": (MoneyField(max_length=20, null=True), Money("10 EUR"), Money("10 USD")),
    "place": (PlaceField(max_length=20, null=True), Place("a"), Place("b")),
    "places": (
        models.JSONField(encoder=PlaceEncoder, decoder=PlaceDecoder, null=True),
        [Place("a"), {"at": Place("b")}],
        [Place("a"), {"at": Place("c")}],
    ),
    "shape": (ShapeField(null=True), shape("(0,0),(1,2)"), shape("(0,0),(2,1)")),
}
IS_POSTGRESQL = project.DATABASES["default"]["ENGINE"].endswith("postgresql")
if IS_POSTGRESQL:
    from django.contrib.postgres import fields as postgres
    from django.contrib.postgres.search import SearchVectorField
    from django.contrib.postgres.signals import register_type_handlers

    for name in ("big", "binary", "date", "moment", "decimal", "duration", "long", "ip", "time"):
        field, value, changed = FIELDS[name]
        array = postgres.ArrayField(field.clone(), null=True)
        FIELDS[f"{name}_array"] = (array, [value, None], [changed, None])
    floats = postgres.ArrayField(postgres.ArrayField(models.FloatField()), null=True)
    days = DateRange(DAY, dt.date(2026, 4, 3))
    FIELDS |= {
        "nested_array": (floats, [[0.1, 0.2]], [[0.1], [0.2]]),
        "range_array": (
            postgres.ArrayField(postgres.DateRangeField(), null=True),
            [days],
            [DateRange(DAY, None)],
        ),
        "money_array": (
            postgres.ArrayField(MoneyField(max_length=20), null=True),
            [Money("10 EUR")],
            [Money("10 USD")],
        ),
        "double": (DoubleField(null=True), LONG, LONG + 2**-55),
        "hstore": (postgres.HStoreField(null=True), {"b": "1", "a": None}, {"b": "1", "a": ""}),
        "search": (SearchVectorField(null=True), "a b", "a c"),
        "integers": (
            postgres.IntegerRangeField(null=True),
            NumericRange(1, 5),
            NumericRange(1, 6),
        ),
        "bigs": (postgres.BigIntegerRangeField(null=True), NumericRange(1, 5), NumericRange(1, 6)),
        "decimals": (
            postgres.DecimalRangeField(null=True),
            NumericRange(Decimal("1.5"), None),
            NumericRange(Decimal("1.5"), None, "()"),
        ),
        "dates": (postgres.DateRangeField(null=True), days, DateRange(empty=True)),
        "moments": (
            postgres.DateTimeRangeField(null=True),
            DateTimeTZRange(MOMENT, LATER),
            DateTimeTZRange(None, LATER),
        ),
        "several_moments": (
            MultirangeField("tstzmultirange", null=True),
            f"{{[{MOMENT}, {LATER}), (2027-01-01 00:00:00+00:00, 2027-01-02 00:00:00+00:00]}}",
            f"{{[{MOMENT}, {LATER}]}}",
        ),
        "several_dates": (
            MultirangeField("datemultirange", null=True),
            "{[2026-03-04, 2026-04-03), [2026-05-04, 2026-05-05)}",
            "{}",
        ),
        "several_integers": (MultirangeField("int8multirange", null=True), "{[1, 5)}", "{[1, 6)}"),
    }

#: The values that a body is given as another one.
GIVEN = {
    "money": "10 EUR",
    "money_array": ["10 EUR"],
    "integers": "[1,5)",
    "bigs": "[1,5)",
    "decimals": "[1.5,)",
    "dates": "[2026-03-04,2026-04-03)",
    "moments": f"[{MOMENT},{LATER})",
    "range_array": ["[2026-03-04,2026-04-03)"],
    "search": "'a' 'b'",
}

#: What a project may alter without changing a value.
ALTERED = {
    "decimal": models.DecimalField(max_digits=14, decimal_places=4, null=True),
    "whole": models.DecimalField(max_digits=14, decimal_places=2, null=True),
    "char": models.CharField(max_length=90, null=True),
    "slug": models.TextField(null=True),
    "small": models.BigIntegerField(null=True),
    "integer": models.BigIntegerField(null=True),
    "moment": models.DateTimeField(null=True, auto_now=True),
}
if IS_POSTGRESQL:
    ALTERED["decimal_array"] = postgres.ArrayField(ALTERED["decimal"].clone(), null=True)

SESSIONS = {
    "postgresql": [
        "SET TIME ZONE 'Asia/Kathmandu'",
        "SET DateStyle = 'German, DMY'",
        "SET IntervalStyle = 'iso_8601'",
        "SET extra_float_digits = -3",
        "SET bytea_output = 'escape'",
    ],
    "mysql": [
        "SET time_zone = '+05:45'",
        "SET sql_mode = 'NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,PAD_CHAR_TO_FULL_LENGTH'",
    ],
}


@pytest.fixture
def every():
    """A model with one field of each type, and its table."""
    if IS_POSTGRESQL:
        with connection.cursor() as cursor:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS hstore")
        connection_created.connect(register_type_handlers)
        register_type_handlers(connection)
    with isolate_apps("tests.library"):
        fields = {name: field.clone() for name, (field, _, _) in FIELDS.items()}
        model = type(
            "Everything", (models.Model,), {"__module__": "tests.library.models", **fields}
        )
        with connection.schema_editor() as editor:
            editor.create_model(model)
        yield model
        with connection.schema_editor() as editor:
            editor.delete_model(model)
    if IS_POSTGRESQL:
        connection_created.disconnect(register_type_handlers)


@contextmanager
def another_session():
    try:
        with connection.cursor() as cursor:
            for statement in SESSIONS.get(connection.vendor, []):
                cursor.execute(statement)
        yield
    finally:
        connection.close()


def runner_of(model, *fields, received=None, **options):
    def receive(value):
        if received is not None:
            received.append(value)

    return declare(receive, DATA_MODEL=model, INPUT_FIELDS=fields, MAX_ATTEMPTS=1, **options)


@pytest.mark.faults(46)
@pytest.mark.parametrize("name", FIELDS)
def test_every_type_of_field_runs_once_for_each_value(every, name):
    _, value, changed = FIELDS[name]
    received = []
    row = every.objects.create(**{name: value})
    empty = every.objects.create()
    with installed(runner_class := runner_of(every, name, received=received)):
        runner = runner_class()
        assert runner.run().planned == 2
        work_off()
        assert set(statuses()) == {Run.Status.SUCCEEDED}, received
        assert received == [GIVEN.get(name, value), None if name != "file" else ""]
        with another_session():
            assert list(runner.pending()) == []
        every.objects.filter(pk=row.pk).update(**{name: changed})
        assert [each.pk for each in runner.pending()] == [row.pk]
        every.objects.filter(pk=row.pk).update(**{name: value})
        every.objects.filter(pk=empty.pk).update(**{name: value})
        assert [each.pk for each in runner.pending()] == [empty.pk]


@pytest.mark.faults(44)
@pytest.mark.parametrize("name", ALTERED)
def test_what_alters_a_column_and_no_value_makes_nothing_pending(every, name):
    every.objects.create(**{name: FIELDS[name][1]})
    with installed(runner_class := runner_of(every, name)):
        runner_class().run()
    old, new = every._meta.get_field(name), ALTERED[name].clone()
    new.set_attributes_from_name(name)
    new.model = every
    with connection.schema_editor() as editor:
        editor.alter_field(every, old, new)
    with isolate_apps("tests.library"):
        fields = {each: field.clone() for each, (field, _, _) in FIELDS.items()}
        fields[name] = ALTERED[name].clone()
        altered = type(
            "Everything", (models.Model,), {"__module__": "tests.library.models", **fields}
        )

    with installed(runner_class := runner_of(altered, name)):
        assert list(runner_class().pending()) == []


@pytest.mark.faults(46)
def test_equal_documents_are_one_input(every):
    row = every.objects.create(json={"a": 1, "b": {"c": [1], "d": 2}})
    with installed(runner_class := runner_of(every, "json")):
        runner_class().run()
        every.objects.update(json={"b": {"d": 2, "c": [1]}, "a": 1})

        assert list(runner_class().pending()) == []
        every.objects.update(json=None)
        assert [each.pk for each in runner_class().pending()] == [row.pk]


@pytest.mark.parametrize(
    ("path", "document", "expected", "changed"),
    [
        ("json__a", {"a": 1}, 1, {"a": "1"}),
        ("json__a", {"a": "null"}, "null", {"a": None}),
        ("json__a", {"a": False}, False, {"a": "false"}),
        ("json__a", {"a": LONG}, LONG, {"a": 0.1}),
        ("json__a__0__b'% x", {"a": [{"b'% x": [1]}]}, [1], {"a": [{"b'% x": [2]}]}),
        ("json__$a", {"$a": "$"}, "$", {"$a": "$$"}),
        ("json__a", {}, None, {"a": 1}),
        ("json__a", [1], None, {"a": 1}),
        ("json__a", None, None, {"a": 1}),
        ("json__é", {"é": 1}, 1, {"é": 2}),
        ('json__a"b', {'a"b': 1}, 1, {'a"b': 2}),
    ],
)
def test_a_key_of_a_document_is_an_input(every, path, document, expected, changed):
    received = []
    every.objects.create(json=document)
    with installed(runner_class := runner_of(every, path, received=received)):
        runner_class().run()
        work_off()
        assert received == [expected]
        every.objects.update(json=(document or {}) | {"z": 9} if document != [1] else [1, 2])
        assert list(runner_class().pending()) == []
        every.objects.update(json=changed)
        assert runner_class().pending().count() == 1


@pytest.mark.parametrize(
    ("path", "document", "expected", "changed"),
    [
        ("json__0", {"0": "a"}, "a", {"0": "b"}),
        ("json__a__0", {"a": {"0": "a"}}, "a", {"a": {"0": "b"}}),
        ("json__-1", [1, 2], 2, [1, 3]),
    ],
)
def test_a_number_is_a_key_or_a_place_in_a_list(every, path, document, expected, changed):
    received = []
    every.objects.bulk_create([every(json=document), every(json=document), every(json={})])
    with installed(runner_class := runner_of(every, path, received=received)):
        runner_class().run()
        work_off()
        assert received == [expected, expected, None]
        every.objects.update(json=changed)
        assert runner_class().pending().count() == 3


@pytest.mark.parametrize(
    ("path", "documents"),
    [
        ("json__a", [{"a": None}, {}, [1], ["a"], "a", 5, None, models.Value(None, JSON)]),
        ("json__a__b", [{}, *({"a": each} for each in (None, [], ["b"], "b", 5, {"b": None}))]),
        ("json__0", [{"a": 1}, {"b": 2}, {"0": None}, [], [None], 5, "text", None]),
        ("json__a__0", [{"a": {"b": 1}}, {"a": {"b": 2}}, {"a": 5}, {"a": []}, {"a": None}, {}]),
        ("json__0__b", [{"b": 1}, {"b": 2}, [1], [[]], {"0": []}]),
        ("json__-1", [[], [], None]),
        ("json", [None, models.Value(None, JSON)]),
    ],
)
def test_documents_that_give_a_body_the_same_are_one_input(every, path, documents):
    received = []
    every.objects.create(json=documents[0])
    with installed(runner_class := runner_of(every, path, received=received)):
        runner_class().run()
        work_off()
        for document in documents:
            every.objects.update(json=document)
            assert list(runner_class().pending()) == [], document
            assert runner_class().get_instance_representation(every.objects.get()) is None

    assert received == [None]


@pytest.mark.parametrize(
    ("name", "annotation", "expected"),
    [
        ("file", str, "a/é.nii"),
        ("file", Path, Path(project.MEDIA_ROOT).absolute() / "a/é.nii"),
        ("file", Path | None, Path(project.MEDIA_ROOT).absolute() / "a/é.nii"),
        ("money", str, "10 EUR"),
        ("ip", ipaddress.IPv4Address, ipaddress.ip_address("10.0.0.1")),
        ("binary", bytes, b"\0\xff"),
    ],
)
def test_a_body_is_given_the_type_that_it_asks_for(every, name, annotation, expected):
    received = []

    def receive(value):
        received.append(value)

    receive.__annotations__["value"] = annotation
    every.objects.create(**{name: FIELDS[name][1]})
    with installed(runner_class := declare(receive, DATA_MODEL=every, INPUT_FIELDS=(name,))):
        runner_class().run()
        work_off()

    assert received == [expected]
    assert copy.deepcopy(received) == [expected]  # as when it is sent to another process


def test_a_body_may_ask_for_the_object_and_for_no_file(every):
    received = []

    def receive(value: Money):
        received.append(value.text)

    def receive_file(value: Path | None):
        received.append(value)

    def receive_path(value: Path):
        received.append(value)

    every.objects.create(money=Money("10 EUR"), file="")
    money = declare(receive, DATA_MODEL=every, INPUT_FIELDS=("money",))
    file = declare(
        receive_file, DATA_MODEL=every, INPUT_FIELDS=("file",), TITLE="File", NAME="File"
    )
    path = declare(
        receive_path, DATA_MODEL=every, INPUT_FIELDS=("file",), TITLE="Path", NAME="Path"
    )
    with installed(money, file, path):
        money().run()
        file().run()
        path().run()
        work_off()

        assert received == ["10 EUR", None]
        assert "'value' must be Path, not '' (" in Failure.objects.get().message


@pytest.fixture
def related():
    """Models of owners, of their profiles and things; a thing's owner may be missing."""
    options = {"__module__": "tests.library.models"}
    with isolate_apps("tests.library"):
        fields = {"name": models.CharField(max_length=9), "facts": models.JSONField(default=dict)}
        owner = type("Owner", (models.Model,), {**fields, **options})
        link = models.OneToOneField(owner, models.CASCADE, related_name="profile")
        profile = type("Profile", (models.Model,), {"owner": link, **options})
        dangling = models.ForeignKey(owner, models.DO_NOTHING, db_constraint=False)
        day = models.DateTimeField(default=MOMENT)
        # An order by a related row leaves out the rows without one.
        meta = type("Meta", (), {"ordering": ("owner__name",)})
        thing = type(
            "Thing", (models.Model,), {"owner": dangling, "at": day, "Meta": meta, **options}
        )
        every = (owner, profile, thing)
        with connection.schema_editor() as editor:
            for model in every:
                editor.create_model(model)
        yield every
        with connection.schema_editor() as editor:
            for model in reversed(every):
                editor.delete_model(model)


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("owner__facts__a", [1, "x", None, [1], {"b": 1}]),
        ("owner__facts__a__b__0", [{"b": [1]}, {"b": ["1"]}, {"b": []}]),
    ],
)
def test_a_key_of_a_related_document_is_an_input_whatever_its_value(related, path, values):
    owner, _, thing = related
    owners = [owner.objects.create(name=str(at)) for at in range(len(values))]
    for each, value in zip(owners, values, strict=True):
        owner.objects.filter(pk=each.pk).update(facts={"a": value, "other": 1})
        thing.objects.create(owner=each)
    thing.objects.create(owner_id=99)
    expected = [found_at(path.split("__")[2:], {"a": value}) for value in values]
    received = []
    runner = runner_of(thing, path, received=received)
    with installed(runner):
        runner().run()
        work_off()

        assert received == [*expected, None]
        owner.objects.filter(pk=owners[0].pk).update(facts={"a": values[0], "other": 2})
        assert runner().pending().count() == 0
        owner.objects.filter(pk=owners[0].pk).update(facts={"a": values[1]})
        assert runner().pending().count() == 1


@pytest.mark.faults(47)
def test_a_related_row_that_is_missing_is_none(related, django_assert_num_queries):
    owner, profile, thing = related
    with_profile, without = owner.objects.create(name="a"), owner.objects.create(name="b")
    key = profile.objects.create(owner=with_profile).pk
    thing.objects.create(owner=with_profile)
    thing.objects.create(owner_id=99)
    received = []
    owners = runner_of(
        owner, "profile__id", "name", received=received, TITLE="Owners", NAME="Owners"
    )
    things = runner_of(thing, "owner__name", received=received)
    with installed(owners, things):
        for runner in (owners(), things()):
            assert runner.run().planned == 2
            assert runner.pending().count() == 0
        work_off()
        assert received == [
            {"profile__id": key, "name": "a"},
            {"profile__id": None, "name": "b"},
            "a",
            None,
        ]
        owner.objects.create(pk=99, name="c")
        assert things().pending().count() == 1
        bare = thing.objects.get(owner_id=99)
        with django_assert_num_queries(1):
            assert things().get_instance_representation(bare) == "c"
        assert owners().explain(without).code == "succeeded"


@pytest.mark.faults(47)
@pytest.mark.parametrize("hook", ["get_base_queryset", "filter_queryset"])
@pytest.mark.parametrize(
    "read",
    [
        lambda rows: rows.all(),
        lambda rows: rows.order_by("owner__name"),
        lambda rows: rows.select_related("owner"),
        lambda rows: rows.select_related("owner__profile"),
        lambda rows: rows.select_related(),
    ],
)
@pytest.mark.parametrize("fields", [("at",), None], ids=["fields", "representation"])
def test_a_related_row_that_is_read_beside_the_row_may_be_missing(related, hook, read, fields):
    owner, _, thing = related
    thing.objects.create(owner=owner.objects.create(name="a"))
    bare = thing.objects.create(owner_id=99)
    options = {"get_instance_representation": lambda self, row: row.pk} if fields is None else {}
    options[hook] = {
        "get_base_queryset": lambda self: read(thing.objects.all()),
        "filter_queryset": lambda self, rows, log_level=20: read(rows),
    }[hook]
    with installed(runner_class := runner_of(thing, *fields or (), **options)):
        runner = runner_class()
        assert runner.run().planned == 2
        work_off()
        sweep_now(runner)
        assert runner.progress() == Progress(succeeded=2)
        assert runner.explain(bare).code == "succeeded"


def test_related_rows_that_are_there_are_read_in_the_same_query(django_assert_num_queries):
    image = Image.objects.create(
        visit=Visit.objects.create(patient=Patient.objects.create(code="a", age=3))
    )
    base = {"get_base_queryset": lambda self: Image.objects.select_related("visit__patient")}
    runner = runner_of(Image, "path", **base)
    with installed(runner), django_assert_num_queries(1):
        found = load(runner(), [image.pk], within_base=True)[image.pk]
        assert found.instance.visit.patient.age == 3


def test_an_own_key_and_transforms_are_given_as_the_database_has_them(related):
    _, _, thing = related
    thing.objects.create(owner_id=98)
    received = []
    with installed(runner_class := runner_of(thing, "owner", "at__date", received=received)):
        runner_class().run()
        work_off()
        assert received == [{"owner": 98, "at__date": DAY}]
        with timezone.override("Pacific/Kiritimati"):
            assert runner_class().pending().count() == 0
        thing.objects.update(at=MOMENT + dt.timedelta(hours=1))
        assert runner_class().pending().count() == 0
        thing.objects.update(at=MOMENT + dt.timedelta(days=1))
        assert runner_class().pending().count() == 1


@pytest.fixture
def derived():
    """A model of computed columns, and of relations to a big key and to one of text."""
    options = {"__module__": "tests.library.models"}
    with isolate_apps("tests.library"):
        key = models.BigAutoField(primary_key=True)
        big = type("Big", (models.Model,), {"id": key, **options})
        code = models.SlugField(primary_key=True)
        coded = type("Coded", (models.Model,), {"code": code, **options})
        fields = {
            "size": models.IntegerField(),
            "picture": models.ImageField(null=True),
            "double": models.GeneratedField(
                expression=F("size") * 2, output_field=models.BigIntegerField(), db_persist=True
            ),
            "big": models.ForeignKey(big, models.CASCADE, null=True),
            "coded": models.OneToOneField(coded, models.CASCADE, null=True),
        }
        model = type("Derived", (models.Model,), {**fields, **options})
        with connection.schema_editor() as editor:
            for each in (big, coded, model):
                editor.create_model(each)
        big.objects.bulk_create([big(pk=2**62), big(pk=2**62 + 1)])
        coded.objects.bulk_create([coded(pk="a-1"), coded(pk="a-2")])
        yield model
        with connection.schema_editor() as editor:
            for each in (model, coded, big):
                editor.delete_model(each)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("double", {"size": 5}, (2, 10)),
        ("picture", {"picture": "b.png"}, ("a.png", "b.png")),
        ("big", {"big_id": 2**62 + 1}, (2**62, 2**62 + 1)),
        ("big_id", {"big_id": 2**62 + 1}, (2**62, 2**62 + 1)),
        ("big__pk", {"big_id": None}, (2**62, None)),
        ("coded", {"coded_id": "a-2"}, ("a-1", "a-2")),
        ("coded__code", {"coded_id": None}, ("a-1", None)),
    ],
)
def test_computed_columns_pictures_and_relations_are_inputs(derived, name, changes, expected):
    received = []
    derived.objects.create(size=1, picture="a.png", big_id=2**62, coded_id="a-1")
    with installed(runner_class := runner_of(derived, name, received=received)):
        for value in expected:
            assert runner_class().run().planned == 1
            work_off()
            assert received.pop() == value
            with another_session():
                assert list(runner_class().pending()) == []
            derived.objects.update(**changes)
    assert set(statuses()) == {Run.Status.SUCCEEDED}
