"""A lone saved row is worked off by the process that planned it, where no limit is in the way."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from autorun.declare import nodes
from autorun.execution import at_once
from autorun.execution.at_once import _start
from autorun.models import Chunk, Node, Run
from autorun.runner import QuerySetRunner
from autorun.state import probes
from autorun.state.counts import Progress
from autorun.state.sql import insert_both
from autorun.tasks import plan
from tests.crashes import armed
from tests.engine import declare, installed, statuses, work_off
from tests.library.models import Country, Document

# What is worked off at once must not be within a transaction of the caller's.
pytestmark = pytest.mark.django_db(transaction=True)

SUCCEEDED, PENDING = Run.Status.SUCCEEDED, Run.Status.PENDING


@pytest.fixture(autouse=True)
def published(sent: list[Any]) -> list[Any]:
    return sent


def plan_saved(*instances: Any) -> None:
    plan(instances[0]._meta.label, [each.pk for each in instances])


def start_elsewhere(runner: QuerySetRunner, pk: int) -> None:
    """Plan and start a row from another connection."""
    try:
        _start(runner, [pk])
    finally:
        connection.close()


def test_a_new_row_succeeds_without_a_message(published: list[Any]) -> None:
    document = Document.objects.create(title="a")
    with installed(declare()):
        plan_saved(document)

    run = Run.objects.get()
    assert (run.status, run.outputs) == (SUCCEEDED, {"value": "a"})
    assert published == []


def test_a_run_whose_start_is_not_answered_is_executed(monkeypatch) -> None:
    def insert_unanswered(*rows: Any) -> int:
        insert_both(*rows)
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(at_once, "insert_both", insert_unanswered)
    document = Document.objects.create(title="a")
    with installed(declare(MAX_ATTEMPTS=1)):
        plan_saved(document)

    assert statuses() == [SUCCEEDED]
    assert Chunk.objects.get().state == Chunk.State.FINISHED


def test_it_takes_four_to_six_statements() -> None:
    first, second = (Document.objects.create(title=title) for title in "ab")
    with installed(declare()):
        plan_saved(first)  # what a process asks once

        with CaptureQueriesContext(connection) as captured:
            plan_saved(second)

    # How long a run takes is written down now and then.
    statements = [query["sql"] for query in captured]
    counted = [
        sql
        for sql in statements
        if not re.search(r"^(BEGIN|COMMIT)\b(?! NOT)|SET .run_seconds. =", sql)
    ]
    # MariaDB updates the chunk and its run by one, and PostgreSQL inserts them by one as well.
    most = {"sqlite": 6, "postgresql": 4, "mysql": 5}
    assert len(counted) == most[connection.vendor], counted


def test_a_changed_row_supersedes_its_run() -> None:
    document = Document.objects.create(title="a")
    runner_class = declare()
    with installed(runner_class):
        plan_saved(document)
        Document.objects.update(title="b")

        plan_saved(document)

        assert statuses(is_current=True) == [SUCCEEDED]
        assert Run.objects.get(is_current=True).outputs == {"value": "b"}
        assert runner_class().progress() == Progress(succeeded=1)


def test_an_unchanged_row_gets_no_second_run() -> None:
    document = Document.objects.create(title="a")
    with installed(declare()):
        plan_saved(document)
        plan_saved(document)

    assert statuses() == [SUCCEEDED]


def test_a_row_that_only_python_can_represent() -> None:
    document = Document.objects.create(title="a")
    runner_class = declare(
        INPUT_FIELDS=None, get_instance_representation=lambda self, instance: instance.title * 2
    )
    with installed(runner_class):
        plan_saved(document)

    assert Run.objects.get().outputs == {"value": "aa"}


def test_a_key_that_is_no_integer() -> None:
    country = Country.objects.create(code="fr", name="a")
    with installed(declare(DATA_MODEL=Country, INPUT_FIELDS=("name",))):
        plan_saved(country)

    assert statuses() == [SUCCEEDED]


def test_its_planning_has_a_span() -> None:
    noted: list[tuple[str, dict[str, Any]]] = []

    class Noting(probes.Span):
        def __init__(self, name: str) -> None:
            self.name = name

        def note(self, **attributes: Any) -> None:
            noted.append((self.name, attributes))

    document = Document.objects.create(title="a")
    runner_class = declare()
    probes.install(Noting)
    try:
        with installed(runner_class):
            plan_saved(document)
            plan_saved(document)
    finally:
        probes.install(None)

    label = runner_class.get_label()
    assert [attributes for name, attributes in noted if name == "autorun.plan"] == [
        {"runner": label, "candidates": 1, "planned": 1},
        {"runner": label, "candidates": 1, "planned": 0},
    ]


def test_several_rows_go_the_long_way(published: list[Any]) -> None:
    documents = [Document.objects.create(title=title) for title in "ab"]
    with installed(declare()):
        plan_saved(*documents)

    assert statuses() == [PENDING, PENDING]
    assert len(published) == 1


@pytest.mark.parametrize(
    "options", [{"MAX_PARALLEL": 1}, {"LIMIT": "openai"}, {"QUEUE": "gpu"}, {"PRIORITY": 3}]
)
def test_a_runner_with_limits_goes_the_long_way(
    options: dict[str, Any], published: list[Any]
) -> None:
    document = Document.objects.create(title="a")
    with installed(declare(**options)):
        plan_saved(document)

    assert statuses() == [PENDING]
    assert len(published) == 1


def test_a_paused_node_starts_nothing(published: list[Any]) -> None:
    document = Document.objects.create(title="a")
    runner_class = declare()
    with installed(runner_class):
        Node.objects.filter(pk=runner_class().get_node().pk).update(paused_at="2024-01-01T00:00Z")

        plan_saved(document)

        assert statuses() == [PENDING]
        assert published == []


def test_a_row_whose_last_run_is_still_going_on_waits_for_it(published: list[Any]) -> None:
    document = Document.objects.create(title="a")
    runner_class = declare()
    with installed(runner_class):
        runner_class().run()
        Chunk.objects.update(state=Chunk.State.RUNNING, expires_at="2124-01-01T00:00Z")
        Document.objects.update(title="b")

        plan_saved(document)

        assert statuses(is_current=True) == [PENDING]


def test_only_the_last_of_several_runners_is_worked_off_at_once(published: list[Any]) -> None:
    document = Document.objects.create(title="a")
    first = declare(NAME="FirstRunner", TITLE="First")
    second = declare(NAME="SecondRunner", TITLE="Second")
    with installed(first, second):
        plan_saved(document)

        assert statuses() == [PENDING, SUCCEEDED]
        assert len(published) == 1


def test_a_failure_is_tried_again_in_a_chunk_of_its_own() -> None:
    def fail(value: str) -> None:
        raise ValueError(value)

    document = Document.objects.create(title="a")
    with installed(declare(fail, RETRY_BACKOFF=0.0, MAX_ATTEMPTS=2)):
        plan_saved(document)

        assert statuses() == [PENDING]
        Chunk.objects.update(not_before=None)
        work_off()
        assert statuses() == [Run.Status.FAILED]


def test_a_row_changed_back_between_plan_and_load_is_planned_again() -> None:
    document = Document.objects.create(title="a")

    with installed(declare()):
        with armed("start.leased", act=lambda: Document.objects.update(title="b")):
            plan_saved(document)
        work_off()

    assert Run.objects.get(is_current=True).outputs == {"value": "b"}


@pytest.mark.skipif(connection.vendor == "sqlite", reason="it locks the whole database")
def test_a_locked_node_keeps_nobody_from_starting_a_row() -> None:
    document = Document.objects.create(title="a")
    runner_class = declare()
    with installed(runner_class), ThreadPoolExecutor(1) as other:
        node = runner_class().get_node()
        with transaction.atomic():
            nodes.lock(node.pk)
            other.submit(start_elsewhere, runner_class(), document.pk).result(timeout=10)

    assert Chunk.objects.get().state == Chunk.State.RUNNING


def without_its_address(self: Any) -> Any:
    raise KeyError("SCANNER_URL")


@pytest.mark.parametrize("name", ["ARunner", "ZRunner"])
@pytest.mark.parametrize(
    "options",
    [
        {"create_configuration": without_its_address},
        {"ANALYSIS": "Nobody's", "ANALYSIS_VERSION": "1.0"},
        {"DATA_MODEL": None},
        {"DATA_MODEL": "library.Document"},
    ],
    ids=["configuration", "analysis", "no model", "model"],
)
def test_a_runner_that_cannot_run_keeps_no_other_from_its_row(
    name: str, options: dict[str, Any]
) -> None:
    document = Document.objects.create(title="a")
    with installed(declare(), declare(NAME=name, **options)):
        plan_saved(document)
        work_off()

    assert statuses() == [SUCCEEDED]
