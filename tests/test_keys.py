"""How rows are named."""

from collections.abc import Iterator
from io import StringIO
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connection, connections, models

from autorun import tasks
from autorun.declare.nodes import node_of
from autorun.models import Batch, Run
from autorun.state.keys import KeyKind, key_kind
from tests.engine import declare, installed, statuses, work_off
from tests.library.models import Country, Document, Meter, Photo

COLLATIONS = {
    "postgresql": ("en-x-icu", "POSIX"),
    "mysql": ("utf8mb4_unicode_ci", "utf8mb4_bin", "utf8mb4_nopad_bin", "latin1_swedish_ci"),
    "sqlite": ("BINARY",),
}


@pytest.mark.parametrize("collation", ["NOCASE", "RTRIM", "und-x-icu"])
def test_keys_of_a_collation_of_their_own_are_not_bounded(collation):
    """Windows follow the model's order, and bounds on runs would follow another."""
    field = models.CharField(primary_key=True, max_length=8, db_collation=collation)

    assert not KeyKind(field).is_ordered_alike(connection)


@pytest.mark.django_db
def test_many_keys_are_one_parameter_on_postgresql():
    """Not one for each, which would take psycopg longer than the query takes the server."""
    rows = [Document.objects.create() for _ in range(3)]
    keys = [row.pk for row in rows[:2]]

    named = Document.objects.filter(key_kind(Document).condition(keys, "default"))

    assert set(named) == set(rows[:2])
    _, params = named.query.sql_with_params()
    assert len(params) == (1 if connection.vendor == "postgresql" else 2)


def test_a_uuid_is_spelled_with_dashes():
    """SQLite stores it without them."""
    kind = key_kind(Photo)
    key = uuid4()

    assert [kind.spelled(key.hex), kind.spelled(str(key))] == [str(key)] * 2
    assert kind.spelled("gone") == "gone"
    assert key_kind(Document).spelled(7) == 7


@pytest.mark.parametrize("pks", [[1, 2.5], ["1", "2"], []])
def test_other_keys_are_converted_by_their_field(pks):
    kind = KeyKind(models.BigAutoField(primary_key=True))

    assert kind.condition(pks, "default") == models.Q(pk__in=pks)


@pytest.fixture(params=COLLATIONS[connection.vendor])
def collation(transactional_db: None, request: pytest.FixtureRequest) -> Iterator[str]:
    """Each collation in turn, as that of the column with the keys of countries."""
    before = {"postgresql": "default", "mysql": "utf8mb4_general_ci"}
    _collate(request.param)
    yield request.param
    Country.objects.all().delete()
    _collate(before.get(connection.vendor, ""))


def _collate(collation: str) -> None:
    alter = "ALTER TABLE library_country"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f'{alter} ALTER code TYPE varchar(8) COLLATE "{collation}"')
        elif connection.vendor == "mysql":
            cursor.execute(f"{alter} MODIFY code varchar(8) COLLATE {collation} NOT NULL")


by_python = {"get_instance_representation": lambda self, row: row.name, "INPUT_FIELDS": None}


@pytest.mark.parametrize(
    "options",
    [pytest.param({"INPUT_FIELDS": ("name",)}, id="fields"), pytest.param(by_python, id="python")],
)
def test_text_keys_of_any_collation_lead_to_their_rows(collation, options):
    keys = ["a", "b", "\u00fc"]
    # Most collations of MariaDB take these for one.
    if connection.vendor != "mysql" or "nopad" in collation:
        keys += ["a ", "A", "ue"]
    runner = declare(DATA_MODEL=Country, **options)
    with installed(runner):
        for key in keys:
            Country.objects.create(code=key, name=key)
        assert runner().run().planned == len(keys)
        work_off()

        assert runner().progress().succeeded == len(keys)
        assert runner().pending().count() == 0
        assert all(runner().has_run(country) for country in Country.objects.all())


HOSTILE = [
    *(float(each) for each in ("inf", "-inf", "nan", "1e300", "1.5")),
    *("Infinity", "-Infinity", "NaN", "1e400", "1.5", "", " ", "\0", "\ud800", "9" * 100_000),
    *(2**63, -(2**63) - 1, 10**30, 10**4000, None, True, [], [1], {}, {"pk": 1}),
]


@pytest.mark.django_db
@pytest.mark.parametrize("model", [Document, Photo, Country])
@pytest.mark.parametrize("alone", [False, True])
def test_a_value_that_cannot_be_a_key_keeps_no_other_from_being_planned(model, alone):
    field = {Document: "title", Photo: "caption"}.get(model, "name")
    row = model.objects.create(**{field: "text"}, **({"code": "at"} if model is Country else {}))
    runner = declare(DATA_MODEL=model, INPUT_FIELDS=(field,))
    with installed(runner):
        if alone:
            for key in HOSTILE:
                tasks.plan(model._meta.label, [key])
        tasks.plan(model._meta.label, [*HOSTILE, str(row.pk)])
        work_off()

        assert runner().has_run(row)
    assert statuses(node=node_of(runner())) == [Run.Status.SUCCEEDED]


@pytest.mark.django_db
@pytest.mark.parametrize("model", [Document, Photo, Country])
def test_a_backfill_of_keys_leaves_out_what_cannot_be_one(model):
    row = model.objects.create(**({"code": "at"} if model is Country else {}))
    runner = declare(DATA_MODEL=model, INPUT_FIELDS=("pk",))
    with installed(runner):
        tasks.backfill(runner().label, pks=[*HOSTILE, str(row.pk)])

    assert Batch.objects.get().planned == 1


BY_HOOK = {"get_instance_representation": lambda self, row: row.name, "INPUT_FIELDS": None}


@pytest.mark.django_db
@pytest.mark.parametrize("by_saves", [True, False])
@pytest.mark.parametrize("options", [{"INPUT_FIELDS": ("name",)}, BY_HOOK], ids=["sql", "python"])
def test_control_characters_in_keys_tell_rows_apart(options, by_saves):
    keys = ["nul", "nul\1", "nul\x1b", "nul\x7f", "nul\x85", "nul\u202e", "nul\U000f0000"]
    if connection.vendor != "postgresql":  # which refuses NUL
        keys += ["\0", "nul\0", "nul\0x", "nul\0\0", '"\0\\u0000']
    runner = declare(DATA_MODEL=Country, **options)
    with installed(runner):
        for key in keys:
            Country.objects.create(code=key, name=f"name of {key!r}")
        if by_saves:
            tasks.plan("library.Country", keys)
        runner().run()
        work_off()

        assert runner().run().planned == 0
        assert runner().progress().succeeded == len(keys)
        assert all(runner().has_run(country) for country in Country.objects.all())
    outputs = dict(Run.objects.filter(node=node_of(runner())).values_list("object_key", "outputs"))
    assert {key: found["value"] for key, found in outputs.items()} == {
        key: f"name of {key!r}" for key in keys
    }


@pytest.mark.django_db(databases=["default", "archive"])
@pytest.mark.parametrize("options", [{"INPUT_FIELDS": ("name",)}, BY_HOOK], ids=["sql", "python"])
@pytest.mark.parametrize("alias", ["default", "archive"])
def test_a_row_whose_key_cannot_be_named_costs_only_itself(alias, options, caplog):
    if alias == "default" and connection.vendor != "sqlite":
        pytest.skip("This database refuses such keys itself.")
    hostile = {b"b\xff", b"z\xff"}
    if connection.vendor == "postgresql":
        hostile |= {b"nul\0x", b"zz\0"}
    rows = Country.objects.using(alias)
    runner = declare(DATA_MODEL=Country, get_base_queryset=lambda self: rows.all(), **options)
    with installed(runner):
        for key in ("a", "ok"):
            rows.create(code=key, name="name")
        with connections[alias].cursor() as cursor:
            for key in hostile:
                cursor.execute("INSERT INTO library_country VALUES (CAST(%s AS TEXT), 'x')", [key])
        tasks.plan("library.Country", ["nul\0x", "zz\0", "ok"])
        tasks.sweep(runner().label)
        runner().backfill(force=True)
        work_off()

        assert runner().progress().succeeded == 2
        assert runner().pending().count() == 0
        assert {each["key"] for each in runner().records()} == {"a", "ok"}
        assert runner().ignore(rows.all()) == 0
        call_command("autorun", "runs", stdout=StringIO())
        if connection.vendor == "postgresql":
            unnamed = rows.get(code__startswith="nul")
            assert not runner().has_run(unnamed)
            assert runner().explain(unnamed).code == "unnameable"
            unnamed.delete()
    [warning] = [each for each in caplog.messages if "are skipped" in each]
    assert all(repr(key) in warning for key in hostile)


@pytest.mark.django_db
@pytest.mark.parametrize("options", [{"INPUT_FIELDS": ("name",)}, BY_HOOK], ids=["sql", "python"])
def test_a_row_whose_number_is_too_great_costs_only_itself(options, caplog, admin_client):
    """MariaDB's BIGINT UNSIGNED goes further than the other databases' greatest integer."""
    most, out = (1 << 63) - 1, StringIO()
    is_unsigned = connection.vendor == "mysql"
    runner = declare(DATA_MODEL=Meter, **options)
    with installed(runner):
        Meter.objects.bulk_create(Meter(number=each, name="name") for each in (1, most))
        if is_unsigned:
            great = Meter.objects.create(number=most + 1, name="name")
            tasks.plan("library.Meter", [most + 1, 1])
        tasks.sweep(runner().label)
        runner().backfill(force=True)
        runner().backfill(Meter.objects.filter(name="name"))
        work_off()

        assert runner().progress().succeeded == 2
        assert runner().pending().count() == 0
        if is_unsigned:
            assert not runner().has_run(great)
            assert runner().explain(great).code == "unnameable"
            call_command("autorun", "explain", runner().label, str(great.pk), stdout=out)
            pages = [f"/admin/autorun/node/{runner().label}/why/?row={great.pk}"]
            pages.append(f"/autorun/api/runners/{runner().label}/rows/{great.pk}/")
            texts = [out.getvalue(), *(admin_client.get(page).text for page in pages)]
            assert ["its key cannot be stored or read" in each for each in texts] == [True] * 3
            great.delete()
            assert runner().explain(Meter(number=most + 1)).code == "unsaved"
    warnings = [each for each in caplog.messages if "are skipped" in each]
    assert [str(most + 1) in each for each in warnings] == [True] * is_unsigned
