"""Rows in one database and autorun's tables in another, either way round."""

import pytest

from autorun.exceptions import ImproperRunner
from autorun.models import Node, Run
from tests.engine import declare, installed, statuses, work_off
from tests.library.models import Document, Photo

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
