"""The end of what a failed attempt wrote: its log, its standard output, a subprocess's stderr."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from typing import Any

import pytest
from celery.utils.log import LoggingProxy
from django.core.management import call_command

from autorun.analysis import Analysis
from autorun.execution import tails
from autorun.execution.tails import KEPT, Tail
from autorun.models import Failure, Run
from tests.engine import declare, installed, work_off
from tests.library.models import Document

logger = logging.getLogger("tests.tails")


@pytest.fixture(autouse=True)
def _listening(monkeypatch):
    """This process listens, as a worker does from its start."""
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(subprocess.Popen, "__init__", subprocess.Popen.__init__)
    monkeypatch.setattr(tails, "_is_listening", False)
    tails.listen()
    yield
    logging.setLogRecordFactory(factory)


def failures(function: Any, *titles: str, **options: Any) -> dict[str, str]:
    """What each failed run wrote last, by the title of its document."""
    documents = {Document.objects.create(title=title).pk: title for title in titles or ("a",)}
    runner = declare(function, **{"MAX_ATTEMPTS": 1, "ON_SAVE": False, **options})
    with installed(runner):
        runner().run()
        work_off()
    found = Failure.objects.values_list("run__object_id", "log_tail")
    return {documents[key]: tail for key, tail in found}


@pytest.mark.django_db
def test_the_log_and_the_output_of_a_failed_attempt_are_kept_in_order(monkeypatch):
    printed = StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    tails.listen()

    def fail(value):
        logger.warning("reading %s", value)
        print("half", "way")
        try:
            {}["mask"]
        except KeyError:
            logger.exception("no mask")
        raise ValueError(value)

    tail = failures(fail)["a"]

    assert tail.startswith("WARNING tests.tails: reading a\nhalf way\nERROR tests.tails: no mask\n")
    assert tail.endswith("KeyError: 'mask'")
    assert printed.getvalue() == "half way\n"


@pytest.mark.django_db
def test_runs_of_a_chunk_are_told_apart_and_a_success_keeps_nothing():
    def fail(value):
        logger.warning("at %s", value)
        if value != "b":
            raise ValueError(value)

    found = failures(fail, "a", "b", "c")

    assert found == {"a": "WARNING tests.tails: at a", "c": "WARNING tests.tails: at c"}


@pytest.mark.django_db(transaction=True)
def test_concurrent_runs_are_told_apart_also_in_threads_that_they_wait_for():
    async def fail(value):
        for step in range(3):
            logger.warning("%s %d", value, step)
            await asyncio.sleep(0.01)
            await asyncio.to_thread(logger.warning, "%s in a thread", value)
        raise ValueError(value)

    analysis = Analysis("Concurrent", "1.0", fail, concurrency=3)
    found = failures(fail, "a", "b", "c", ANALYSIS=analysis)

    for title, tail in found.items():
        words = [line.split(": ")[1].split()[0] for line in tail.splitlines()]
        assert words == [title] * 6


@pytest.mark.django_db
def test_rows_that_fail_in_one_call_share_the_end_of_what_it_wrote(settings):
    settings.AUTORUN = {**settings.AUTORUN, "MAX_TRACEBACK_BYTES": 2_500}

    def fail(value):
        for each in value:
            logger.warning("%s %s", each, "." * 80)
        return [ValueError(each) if each != "c" else each for each in value]

    analysis = Analysis("Batch", "1.0", fail, batch=8)

    found = failures(fail, "a", "b", "c", ANALYSIS=analysis)

    assert found["a"] == found["b"]
    heading, cut, *lines = found["a"].splitlines()
    assert (heading, cut) == ("by a call with 3 rows:", "...")
    assert [line.split()[2] for line in lines] == ["b", "c"]


@pytest.mark.django_db
@pytest.mark.parametrize("text", [True, False])
def test_what_a_subprocess_wrote_to_its_stderr_is_kept(text):
    def fail(value):
        command = [sys.executable, "-c", "import sys; sys.exit('no such atlas: token=abc')"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=text)
        except subprocess.CalledProcessError as error:
            raise RuntimeError("registration failed") from error

    assert failures(fail)["a"] == "stderr:\nno such atlas: token=********"


WRITES = "import os, sys; os.write(2, (sys.argv[1] + ' fails: é\\n').encode()); sys.exit(1)"


@pytest.mark.django_db
def test_what_a_child_writes_to_the_stderr_it_inherits_is_kept_and_passed_on(capfd):
    def fail(value):
        logger.warning("starting")
        subprocess.run([sys.executable, "-c", WRITES, value], check=True)

    found = failures(fail, "a", "b")

    assert found["a"] == "WARNING tests.tails: starting\na fails: é"
    assert found["b"] == "WARNING tests.tails: starting\nb fails: é"
    assert {"a fails: é", "b fails: é"} <= set(capfd.readouterr().err.splitlines())


@pytest.mark.django_db(transaction=True)
def test_children_of_concurrent_runs_are_told_apart():
    async def fail(value):
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITES, value)
        raise ValueError(await child.wait())

    analysis = Analysis("Concurrent", "1.0", fail, concurrency=3)
    found = failures(fail, "a", "b", "c", ANALYSIS=analysis)

    assert found == {title: f"{title} fails: é" for title in "abc"}


@pytest.mark.django_db
def test_a_grandchild_that_keeps_the_stderr_open_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(tails, "PATIENCE", 0.1)

    def fail(value):
        command = "echo begun >&2; sleep 60 & echo $! >&3; exit 3"
        subprocess.run(["/bin/sh", "-c", command], check=False, **options)
        raise ValueError(value)

    reading, writing = os.pipe()
    options = {"pass_fds": (3,), "preexec_fn": lambda: os.dup2(writing, 3)}
    began = time.monotonic()
    try:
        assert failures(fail)["a"] == "begun"
        assert time.monotonic() - began < 30
    finally:
        os.kill(int(os.read(reading, 20)), signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_a_process_outside_of_runs_has_its_own_stderr(capfd):
    subprocess.run([sys.executable, "-c", WRITES, "x"], check=False)
    child = subprocess.run([sys.executable, "-c", WRITES, "y"], stderr=subprocess.PIPE, check=False)

    assert capfd.readouterr().err == "x fails: é\n"
    assert child.stderr.decode() == "y fails: é\n"


@pytest.mark.django_db
def test_secrets_are_masked_and_the_tail_is_bounded(settings):
    settings.AUTORUN = {**settings.AUTORUN, "MAX_TRACEBACK_BYTES": 1_000}

    def fail(value):
        for number in range(5_000):
            logger.warning("line %d of postgres://me:hunter2@host/", number)
        raise ValueError(value)

    tail = failures(fail)["a"]

    assert "line 4999 of" in tail
    assert "hunter2" not in tail
    assert len(tail.encode()) <= 1_100
    assert tail.startswith("...\nWARNING tests.tails: line ")


def test_a_tail_keeps_whole_pieces_of_at_least_what_it_promises():
    tail = Tail()
    for number in range(10_000):
        tail.add(f"line {number}\n")

    whole = tail.last(10 * KEPT)

    assert KEPT - 20 < len(whole) < KEPT + 20
    assert whole.startswith("...\nline ")
    assert whole.endswith("line 9999\n")


def test_of_one_long_line_only_whole_words_are_kept():
    tail = Tail()
    tail.add("token=" + "x" * KEPT + " end")

    assert tail.last(KEPT) == "...\nend"


@pytest.mark.django_db
def test_what_celery_makes_records_of_is_noted_once_and_as_it_was_printed(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, LoggingProxy(logging.getLogger("celery.redirected")))
    tails.listen()

    def fail(value):
        print("half", "way")
        print("to", value, file=sys.stderr)
        sys.stdout.writelines(["one\n", "two\n"])
        raise ValueError(value)

    assert failures(fail)["a"] == "half way\nto a\none\ntwo"


@pytest.mark.django_db
def test_explain_failures_and_the_page_of_the_run_show_it(admin_client):
    def fail(value):
        logger.warning("no mask for %s", value)
        raise ValueError("bad")

    document = Document.objects.create(title="a")
    runner = declare(fail, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()
        said = printed("explain", runner().label, str(document.pk))
        listed = printed("failures", runner().label)
        [group] = json.loads(printed("failures", "--format", "json"))
        page = admin_client.get(
            f"/admin/autorun/run/{Run.objects.get().pk}/change/"
        ).content.decode()

    assert "WARNING tests.tails: no mask for a" in said
    assert "WARNING tests.tails: no mask for a" in listed
    assert group["log_tail"] == "WARNING tests.tails: no mask for a"
    assert "no mask for a" in page


def printed(*arguments: str) -> str:
    out = StringIO()
    call_command("autorun", *arguments, stdout=out)
    return out.getvalue()
