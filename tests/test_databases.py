"""Rows in one database and autorun's tables in another, either way round."""

import datetime as dt

import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.db import connection
from django.db.models.functions import ExtractHour, TruncDate
from django.utils import timezone

from autorun.exceptions import ImproperRunner
from autorun.models import Batch, Chunk, Node, Run
from autorun.observe.checks.of_databases import check_time_zones
from autorun.observe.doctor.system_checks import examine_checks
from autorun.planning.batches import counts
from autorun.planning.counting import preview
from autorun.planning.scope import Scope
from autorun.runner import Members
from autorun.state.clock import from_now
from autorun.state.leases import queued, start
from autorun.state.transactions import StateManager
from autorun.upkeep.rescue import rescue_expired
from autorun.upkeep.rounds import upkeep
from tests.engine import declare, installed, statuses, work_off
from tests.library.models import Document, Measurement, Photo, Tag

pytestmark = pytest.mark.django_db(databases=["default", "archive"])

by_python = {"get_instance_representation": lambda self, row: row.title, "INPUT_FIELDS": None}
PLANNERS = pytest.mark.parametrize(
    "options", [pytest.param({}, id="fields"), pytest.param(by_python, id="representation")]
)


def in_archive(self):
    return Document.objects.using("archive")


def process(runner_class, alias):
    """Plan and run everything, change a row, and plan and run that."""
    runner = runner_class()
    rows = [Document.objects.using(alias).create(title=f"title {n}") for n in range(3)]
    assert runner.run().planned == 3
    work_off()
    assert runner.run().planned == 0
    Document.objects.using(alias).filter(pk=rows[0].pk).update(title="new")
    assert [row.pk for row in runner.pending()] == [rows[0].pk]
    assert runner.query_progress()[0].count() == 2
    assert runner.run().planned == 1
    work_off()
    assert runner.progress().succeeded == 3
    assert runner.has_run(rows[0])


@PLANNERS
def test_rows_in_another_database(options):
    runner = declare(get_base_queryset=in_archive, **options)
    with installed(runner):
        process(runner, "archive")

    assert Run.objects.db == "default"


@PLANNERS
def test_tables_in_another_database(options, settings):
    settings.AUTORUN = {"DATABASE": "archive"}
    runner = declare(**options)
    with installed(runner):
        process(runner, "default")

        assert Node.objects.using("archive").count() == 1
    assert Run.objects.using("default").count() == 0
    assert Run.objects.using("archive").count() == 4


def test_dependencies_over_two_databases():
    first = declare(NAME="First", TITLE="First", get_base_queryset=in_archive)
    second = declare(
        NAME="Second", TITLE="Second", get_base_queryset=in_archive, DEPENDS_ON=(first,)
    )
    Document.objects.using("archive").create(title="a")
    with installed(first, second):
        assert second().run().planned == 0
        first().run()
        work_off()
        assert second().progress().succeeded == 1
        first().backfill(force=True)
        work_off()
        assert second().progress().total == 1

    assert statuses() == [Run.Status.SUCCEEDED] * 4


def test_uuid_keys_in_another_database():
    Photo.objects.using("archive").create(caption="a")
    runner = declare(
        DATA_MODEL=Photo,
        INPUT_FIELDS=("caption",),
        get_base_queryset=lambda self: Photo.objects.using("archive"),
    )
    with installed(runner):
        assert runner().run().planned == 1
        work_off()
        assert runner().run().planned == 0
        assert runner().pending().count() == 0


def test_a_queryset_of_the_wrong_database_is_refused_with_a_way_out():
    runner = declare()
    with installed(runner), pytest.raises(ImproperRunner, match=r"using\('archive'\)"):
        runner().run(Document.objects.using("archive"))


class Replica:
    """As in Django's documentation, and behind: none of the rows has arrived."""

    def db_for_read(self, model, **hints):
        return "archive"

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, other, **hints):
        return True


def test_a_router_does_not_lead_to_a_replica_of_autoruns_tables(settings):
    settings.DATABASE_ROUTERS = [Replica()]
    here = Document.objects.using("default")
    runner = declare(get_base_queryset=lambda self: here.all(), RETRY_BACKOFF=0)
    with installed(runner):
        document = here.create(title="a")
        batch = runner().run()
        batch.refresh_from_db()
        assert (batch.planned, counts(batch).left) == (1, 1)
        chunk = Chunk.objects.get()
        start(queued(chunk.pk))
        Chunk.objects.update(expires_at=from_now(-1))
        assert rescue_expired(at_most=1) == 1
        upkeep(in_any_case=True)
        work_off()
        assert preview(runner(), Scope(force=True)).planned == 1
        runner().backfill(force=True)
        work_off()

        assert runner().explain(document).code == "succeeded"
        assert Batch.objects.filter(state=Batch.State.FINISHED).count() == 2
        assert Batch.objects.defer("scope").latest("pk").scope
        assert Run.objects.latest("pk").chunk.node == runner().get_node()


def test_every_table_of_autorun_is_read_where_its_setting_says():
    managers = [model._base_manager for model in apps.get_app_config("autorun").get_models()]

    assert all(isinstance(manager, StateManager) for manager in managers)


@pytest.mark.faults(42)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("charset", ["latin1", "utf8mb3"])
def test_w210_another_character_set_on_mariadb(charset):
    """Reported by the doctor and by the checks of `migrate`."""
    if connection.vendor != "mysql":
        pytest.skip("others have no such sets")
    name = connection.settings_dict["NAME"]
    column = "ALTER TABLE autorun_failure MODIFY message LONGTEXT CHARACTER SET {} NOT NULL"
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE `{name}` CHARACTER SET {charset}")
        cursor.execute(column.format(charset))
    try:
        found = [each for each in examine_checks() if each.subject == "check autorun.W210"]
        messages = [each.id for each in run_checks(tags=["database"], databases=["default"])]
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE `{name}` CHARACTER SET utf8mb4")
            cursor.execute(column.format("utf8mb4"))

    assert f"the database {name}, autorun_failure.message" in found[0].message
    assert "autorun.W210" in messages
    assert not [each for each in examine_checks() if each.subject == "check autorun.W210"]


class Olympus(dt.tzinfo):
    """A time zone that no database knows."""

    def utcoffset(self, moment):
        return dt.timedelta(hours=3)

    dst = utcoffset

    def tzname(self, moment):
        return "Mars/Olympus"


def by_hour(self, rows, log_level=20):
    return rows.alias(hour=ExtractHour("updated_at")).filter(hour__lt=12)


def of_a_day(self, rows, log_level=20):
    day = Document.objects.annotate(day=TruncDate("updated_at")).values("day")[:1]
    return rows.filter(updated_at__date__in=day)


@pytest.mark.parametrize(
    ("options", "is_named"),
    [
        ({"INPUT_FIELDS": ("updated_at__date",)}, True),
        ({"INPUT_FIELDS": (Members("document", "updated_at__hour"),), "DATA_MODEL": Tag}, True),
        ({"filter_queryset": by_hour, **by_python}, True),
        ({"filter_queryset": of_a_day}, True),
        ({"get_base_queryset": lambda self: Document.objects.filter(updated_at__hour=3)}, True),
        ({"INPUT_FIELDS": ("updated_at",)}, False),
        ({"INPUT_FIELDS": ("taken_on__year",), "DATA_MODEL": Measurement}, False),
        ({"filter_queryset": lambda self, rows, log_level=20: 1 / 0}, False),
    ],
)
def test_w212_a_time_zone_that_the_database_does_not_know(options, is_named, monkeypatch):
    with installed(declare(**options)):
        known = list(check_time_zones(["default"]))
        monkeypatch.setattr(timezone, "get_default_timezone", Olympus)
        found = list(check_time_zones(["default"]))
        by_doctor = [each.subject for each in examine_checks()]

    assert known == list(check_time_zones(None)) == []
    assert [each.id for each in found] == ["autorun.W212"] * is_named
    assert ("check autorun.W212" in by_doctor) is is_named
    assert all("'Mars/Olympus'" in each.msg and "EchoRunner" in each.msg for each in found)


def test_a_server_without_time_zones_is_told_from_one_with_them(settings):
    settings.TIME_ZONE = "Europe/Berlin"
    with installed(declare(INPUT_FIELDS=("updated_at__date",))):
        found = list(check_time_zones(["default", "archive"]))
        Document.objects.create()
        days = Document.objects.values_list("updated_at__date", flat=True)

        assert [each.id for each in found] == ["autorun.W212"] * (days[0] is None)
