"""How rows are named."""

from collections.abc import Iterator

import pytest
from django.db import connection, models

from autorun.state.keys import KeyKind
from tests.engine import declare, installed, work_off
from tests.library.models import Country

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
