"""Runners as django_analyses' guide prints them, with both transcripts that it prints."""

import logging

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from autorun import analysis as analyses
from autorun.models import Run
from autorun.observe.checks import check_all
from autorun.runner import QuerySetRunner
from sample_app.models import Scan
from tests.celery_settings import configured
from tests.engine import declare, installed, work_off
from tests.library.models import Document
from tests.printed import filtered, plain

pytestmark = pytest.mark.django_db

PLAIN = """\
Scan Preprocessing v1.0: Batch Execution

🔎 Default execution queryset generation:
Querying Scan instances...
1000 instances found.

⚖ Checking execution status for the input queryset:
Filtering existing runs...
20 existing runs found.
980 instances pending execution.

🔀 Generating input specifications:
980 input specifications prepared.

🚀Successfully started Scan Preprocessing v1.0 execution over 980 Scan instances🚀
"""
FILTERED = """\
Scan Preprocessing v1.0: Batch Execution

🔎 Default execution queryset generation:
Querying Scan instances...
1000 instances found.
Filtering anatomical scans...
500 execution candidates found.

⚖ Checking execution status for the input queryset:
Filtering existing runs...
20 existing runs found.
480 instances pending execution.

🔀 Generating input specifications:
480 input specifications prepared.

🚀Successfully started Scan Preprocessing v1.0 execution over 480 Scan instances🚀
"""


@pytest.fixture(autouse=True)
def analysis():
    def preprocess(input_file: str, *, harder: bool, better: int, stronger: str) -> str:
        return input_file

    with analyses.temporarily_registered(
        analyses.Analysis("Scan Preprocessing", "1.0", preprocess)
    ):
        yield


@pytest.mark.parametrize(
    ("runner", "transcript", "remaining"),
    [
        (plain.ScanPreprocessingRunner, PLAIN, 980),
        (filtered.ScanPreprocessingRunner, FILTERED, 480),
    ],
)
def test_the_transcript_is_whole_if_the_project_logs_autorun_at_info(
    runner, transcript, remaining, caplog
):
    Scan.objects.bulk_create(
        Scan(path=f"/{n}.nii", description=("Functional", "Anatomical")[n % 2], size=1)
        for n in range(1000)
    )
    with installed(runner):
        anatomical = Scan.objects.filter(description="Anatomical")
        runner().run(anatomical[:20])
        work_off()
        caplog.set_level(logging.INFO, logger="autorun")
        caplog.clear()
        batch = runner().run()
        said = list(caplog.records)
        work_off()

        assert written(said) == transcript
        assert batch.planned == runner().progress().succeeded - 20 == remaining


@pytest.mark.django_db(transaction=True)  # within a transaction nothing is executed
def test_in_eager_mode_the_runs_are_executed_after_the_last_line(caplog):
    runner = plain.ScanPreprocessingRunner
    Scan.objects.bulk_create(Scan(path=f"/{n}.nii", size=1) for n in range(3))
    with installed(runner), configured(task_always_eager=True):
        caplog.set_level(logging.INFO, logger="autorun")
        runner().run()

        *_, last_line, chunk = written(caplog.records).splitlines()
        assert "Successfully started" in last_line
        assert "3 succeeded" in chunk
        assert runner().progress().succeeded == 3


def written(records):
    names_and_lines = ((each.name, f"{each.getMessage()}\n") for each in records)
    return "".join(line for name, line in names_and_lines if name.startswith("autorun"))


@pytest.mark.parametrize("printed", [plain, filtered])
def test_the_printed_class_passes_the_checks(printed):
    with installed(printed.ScanPreprocessingRunner):
        found = [each for each in check_all() if "printed" in str(each.obj)]

    # The sample app has a runner of the same node.
    assert [each.msg for each in found if "sample_app.Scan" not in each.msg] == []


def warnings_of_hooks(*hooks):
    runners = [
        declare(
            NAME=f"Runner{number}",
            DATA_MODEL=Document,
            INPUT_FIELDS=None,
            get_instance_representation=hook,
        )
        for number, hook in enumerate(hooks)
    ]
    with installed(*runners):
        return [each.id for each in check_all() if each.id == "autorun.W002"]


def test_two_hooks_of_one_text_are_one_hook():
    hooks = (each.ScanPreprocessingRunner.get_instance_representation for each in (plain, filtered))

    assert warnings_of_hooks(*hooks) == []


def test_two_hooks_of_one_text_differ_if_their_names_mean_different_things():
    def hook_with(shorten):
        def get_instance_representation(self, instance):
            return shorten(instance.path)

        return get_instance_representation

    assert warnings_of_hooks(hook_with(str.upper), hook_with(str.lower)) == ["autorun.W002"]


def test_the_start_of_a_filter_is_said_by_the_nearest_class_under_either_name():
    class Mixin:
        FILTER__QUERYSET_START = "Mixed in"

    class Corrected(filtered.ScanPreprocessingRunner):
        FILTER_QUERYSET_START = "Corrected"

    class Mixed(Mixin, Corrected):
        pass

    starts = [each.FILTER_QUERYSET_START for each in (QuerySetRunner, Corrected, Mixed)]
    assert starts == ["Filtering queryset...", "Corrected", "Mixed in"]


@pytest.mark.parametrize("fields", [None, (), ("title",)])
def test_an_argument_annotated_with_the_model_gets_the_instance_itself(
    fields,
):
    seen = []

    def title(value: Document) -> str:
        seen.append(value)
        return value.title

    documents = [Document.objects.create(title=str(n)) for n in range(3)]
    runner = declare(title, INPUT_FIELDS=fields)
    with installed(runner):
        runner().run()
        work_off()
        first = runner().progress().succeeded
        Document.objects.update(title="changed")
        changed = runner().pending().count()

    assert seen == documents
    assert first == 3
    assert changed == (3 if fields else 0)


def test_without_input_fields_any_argument_gets_the_instance():
    Document.objects.create(title="a")
    runner = declare(lambda value: value.title, INPUT_FIELDS=None)
    with installed(runner):
        runner().run()
        work_off()

    assert Run.objects.get().outputs == "a"


def test_the_instances_of_a_chunk_are_loaded_by_one_query():
    for n in range(5):
        Document.objects.create(title=str(n))

    def title(value: Document | None) -> str:
        return value.title

    runner = declare(title, INPUT_FIELDS=None)
    with installed(runner):
        runner().run()
        with CaptureQueriesContext(connection) as queries:
            work_off()

    table = Document._meta.db_table
    assert sum(f"{table}" in each["sql"].split("FROM")[-1][:60] for each in queries) == 1
    assert Run.objects.filter(status=Run.Status.SUCCEEDED).count() == 5
