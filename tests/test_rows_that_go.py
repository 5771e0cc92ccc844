"""Deleted rows: their runs are retired, and a new row with their key has none of their results."""

import datetime as dt
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.core.management.sql import emit_post_migrate_signal
from django.db import DatabaseError, connection, transaction
from django.db.migrations import Migration, RenameModel
from django.db.models import F, Model, signals
from django.test.utils import isolate_apps
from django.utils import timezone

from autorun import tasks
from autorun.declare import nodes, registry
from autorun.dispatch.releasing import release_everywhere
from autorun.models import Batch, Chunk, Node, Run, SpilledTrigger
from autorun.planning import batches, retiring
from autorun.planning.on_demand import sweep_now
from autorun.runner import QuerySetRunner
from autorun.state.counts import Progress
from autorun.state.encoding import digest
from autorun.state.managers import RETIRED
from autorun.testing import run_inline
from autorun.triggers import delivery
from autorun.upkeep import folding
from autorun.upkeep.folding import prune
from autorun.upkeep.rounds import unpark
from tests.engine import (
    current_runs,
    declare,
    echo,
    installed,
    offer,
    plan_all_spilled,
    work_off,
)
from tests.library.models import Country, Document, DraftDocument, Photo, Report, Tag

pytestmark = pytest.mark.django_db

ROWS = 3


@pytest.fixture
def runner() -> Iterator[QuerySetRunner]:
    """A runner that has succeeded on all rows."""
    runner_class = declare(MAX_ATTEMPTS=1)
    with installed(runner_class):
        Document.objects.bulk_create(Document(title="a") for _ in range(ROWS))
        runner_class().run()
        work_off()
        yield runner_class()


def delete_by_sql(model: type[Model] = Document) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {connection.ops.quote_name(model._meta.db_table)}")


def retired() -> int:
    return Run.objects.filter(fingerprint=RETIRED, is_current=None).count()


def deletion(keys: list[Any]) -> Callable[..., None]:
    """The task that hears of deleted documents; it takes the time of the deletion."""
    return partial(tasks.plan, delivery.label_of_deleted(Document._meta.label), keys)


WAYS_TO_DELETE: dict[str, Callable[[], object]] = {
    "one by one": lambda: [each.delete() for each in Document.objects.all()],
    "queryset": lambda: Document.objects.all().delete(),
    "proxy": lambda: DraftDocument.objects.all().delete(),
}


@pytest.mark.parametrize("way", WAYS_TO_DELETE)
def test_runs_of_deleted_rows_are_retired_at_once(runner: QuerySetRunner, way: str) -> None:
    with run_inline():
        WAYS_TO_DELETE[way]()
        Document.objects.create(title="a")

    assert runner.progress() == Progress(succeeded=1)
    assert retired() == ROWS
    assert {run.outputs["value"] for run in current_runs().values()} == {"a"}


def test_a_cascade_is_seen() -> None:
    """A child of multi-table inheritance goes with its parent."""
    runner_class = declare(DATA_MODEL=Report)
    with installed(runner_class), run_inline():
        report = Report.objects.create(title="a")
        Document.objects.get(pk=report.pk).delete()

    assert retired() == 1


def test_models_without_a_runner_are_deleted_as_fast_as_before(runner: QuerySetRunner) -> None:
    assert signals.post_delete.has_listeners(Document)
    assert not signals.post_delete.has_listeners(Tag)

    with installed(declare(ON_SAVE=False)):
        assert not signals.post_delete.has_listeners(Document)


def test_a_deletion_that_is_rolled_back_retires_nothing(runner: QuerySetRunner) -> None:
    with run_inline(), transaction.atomic():
        Document.objects.all().delete()
        transaction.set_rollback(True)

    assert runner.progress() == Progress(succeeded=ROWS)


def test_a_row_that_goes_in_another_database_is_another_row(runner: QuerySetRunner) -> None:
    label = delivery.label_of_deleted(Document._meta.label, "archive")

    tasks.plan(label, list(current_runs()), timezone.now().timestamp())

    assert runner.progress() == Progress(succeeded=ROWS)


def test_deletions_that_no_broker_takes_wait_in_the_database(runner: QuerySetRunner) -> None:
    keys = set(current_runs())
    Document.objects.all().delete()
    delivery.spill({delivery.label_of_deleted(Document._meta.label): keys})

    assert plan_all_spilled() == ROWS

    assert runner.progress() == Progress()
    assert not SpilledTrigger.objects.exists()


def test_a_deletion_waits_for_a_worker_with_a_runner_of_the_model(
    runner: QuerySetRunner,
) -> None:
    with installed(declare(ON_SAVE=False)):
        deletion(list(current_runs()))(timezone.now().timestamp())

    assert SpilledTrigger.objects.get().model_label == "deleted:default:library.Document"


@pytest.mark.parametrize("model", [Document, Photo, Country])
@pytest.mark.parametrize("planner", ["fields", "representation"])
def test_runs_of_rows_deleted_by_sql_are_retired_by_a_sweep(
    model: type[Any], planner: str, set_constants: Callable[..., None]
) -> None:
    set_constants(retiring, DATABASE_WINDOW=2, PYTHON_WINDOW=2, KEYS_AT_ONCE=2)
    field = {Document: "title", Photo: "caption", Country: "name"}[model]
    options: dict[str, Any] = {"INPUT_FIELDS": (field,)}
    if planner == "representation":
        options["INPUT_FIELDS"] = None
        options["get_instance_representation"] = lambda self, row: getattr(row, field)
    with installed(runner_class := declare(DATA_MODEL=model, **options)):
        rows = [model(pk=str(n)) if model is Country else model() for n in range(5)]
        model.objects.bulk_create(rows)
        sweep_now(runner_class())
        work_off()
        kept = model.objects.order_by("pk")[2]
        delete_by_sql(model)
        kept.save(force_insert=True)

        sweep_now(runner_class())

        assert runner_class().progress() == Progress(succeeded=1)
        assert retired() == 4


def test_rows_that_are_only_filtered_out_keep_their_results(runner: QuerySetRunner) -> None:
    def hide(self: Any, queryset: Any, **_: Any) -> Any:
        return queryset.none()

    hidden = declare(filter_queryset=hide, get_base_queryset=lambda self: Document.objects.none())
    with installed(hidden):
        sweep_now(hidden())

    assert runner.progress() == Progress(succeeded=ROWS)


@pytest.mark.faults(43)
def test_a_key_that_is_created_anew_runs_though_its_input_is_the_same() -> None:
    runner_class = declare(
        lambda value: calls.append(value), DATA_MODEL=Country, INPUT_FIELDS=("name",)
    )
    calls: list[str] = []
    with installed(runner_class):
        with run_inline():
            Country.objects.create(code="a", name="A")
        with run_inline():
            Country.objects.all().delete()
            Country.objects.create(code="a", name="A")

        assert calls == ["A", "A"]
        assert runner_class().progress() == Progress(succeeded=1)


@pytest.mark.faults(43)
def test_a_new_row_is_given_no_result_of_its_predecessor(runner: QuerySetRunner) -> None:
    pk = Document.objects.earliest("pk").pk
    with run_inline():
        Document.objects.get(pk=pk).delete()
    Document.objects.create(pk=pk, title="a")

    batches.cancel(runner.backfill())

    assert pk not in current_runs()
    assert runner.adopt() == 1
    assert current_runs()[pk].outputs is None


@pytest.mark.faults(43)
def test_a_deletion_that_is_heard_of_again_leaves_the_new_row_alone(
    runner: QuerySetRunner,
) -> None:
    long_ago = timezone.now() - dt.timedelta(hours=1)

    deletion(list(current_runs()))(long_ago.timestamp())

    assert runner.progress() == Progress(succeeded=ROWS)


def test_a_deleted_row_that_waits_is_cancelled(runner: QuerySetRunner) -> None:
    batch = runner.backfill(force=True)

    with run_inline():
        Document.objects.all().delete()

    assert runner.progress() == Progress()
    assert batches.counts(batch) == batches.BatchCounts(0, 0, cancelled=ROWS, left=0)


def test_a_result_that_comes_after_its_row_has_gone_is_retired() -> None:
    def delete_and_create(value: str) -> str:
        if value == "a":
            Document.objects.all().delete()
            Document.objects.create(title="b")
        return value

    runner_class = declare(delete_and_create)
    with installed(runner_class), run_inline():
        Document.objects.create(title="a")

    assert retired() == 1
    assert runner_class().progress() == Progress(succeeded=1)


def test_an_earlier_success_goes_too_if_a_worker_finds_the_row_gone(
    runner: QuerySetRunner,
) -> None:
    runner.backfill(force=True)
    delete_by_sql()

    work_off()

    assert runner.progress() == Progress()
    assert retired() == 2 * ROWS


def test_counts_stay_exact_when_the_chunks_of_retired_runs_are_folded(
    runner: QuerySetRunner, set_constants: Callable[..., None]
) -> None:
    set_constants(folding, FEW=1)
    folding.fold(runner.get_node().pk, quiet=0)

    with run_inline():
        Document.objects.latest("pk").delete()
    folding.fold(runner.get_node().pk, quiet=0)

    assert runner.progress() == Progress(succeeded=ROWS - 1)


def test_retired_runs_are_pruned_after_retention(runner: QuerySetRunner) -> None:
    with run_inline():
        Document.objects.latest("pk").delete()
    for model in (Run, Chunk, Batch):
        model.objects.update(finished_at=F("finished_at") - dt.timedelta(days=1_000))

    assert prune() == 1

    assert set(current_runs()) == set(Document.objects.values_list("pk", flat=True))


def test_explain_tells_of_the_last_result_of_a_deleted_row(
    runner: QuerySetRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Document.objects.latest("pk")
    pk = row.pk
    with run_inline():
        row.delete()

    call_command("autorun", "explain", runner.label, str(pk))

    assert "The row has been deleted; Echo v1.0 succeeded at" in capsys.readouterr().out


def test_failures_of_deleted_rows_no_longer_count() -> None:
    def fail(value: str) -> None:
        raise ValueError(value)

    runner_class = declare(fail, MAX_ATTEMPTS=1)
    with installed(runner_class):
        with run_inline():
            row = Document.objects.create(title="a")
        assert runner_class().progress() == Progress(failed=1)
        with run_inline():
            row.delete()

        assert runner_class().progress() == Progress()


def test_runs_of_earlier_versions_are_retired_as_well(runner: QuerySetRunner) -> None:
    later = declare(echo, VERSION="2.0")
    with installed(later):
        later().run()
        work_off()
        with run_inline():
            Document.objects.all().delete()

    assert retired() == 2 * ROWS
    assert runner.progress() == Progress()


@pytest.mark.faults(44)
def test_a_renamed_model_keeps_its_node(runner: QuerySetRunner) -> None:
    """Django's migrations rename the content type in its place; only the digest has the name."""
    node = runner.get_node()
    Node.objects.update(digest="of the former name")
    nodes.forget_nodes()

    assert runner.get_node() == node

    assert Node.objects.get().digest == runner.get_digest()
    assert runner.run().planned == 0


def renaming(former: str, name: str) -> None:
    """What Django tells after a migration that renames a model."""
    migration = Migration("0009_rename", "library")
    migration.operations = [RenameModel(former, name)]
    emit_post_migrate_signal(0, False, "default", plan=[(migration, False)])


@pytest.mark.faults(44)
def test_the_node_of_a_renamed_model_is_known_before_a_row_is_planned(
    runner: QuerySetRunner,
) -> None:
    node = runner.get_node()
    former = digest(node.title, node.version, node.configuration, "library.former")
    Node.objects.update(digest=former)

    renaming("Former", "Document")

    assert runner.progress() == Progress(succeeded=ROWS)
    assert not runner.pending().exists()
    assert Node.objects.get().digest == runner.get_digest()


@pytest.mark.faults(44)
def test_before_migrate_no_content_type_takes_the_new_name_of_a_model() -> None:
    with isolate_apps("tests.library"):
        later = type("Later", (Model,), {"__module__": "tests.library.models"})
    unmigrated = declare(DATA_MODEL=later)
    with installed(unmigrated), pytest.raises(DatabaseError), transaction.atomic():
        unmigrated().get_node()

    assert not ContentType.objects.filter(model="later").exists()


@pytest.mark.faults(44)
def test_the_node_of_a_model_whose_content_type_is_about_to_be_renamed_is_waited_for(
    runner: QuerySetRunner,
) -> None:
    """MariaDB renames the table first, while a worker of the new code may be running."""
    node = runner.get_node()
    former = digest(node.title, node.version, node.configuration, "library.former")
    Node.objects.update(digest=former)
    ContentType.objects.filter(pk=node.content_type_id).update(model="former")
    ContentType.objects.clear_cache()
    nodes.forget_nodes()

    with pytest.raises(DatabaseError, match="has no content type"):
        runner.get_node()
    ContentType.objects.filter(pk=node.content_type_id).update(model="document")

    assert runner.get_node() == node
    assert runner.run().planned == 0


@pytest.mark.faults(44)
def test_another_configuration_does_not_take_the_node_of_a_renamed_model(
    runner: QuerySetRunner,
) -> None:
    node = runner.get_node()
    Node.objects.update(digest="of the former name")
    other = declare(create_configuration=lambda self: {"factor": 2})

    with installed(other):
        assert other().get_node() != node

    assert Node.objects.get(pk=node.pk).digest == "of the former name"


def test_a_configuration_that_is_only_equal_in_python_has_a_node_of_its_own() -> None:
    one, true = (
        declare(create_configuration=lambda self, value=value: {"value": value})
        for value in (1, True)
    )
    with installed(one):
        node = one().get_node()
    with installed(true):
        assert true().get_node() != node

    assert Node.objects.get(pk=node.pk).digest == node.digest


@pytest.mark.faults(44)
def test_a_new_model_of_the_former_name_has_a_node_of_its_own(runner: QuerySetRunner) -> None:
    node = runner.get_node()
    Node.objects.update(content_type=ContentType.objects.get_for_model(Tag))

    renaming("Document", "Tag")

    assert runner.get_node() != node
    assert runner.run().planned == ROWS


def test_a_renamed_runner_takes_the_runs_that_wait_for_the_former_name(
    runner: QuerySetRunner,
) -> None:
    runner.backfill(force=True)
    renamed = declare(NAME="RenamedRunner")
    with registry.registered(renamed, alone=True):
        offer(Chunk.objects.queued().get().pk)

        assert unpark() == 1

        release_everywhere()
        work_off()
        assert renamed().progress() == Progress(succeeded=ROWS)
