"""An upgrade keeps the data of the schema before it, while workers of the old code still write."""

from collections.abc import Iterator

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import StateApps
from django.db.models import F

from autorun.control.interventions import cancel_runs
from autorun.exceptions import NotApplicable
from autorun.models import Batch, Run, SpilledTrigger
from autorun.state.counts import Progress
from autorun.triggers import installing, migrating
from tests.engine import declare, installed, plan_all_spilled, statuses, work_off
from tests.library.models import Document

NEWEST = "0020_help_texts"

pytestmark = pytest.mark.django_db(transaction=True)


def migrate(name: str) -> StateApps:
    executor = MigrationExecutor(connection)
    executor.migrate([("autorun", name)])
    return MigrationExecutor(connection).loader.project_state([("autorun", name)]).apps


@pytest.fixture
def before_tries() -> Iterator[StateApps]:
    """The tables of before saved rows had a lease and a number of tries."""
    yield migrate("0002_storage")
    migrate(NEWEST)


def test_saved_rows_that_wait_are_planned_after_an_upgrade(before_tries: StateApps):
    first, second = (Document.objects.create(title=title) for title in "ab")
    old = before_tries.get_model("autorun", "SpilledTrigger")
    old.objects.create(model_label="library.Document", keys=[first.pk])

    migrate(NEWEST)
    # By a worker of the old code, which does not know the new columns.
    old.objects.create(model_label="library.Document", keys=[second.pk])

    assert SpilledTrigger.objects.filter(tries=0, expires_at=None, reason="").count() == 2
    with installed(declare()):
        assert plan_all_spilled() == 2
        work_off()
        assert statuses() == [Run.Status.SUCCEEDED] * 2
    assert not SpilledTrigger.objects.exists()


@pytest.fixture
def before_facts() -> Iterator[StateApps]:
    """The tables of before runs kept what made them."""
    yield migrate("0005_unlocked_parents")
    migrate(NEWEST)


def test_runs_of_before_and_of_old_workers_have_no_facts(before_facts: StateApps):
    document = Document.objects.create(title="a")
    old = before_facts.get_model("autorun", "Run")
    named = {"node_id": 1, "chunk_id": 1, "fingerprint": "0" * 32, "status": 1}
    old.objects.create(object_id=document.pk, **named)

    migrate(NEWEST)
    old.objects.create(object_id=document.pk + 1, **named)

    assert Run.objects.filter(seconds=None, build=None).count() == 2
    assert not Run.objects.slowest().exists()


@pytest.fixture
def before_notes() -> Iterator[StateApps]:
    """The tables of before triggers noted written rows."""
    yield migrate("0007_facts")
    migrate(NEWEST)
    assert installing.remove() == []


def test_an_upgrade_keeps_batches_and_allows_triggers(before_notes: StateApps):
    content_type = ContentType.objects.get_for_model(Document)
    node = before_notes.get_model("autorun", "Node").objects.create(
        title="Echo", version="1.0", content_type_id=content_type.pk, digest="d"
    )
    batches = before_notes.get_model("autorun", "Batch").objects
    batches.create(runner="tests.EchoRunner", node=node, trigger="sweep")

    with installed(declare(ON_WRITE=True)):
        # Nothing to write notes to.
        migrating.connect()
        migrate("0007_facts")
        migrate(NEWEST)
        assert installing.install() == []
        assert [each.state for each in installing.statuses()] == ["installed"]
    # By a worker of the old code.
    batches.create(runner="tests.EchoRunner", node=node, trigger="backfill")

    assert set(Batch.objects.values_list("trigger", flat=True)) == {"sweep", "backfill"}


@pytest.fixture
def before_not_applicable() -> Iterator[StateApps]:
    """The tables of before a run could be not applicable."""
    yield migrate("0008_written_rows")
    migrate(NEWEST)


def test_counts_stay_exact_while_old_workers_know_nothing_of_rows_that_are_not_applicable(
    before_not_applicable: StateApps,
):
    def judge(value: str) -> str:
        if value == "-":
            raise NotApplicable("no pixel data")
        return value

    old_chunks = before_not_applicable.get_model("autorun", "Chunk").objects
    old_nodes = before_not_applicable.get_model("autorun", "Node").objects
    migrate(NEWEST)
    Document.objects.bulk_create(Document(title=title) for title in ("-", "good"))
    with installed(runner := declare(judge)):
        runner().run()
        # By a worker of the old code, which does not know the new columns.
        node = old_nodes.get()
        old_chunks.create(pk=1, node=node, runner=runner.get_label(), size=1, succeeded=1, state=4)
        work_off()

        assert runner().progress() == Progress(succeeded=2, not_applicable=1)
        # What it takes for the unfinished runs of a chunk.
        counted = F("succeeded") + F("failed") + F("cancelled") + F("moved")
        assert not old_chunks.exclude(size=counted).exists()


@pytest.fixture
def before_cancelling() -> Iterator[StateApps]:
    """The tables of before a running run could be cancelled."""
    yield migrate("0010_at_rest")
    migrate(NEWEST)


def test_a_run_that_an_old_worker_executes_ends_as_it_would(before_cancelling: StateApps):
    old_chunks = before_cancelling.get_model("autorun", "Chunk").objects
    migrate(NEWEST)
    document = Document.objects.create(title="a")
    with installed(runner := declare()):
        runner().run()
        # A worker of the old code knows nothing of the request, and records its success.
        old_chunks.update(state=2, token=5)
        assert cancel_runs([list(Run.objects.all())]) == 1
        old_chunks.update(state=4, succeeded=1)
        Run.objects.update(status=Run.Status.SUCCEEDED)

        assert runner().progress() == Progress(succeeded=1)
        assert not runner().pending().filter(pk=document.pk).exists()
