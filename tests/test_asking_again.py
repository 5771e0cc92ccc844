"""Asking for a row again: the last result is not lost, whatever becomes of the new run."""

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import F
from prometheus_client import CollectorRegistry

from autorun.contrib import prometheus
from autorun.control import interventions
from autorun.control.interventions import cancel_runner
from autorun.dispatch.releasing import release_everywhere
from autorun.models import Batch, Chunk, Run
from autorun.planning import batches
from autorun.planning.named import plan_keys
from autorun.planning.retiring import retire_missing
from autorun.runner import QuerySetRunner
from autorun.state.counts import Progress
from autorun.state.words import moment
from autorun.upkeep import folding
from autorun.upkeep.folding import prune
from tests.engine import current_runs, declare, echo, installed, statuses, work_off
from tests.library.models import Document, Photo

pytestmark = pytest.mark.django_db

ROWS = 3


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title="a") for _ in range(ROWS)]


@pytest.fixture
def runner(documents: list[Document]) -> Iterator[QuerySetRunner]:
    """A runner that has succeeded on all rows, each alone in a chunk."""
    runner_class = declare(BATCH_SIZE=1, MAX_ATTEMPTS=1)
    with installed(runner_class):
        runner_class().run()
        work_off()
        yield runner_class()


def fail(value: Any) -> Any:
    raise ValueError(value)


def current_runs_of(runner: QuerySetRunner) -> dict[int, Run]:
    return {run.object_id: run for run in Run.objects.current().of(runner.get_node())}


def let_pass(days: int) -> None:
    for model in (Run, Chunk, Batch):
        model.objects.update(finished_at=F("finished_at") - dt.timedelta(days=days))


def work_off_all_attempts() -> None:
    work_off()
    Chunk.objects.update(not_before=None)
    release_everywhere()
    work_off()


WAYS_TO_CANCEL: dict[str, Callable[[QuerySetRunner, Batch], int]] = {
    "batch": lambda runner, batch: batches.cancel(batch),
    "runner": lambda runner, batch: cancel_runner(runner.label),
    "runs": lambda runner, batch: interventions.cancel_runs([list(Run.objects.pending())]),
}


@pytest.mark.parametrize("way", WAYS_TO_CANCEL)
def test_successes_are_current_again_when_their_reruns_are_cancelled(
    runner: QuerySetRunner, way: str
) -> None:
    before = current_runs()
    batch = runner.backfill(force=True)

    assert WAYS_TO_CANCEL[way](runner, batch) == ROWS

    assert current_runs() == before
    assert runner.progress() == Progress(succeeded=ROWS)
    assert not runner.pending().exists()
    assert {run.outputs["value"] for run in current_runs().values()} == {"a"}
    assert batches.counts(batch) == batches.BatchCounts(0, 0, cancelled=ROWS, left=0)


def test_counts_stay_exact_when_the_chunks_of_the_successes_are_folded(
    runner: QuerySetRunner, set_constants: Callable[..., None]
) -> None:
    set_constants(folding, FEW=1)
    folding.fold(runner.get_node().pk, quiet=0)

    batches.cancel(runner.backfill(force=True))
    folding.fold(runner.get_node().pk, quiet=0)

    assert runner.progress() == Progress(succeeded=ROWS)


def test_a_failure_is_current_again_when_its_retry_is_cancelled(
    documents: list[Document],
) -> None:
    runner_class = declare(fail, MAX_ATTEMPTS=1)
    with installed(runner_class):
        runner = runner_class()
        runner.run()
        work_off()
        before = current_runs()

        batches.cancel(runner.retry())

        assert current_runs() == before
        assert runner.progress() == Progress(failed=ROWS)


def test_a_row_that_has_changed_is_pending_when_its_run_is_cancelled(
    runner: QuerySetRunner,
) -> None:
    Document.objects.update(title="b")

    batches.cancel(runner.backfill())

    assert runner.progress() == Progress()
    assert runner.pending().count() == ROWS


def test_a_row_that_has_changed_back_has_the_result_for_that_input(
    runner: QuerySetRunner,
) -> None:
    first = current_runs()
    Document.objects.update(title="b")
    runner.run()
    work_off()
    Document.objects.update(title="a")

    batches.cancel(runner.backfill())

    assert current_runs() == first
    assert runner.progress() == Progress(succeeded=ROWS)
    assert not runner.pending().exists()


def test_a_superseded_run_that_is_still_executed_is_current_again(runner: QuerySetRunner) -> None:
    Document.objects.update(title="b")
    runner.run()
    executed = current_runs()
    Chunk.objects.unstarted().update(state=Chunk.State.RUNNING)
    Document.objects.update(title="a")

    batches.cancel(runner.backfill())

    # With the result for "a", a save would start a second run beside the one of "b".
    assert current_runs() == executed
    assert runner.progress() == Progress(running=ROWS)
    assert runner.pending().count() == ROWS
    Chunk.objects.filter(state=Chunk.State.RUNNING).update(state=Chunk.State.QUEUED)
    work_off()
    assert runner.progress() == Progress(succeeded=ROWS)
    assert {run.outputs["value"] for run in current_runs().values()} == {"a"}


def test_a_run_of_a_deleted_row_that_is_still_executed_is_not_current_again(
    runner: QuerySetRunner, documents: list[Document]
) -> None:
    runner.backfill(force=True)
    Chunk.objects.unstarted().update(state=Chunk.State.RUNNING)
    document = documents[0]
    key = document.pk
    document.delete()
    retire_missing(runner, [key])
    Document.objects.create(pk=key, title="a")

    batches.cancel(runner.backfill())

    assert key not in current_runs()
    assert runner.pending().count() == 1


def test_a_superseded_rerun_that_is_cancelled_leaves_its_successor_current(
    runner: QuerySetRunner, documents: list[Document]
) -> None:
    batch = runner.backfill(force=True)
    Document.objects.filter(pk=documents[0].pk).update(title="b")
    plan_keys(runner, [documents[0].pk])
    successor = current_runs()[documents[0].pk]

    batches.cancel(batch)

    assert current_runs()[documents[0].pk] == successor
    assert runner.progress() == Progress(succeeded=ROWS - 1, queued=1)
    work_off()
    assert runner.progress() == Progress(succeeded=ROWS)


def test_dependent_rows_are_up_to_date_again_when_the_rerun_upstream_is_cancelled(
    documents: list[Document],
) -> None:
    upstream = declare(NAME="Upstream", TITLE="Upstream")
    dependent = declare(NAME="Dependent", DEPENDS_ON=("tests.Upstream",))
    with installed(upstream, dependent):
        upstream().run()
        work_off()
        dependent().run()
        work_off()

        batches.cancel(upstream().backfill(force=True))

        assert dependent().run().planned == 0
        assert dependent().query_progress()[0].count() == ROWS


def test_a_row_that_changes_as_its_rerun_is_cancelled_is_planned(
    runner: QuerySetRunner, documents: list[Document]
) -> None:
    """The planner has read the re-run as current, and finds the earlier success in its place."""
    batch = runner.backfill(force=True)
    Document.objects.update(title="b")
    is_cancelled = False

    def cancel_first(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal is_cancelled
        if not is_cancelled and "UPDATE " in sql and "is_current = NULL" in sql:
            is_cancelled = True
            batches.cancel(batch)
        return execute(sql, *args)

    with connection.execute_wrapper(cancel_first):
        plan_keys(runner, [document.pk for document in documents])

    assert is_cancelled
    work_off()
    assert runner.progress() == Progress(succeeded=ROWS)
    assert {run.outputs["value"] for run in current_runs().values()} == {"b"}


def test_the_last_success_stays_for_as_long_as_the_row_has_no_newer_one(
    documents: list[Document], settings: Any
) -> None:
    settings.AUTORUN = {"RETENTION": dt.timedelta(days=1)}
    verdicts = [echo, echo, fail, echo]
    runner_class = declare(lambda value: verdicts[0](value), MAX_ATTEMPTS=1)
    with installed(runner_class):
        runner = runner_class()
        runner.run()
        while len(verdicts) > 1:
            work_off()
            verdicts.pop(0)
            runner.backfill(force=True)
            if verdicts == [echo]:
                let_pass(2)
                # The first success, but neither the second one nor the failure after it.
                assert prune() == 2 * ROWS
                assert statuses() == [Run.Status.SUCCEEDED] * ROWS + [Run.Status.PENDING] * ROWS
        work_off()
        let_pass(2)
        assert prune() == ROWS

    assert statuses() == [Run.Status.SUCCEEDED] * ROWS
    assert Run.objects.current().count() == ROWS


def test_a_run_that_is_current_again_since_pruning_found_it_stays(runner: QuerySetRunner) -> None:
    found = dict(Run.objects.values_list("pk", "chunk_id"))

    folding._delete(found)

    assert runner.progress() == Progress(succeeded=ROWS)
    assert Run.objects.count() == ROWS


def test_adopted_rows_keep_the_outputs_of_their_last_success(runner: QuerySetRunner) -> None:
    Document.objects.update(title="b")
    created = Document.objects.create(title="new")

    assert runner.adopt() == ROWS + 1

    adopted = current_runs()
    assert {run.attempts for run in adopted.values()} == {0}
    assert adopted.pop(created.pk).outputs is None
    assert [run.outputs for run in adopted.values()] == [{"value": "a"}] * ROWS


def test_rows_adopted_by_a_new_version_keep_its_own_runners_outputs(
    documents: list[Document],
) -> None:
    versions = [declare(VERSION=version) for version in ("1.0", "1.1")]
    other = declare(lambda value: "of another runner", NAME="Other", VERSION="1.0.1")
    for runner_class in (versions[0], other):
        with installed(runner_class):
            runner_class().run()
            work_off()

    with installed(versions[1]):
        assert versions[1]().adopt() == ROWS

        runs = Run.objects.current().of(versions[1]().get_node())
        assert [run.outputs for run in runs] == [{"value": "a"}] * ROWS


def test_text_keys_keep_their_outputs_when_adopted() -> None:
    photo = Photo.objects.create()
    runner_class = declare(DATA_MODEL=Photo, INPUT_FIELDS=("caption",))
    with installed(runner_class):
        runner_class().run()
        work_off()
        Photo.objects.update(caption="changed")

        assert runner_class().adopt() == 1

    assert Run.objects.current().get().outputs == {"value": photo.caption}


def test_many_retries_leave_no_chunks_and_batches_behind(
    documents: list[Document], settings: Any
) -> None:
    settings.AUTORUN = {"RETENTION": dt.timedelta(days=1)}
    runner_class = declare(fail, MAX_ATTEMPTS=2, RETRY_BACKOFF=0, BATCH_SIZE=1)
    with installed(runner_class):
        runner = runner_class()
        runner.run()
        work_off_all_attempts()
        for _ in range(5):
            runner.retry()
            work_off_all_attempts()
        let_pass(2)

        assert prune() == 5 * ROWS

        assert runner.progress() == Progress(failed=ROWS)
        assert Chunk.objects.count() == ROWS
        assert Batch.objects.count() == 1
        assert batches.counts(Batch.objects.get()) == batches.BatchCounts(0, ROWS, 0, 0)
        runner.retry()
        assert runner.progress().unfinished == runner.progress().total == ROWS


@pytest.mark.parametrize("ending", ["waits", "fails"])
def test_explanations_and_pages_name_the_result_that_is_kept(
    documents: list[Document], admin_client: Any, ending: str
) -> None:
    verdicts = [echo]
    runner_class = declare(lambda value: verdicts[-1](value), MAX_ATTEMPTS=1)
    with installed(runner_class):
        runner = runner_class()
        runner.run()
        work_off()
        first = current_runs()[documents[0].pk]
        verdicts.append(fail)
        runner.backfill(force=True)
        if ending == "fails":
            work_off()

        reason = runner.explain(documents[0]).reason
        run = current_runs()[documents[0].pk]
        page = admin_client.get(f"/admin/autorun/run/{run.pk}/change/").content.decode()

    assert f"The result of {moment(first.finished_at)} is kept." in reason
    assert f'/admin/autorun/run/{first.pk}/change/">Result of' in page


def test_a_result_whose_dependency_is_missing_since_is_called_stale(
    documents: list[Document], capsys: pytest.CaptureFixture[str], admin_client: Any
) -> None:
    verdicts = [echo]
    upstream = declare(lambda value: verdicts[-1](value), NAME="Up", TITLE="Up", MAX_ATTEMPTS=1)
    dependent = declare(NAME="Dependent", DEPENDS_ON=("tests.Up",))
    with installed(upstream, dependent):
        upstream().run()
        work_off()
        dependent().run()
        work_off()
        verdicts.append(fail)
        upstream().backfill(force=True)
        work_off()

        explanation = dependent().explain(documents[0])
        assert dependent().stale().count() == ROWS
        assert not upstream().stale().exists()
        call_command("autorun", "status", dependent.get_label())
        with pytest.raises(CommandError, match="Not done"):
            call_command("autorun", "status", "--check", dependent.get_label())
        counted = admin_client.post(f"/admin/autorun/node/{dependent.get_label()}/count/")
        card = admin_client.get("/admin/autorun/node/").content.decode()
        runs = admin_client.get("/admin/autorun/run/?state=succeeded").content.decode()
        call_command("autorun", "runs", "--state", "succeeded", "--format", "json")
        run = current_runs_of(dependent())[documents[0].pk]
        page = admin_client.get(f"/admin/autorun/run/{run.pk}/change/").content.decode()
        scraped = CollectorRegistry()
        prometheus.register(scraped, pending=True)
        label = {"runner": dependent.get_label()}
        assert scraped.get_sample_value("autorun_stale_runs", label) == ROWS
        verdicts.append(echo)
        upstream().retry()
        work_off()
        assert not dependent().stale().exists()

    printed = capsys.readouterr().out
    assert "3 done, 3 stale" in printed
    assert printed.count('"stale": true') == runs.count(">stale<") == ROWS
    assert f"{ROWS} of the results are stale" in counted.content.decode()
    assert f"{ROWS} stale" in card
    assert "that result is stale" in page
    assert explanation.code == "dependency"
    assert "that result is stale" in explanation.reason
