"""The transcript of `run()`, line for line."""

import io
import logging
import sys

import pytest

from autorun.runner import QuerySetRunner
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db

DEFAULT = """\
Scan Preprocessing v1.0: Batch Execution

🔎 Default execution queryset generation:
Querying Document instances...
10 instances found.
Filtering anatomical scans...
5 execution candidates found.

⚖ Checking execution status for the input queryset:
Filtering existing runs...
2 existing runs found.
3 instances pending execution.

🔀 Generating input specifications:
3 input specifications prepared.

🚀Successfully started Scan Preprocessing v1.0 execution over 3 Document instances🚀
"""

GIVEN = """\
Scan Preprocessing v1.0: Batch Execution

🔎 Input queryset validation:
Filtering anatomical scans...
5 execution candidates found.

⚖ Checking execution status for the input queryset:
Filtering existing runs...
2 existing runs found.
3 instances pending execution.

🔀 Generating input specifications:
3 input specifications prepared.

🚀Successfully started Scan Preprocessing v1.0 execution over 3 Document instances🚀
"""


def filter_queryset(self, queryset, log_level=logging.INFO):
    queryset = QuerySetRunner.filter_queryset(self, queryset, log_level=log_level)
    self.log_filter_start(log_level)
    queryset = queryset.filter(title__contains="anatomical")
    self.log_filter_end(n_candidates=queryset.count(), log_level=log_level)
    return queryset


@pytest.fixture
def runner():
    for n in range(10):
        Document.objects.create(title=f"{'anatomical' if n % 2 else 'functional'} {n}")
    runner_class = declare(
        TITLE="Scan Preprocessing",
        FILTER_QUERYSET_START="Filtering anatomical scans...",
        filter_queryset=filter_queryset,
    )
    with installed(runner_class):
        yield runner_class()


@pytest.fixture
def transcript(caplog):
    """A function that gives the lines said since it was last called."""
    caplog.set_level(logging.INFO, logger="autorun.runner")

    def lines() -> str:
        said = [r.getMessage() for r in caplog.records if r.name == "autorun.runner"]
        caplog.clear()
        return "".join(f"{line}\n" for line in said)

    return lines


def test_the_default_queryset(runner, transcript):
    runner.run(Document.objects.filter(title__in=["anatomical 1", "anatomical 3"]))
    transcript()

    runner.run()

    assert transcript() == DEFAULT


def test_a_given_queryset(runner, transcript):
    runner.run(Document.objects.filter(title__in=["anatomical 1", "anatomical 3"]))
    transcript()

    runner.run(Document.objects.all())

    assert transcript() == GIVEN


def test_without_a_filter_nothing_is_said_of_one(transcript):
    Document.objects.create(title="a")
    runner_class = declare()
    with installed(runner_class):
        runner_class().run()

    lines = transcript().splitlines()
    assert lines[2:6] == [
        "🔎 Default execution queryset generation:",
        "Querying Document instances...",
        "1 instances found.",
        "",
    ]


def test_nothing_pending_has_a_line_of_its_own(runner, transcript):
    runner.run()
    work_off()
    transcript()

    runner.run()

    assert transcript().splitlines()[-1] == (
        "Nothing pending: all 5 Document instances are up to date."
    )


def test_what_is_on_its_way_is_not_called_up_to_date(runner, transcript):
    runner.run()
    transcript()

    runner.run()

    assert transcript().splitlines()[-1] == (
        "Nothing pending: all 5 Document instances are in progress."
    )


def test_what_is_done_failed_and_on_its_way_is_told_apart(transcript):
    def fail(value):
        if value == "bad":
            raise ValueError(value)

    runner = declare(fail, MAX_ATTEMPTS=1)
    with installed(runner):
        for titles in (("a", "bad"), ("b", "c", "d")):
            Document.objects.bulk_create(Document(title=title) for title in titles)
            runner().run()
            if "a" in titles:
                work_off()
        transcript()
        runner().run()

    assert transcript().splitlines()[-1] == (
        "Nothing pending: 1 of 5 Document instances are up to date, 3 in progress, 1 failed: "
        "retry() runs these."
    )


def test_an_empty_queryset_has_a_line_of_its_own(runner, transcript):
    runner.run(Document.objects.none())

    assert transcript().splitlines()[-1] == "No Document instances to process."


def test_failed_runs_have_a_line_of_their_own(transcript):
    def fail(value):
        raise ValueError(value)

    Document.objects.create(title="a")
    Document.objects.create(title="b")
    runner_class = declare(fail, MAX_ATTEMPTS=1)
    with installed(runner_class):
        runner_class().run()
        work_off()
        transcript()
        runner_class().run()

    lines = transcript().splitlines()
    assert "2 of them failed and will not be retried." in lines
    assert lines[-1] == (
        "Nothing pending: 0 of 2 Document instances are up to date, 2 failed: retry() runs these."
    )


def test_rows_that_cannot_be_prepared_have_a_line_of_their_own(transcript):
    def broken(self, instance):
        raise RuntimeError

    Document.objects.create(title="a")
    runner_class = declare(INPUT_FIELDS=None, get_instance_representation=broken)
    with installed(runner_class):
        runner_class().run()

    assert "The input of 1 instances could not be prepared." in transcript().splitlines()


def test_a_dry_run_says_would_start(runner, transcript):
    runner.run(dry=True)

    assert transcript().splitlines()[-1] == (
        "Would start Scan Preprocessing v1.0 execution over 5 Document instances."
    )


def test_lines_are_logged_at_the_level_asked_for(runner, caplog):
    caplog.set_level(logging.DEBUG, logger="autorun.runner")

    runner.run(log_level=logging.DEBUG)

    said = [record for record in caplog.records if record.name == "autorun.runner"]
    assert {record.levelno for record in said} == {logging.DEBUG}


def test_where_no_logging_is_configured_the_lines_are_printed(runner, monkeypatch, capsys):
    monkeypatch.setattr(logging.Logger, "hasHandlers", lambda self: False)

    runner.run()

    assert "🔎 Default execution queryset generation:\n" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_emoji_gets_the_line_without_it(runner, monkeypatch, encoding):
    monkeypatch.setattr(logging.Logger, "hasHandlers", lambda self: False)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))

    runner.run()
    sys.stdout.flush()

    lines = raw.getvalue().decode(encoding).splitlines()
    assert "Default execution queryset generation:" in lines
    assert lines[-1] == (
        "Successfully started Scan Preprocessing v1.0 execution over 5 Document instances"
    )


def test_a_log_handler_without_emoji_gets_the_line_without_it(runner):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("autorun.runner")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        runner.run()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    stream.flush()

    assert b"\nDefault execution queryset generation:\n" in raw.getvalue()
