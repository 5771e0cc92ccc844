"""`manage.py autorun`: what each subcommand does, prints, and ends with."""

import datetime as dt
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.schedules import crontab
from django.core.management import call_command, execute_from_command_line
from django.core.management.base import CommandError
from django.db import connection
from django.db.models import Q
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from autorun.control import interventions
from autorun.dispatch.publishing import redirected
from autorun.exceptions import BrokerUnavailable
from autorun.management.subcommands import SUBCOMMANDS, watching
from autorun.management.subcommands.terminal import Terminal
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.observe.failures import group_failures, message_shape
from autorun.planning import batches
from autorun.state.exception_text import one_line
from autorun.state.words import harmless
from autorun.upkeep import folding
from tests.celery_settings import configured
from tests.engine import current_runs, declare, installed, plan_at_once, statuses, work_off
from tests.library.models import Country, Document, Photo

pytestmark = pytest.mark.django_db

LABEL = "tests.EchoRunner"
PROJECT = Path(__file__).parent.parent


def typed(*arguments: Any) -> str:
    """Return what the command prints to a file that is not a terminal."""
    out = io.StringIO()
    call_command("autorun", *map(str, arguments), stdout=out)
    return out.getvalue()


def typed_json(*arguments: Any) -> Any:
    return json.loads(typed(*arguments, "--format", "json"))


def fails_for_odd_titles(value: str) -> dict[str, str]:
    if int(value[-1]) % 2:
        raise ValueError(f"{value!r} is odd at 0x{int(value[-1]):04x}, line {value[-1]}")
    return {}


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}") for n in range(6)]


@pytest.fixture
def runner() -> Iterator[Any]:
    echo = declare(MAX_ATTEMPTS=1, FILTERS={"early": Q(title__lt="title 2")}, SCHEDULE=crontab())
    with installed(echo):
        yield echo()


@pytest.fixture
def failing() -> Iterator[Any]:
    runner = declare(fails_for_odd_titles, MAX_ATTEMPTS=1)
    with installed(runner):
        yield runner()


# The whole


def test_without_a_subcommand_it_prints_help():
    printed = " ".join(typed().split())

    assert all(each.summary in printed for each in SUBCOMMANDS)


@pytest.mark.parametrize("subcommand", SUBCOMMANDS, ids=lambda each: each.name)
def test_every_subcommand_has_help(subcommand, capsys):
    with pytest.raises(SystemExit) as ended:
        call_command("autorun", subcommand.name, "--help")

    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert " ".join(subcommand.description().split()) in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",), ("run",), ("plan",), ("backfill",), ("sweep",), ("retry",), ("failures",),
        ("batches",), ("pause",), ("resume",), ("cancel",), ("adopt",), ("ignore",),
        ("explain", "1"),
    ],
)  # fmt: skip
def test_an_unknown_runner_is_a_clear_error(runner, arguments):
    name, *rest = arguments
    with pytest.raises(CommandError, match=r"'tests\.EchoRuner'.*Did you mean 'tests\.EchoRunner'"):
        typed(name, "tests.EchoRuner", *rest)


@pytest.mark.parametrize(
    ("label", "is_meant"),
    [
        ("EchoRunner", True), ("tests.echorunner", True), ("tests.Echo", True),
        ("other.EchoRunner", True), ("tests.EcohRunner", True), ("tests.DigestRunner", False),
        ("tests.TestRunner", False), ("tests.Other", False),
    ],
)  # fmt: skip
def test_only_a_close_label_is_taken_for_a_slip(runner, label, is_meant):
    with pytest.raises(CommandError, match="No runner is registered as") as refused:
        typed("status", label)

    assert ("Did you mean 'tests.EchoRunner'?" in str(refused.value)) is is_meant


def without_its_address(self):
    raise KeyError("SCANNER_URL")


HOOK_RAISES = r"tests\.BrokenRunner: create_configuration\(\) raises KeyError: 'SCANNER_URL'"


@pytest.fixture
def broken(runner) -> Iterator[Any]:
    """A runner beside another one, whose `create_configuration` raises."""
    broken = declare(NAME="BrokenRunner", create_configuration=without_its_address)
    with installed(type(runner), broken):
        yield broken()


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan",), ("run",), ("backfill", "--dry"), ("backfill",), ("sweep",), ("retry",),
        ("pause",), ("resume",), ("adopt", "--no-input"), ("ignore", "--no-input"), ("failures",),
    ],
    ids=lambda each: " ".join(each),
)  # fmt: skip
def test_a_hook_that_raises_is_an_error_that_names_it(broken, documents, arguments):
    name, *rest = arguments
    with pytest.raises(CommandError, match=HOOK_RAISES):
        typed(name, "tests.BrokenRunner", *rest)


def misdirected(*args, **kwargs):
    raise ValueError("no such shelf")


@pytest.mark.parametrize("hook", ["get_base_queryset", "filter_queryset"])
@pytest.mark.parametrize(
    "arguments", [("plan",), ("run",), ("backfill",), ("sweep",), ("explain", "1"), ("run", "1")],
    ids=lambda each: " ".join(each),
)  # fmt: skip
def test_a_hook_for_rows_that_raises_is_an_error_that_names_it(documents, hook, arguments):
    name, *rest = arguments
    rest = [str(documents[0].pk) for _ in rest]
    said = rf"tests\.EchoRunner: {hook}\(\) raises ValueError: no such shelf"

    with installed(declare(**{hook: misdirected})), pytest.raises(CommandError, match=said):
        typed(name, "tests.EchoRunner", *rest)


def test_explaining_a_row_of_a_runner_whose_hook_raises_names_the_hook(broken, documents):
    with pytest.raises(CommandError, match=HOOK_RAISES):
        typed("explain", "tests.BrokenRunner", documents[0].pk)


def test_status_and_failures_of_others_are_shown_beside_a_hook_that_raises(
    broken, runner, documents
):
    runner.run()

    printed = typed("status")

    assert re.search(HOOK_RAISES, printed)
    assert "6 queued" in printed
    assert typed("failures") == "No failed runs.\n"


def test_a_schedule_that_raises_keeps_no_other_runner_from_status(runner, documents):
    other = declare(NAME="BrokenRunner", get_schedule=without_its_address)
    with installed(type(runner), other):
        printed = typed("status")

    assert "KeyError: 'SCANNER_URL'" in printed
    assert "6 pending" in printed


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "manage.py", "autorun", *arguments],
        cwd=PROJECT,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "settings.test"} | environment,
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "library.CaptionRunner", "\udcff"),
        ("retry", "library.CaptionRunner", "--cause", "\udcff"),
        ("plan", "\udcff"),
        ("status", "--watch", "\udcff"),
    ],
)
@pytest.mark.slow
def test_an_argument_that_is_not_utf_8_is_named(arguments):
    process = run_process(*arguments)

    assert process.returncode == 2
    assert process.stderr.endswith(b"an argument is not valid UTF-8: '\\udcff'\n")


@pytest.mark.once
@pytest.mark.slow
def test_exit_codes_of_a_process(tmp_path):
    nowhere = {"AUTORUN_DATABASE_NAME": str(tmp_path / "empty.sqlite3")}
    unknown = run_process("sweep", "library.CaptionRuner", **nowhere)
    unmigrated = run_process("status", **nowhere)
    unwell = run_process("doctor", **nowhere)

    assert [each.returncode for each in (unknown, unmigrated, unwell)] == [1, 1, 3]
    assert b"Did you mean 'library.CaptionRunner'?" in unknown.stderr
    assert b"manage.py migrate" in unmigrated.stderr
    assert unwell.stderr.startswith(b"CommandError: ")
    assert not [each for each in (unknown, unmigrated, unwell) if b"Traceback" in each.stderr]


@pytest.mark.once
@pytest.mark.slow
def test_an_ascii_terminal_gets_ascii(tmp_path):
    database = {"AUTORUN_DATABASE_NAME": str(tmp_path / "empty.sqlite3")}

    ended = run_process("doctor", PYTHONIOENCODING="ascii", PYTHONUTF8="0", **database)

    assert ended.returncode == 3, ended.stderr
    assert ended.stdout.isascii()
    assert b"x migrations: Not applied" in ended.stdout


def test_options_of_every_command_may_stand_behind_the_subcommand(runner):
    assert LABEL in typed("status", "--no-color", "--traceback", "-v", "0")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_never_fails_for_a_character(encoding):
    raw = io.BytesIO()
    terminal = Terminal(io.TextIOWrapper(raw, encoding=encoding, write_through=True))

    terminal.say("Año · 数据 … ✔")
    terminal.table(("#rows", "reason"), [("3", "数据")])

    printed = raw.getvalue().decode(encoding)
    assert ("数据" in printed) is (encoding == "utf-8")
    assert printed.startswith("A")


class Screen(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "options", "is_coloured"),
    [({}, {}, True), ({"NO_COLOR": "1"}, {}, False), ({}, {"no_color": True}, False)],
)
def test_colour(monkeypatch, environment, options, is_coloured):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    screen = Screen()
    terminal = Terminal(screen, **options)

    terminal.say(("red", "red"))

    assert ("\x1b[31m" in screen.getvalue()) is is_coloured
    assert terminal.has_colour is is_coloured


@pytest.mark.once
@pytest.mark.parametrize(("environment", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
@pytest.mark.slow
def test_colour_of_errors(tmp_path, environment, is_coloured):
    ours, theirs = os.openpty()
    variables = {each: value for each, value in os.environ.items() if each != "NO_COLOR"}
    variables |= {
        "DJANGO_SETTINGS_MODULE": "settings.test",
        "AUTORUN_DATABASE_NAME": str(tmp_path / "empty.sqlite3"),
        "TERM": "xterm-256color",
    }
    command = [sys.executable, "manage.py", "autorun", "explain", "nope.X", "1"]

    ended = subprocess.run(
        command,
        cwd=PROJECT,
        env=variables | environment,
        stdout=theirs,
        stderr=theirs,
        check=False,
        timeout=60,
    )
    os.close(theirs)
    printed = os.read(ours, 10_000).decode()
    os.close(ours)

    assert ended.returncode == 1
    assert "No runner is registered as 'nope.X'" in printed
    assert ("\x1b[" in printed) is is_coloured


def test_a_pipe_gets_no_colour_and_whole_lines(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    pipe = io.StringIO()

    Terminal(pipe).say(("word " * 100, "red"))

    assert pipe.getvalue() == "word " * 100 + "\n"


def test_a_command_is_never_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    pipe = io.StringIO()
    command = "manage.py autorun retry sample_app.ScanPreprocessingRunner"

    Terminal(pipe).say(f"All of its runs failed. To retry them, run `{command}` or wait.")
    Terminal(pipe).hint(f"Retry failed runs: {command}")

    assert pipe.getvalue().splitlines() == [
        "All of its runs failed. To retry them, run",
        f"`{command}`",
        "or wait.",
        f"Retry failed runs: {command}",
    ]


@pytest.mark.parametrize("columns", ["60", "30"])
def test_a_table_that_would_break_words_is_paragraphs(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    pipe = io.StringIO()
    headings = ("#run", "state", "analysis", "", "#attempts")

    Terminal(pipe).table(headings, [("347", "succeeded", "Subject Intensity v1.0", "", "1")])

    printed = pipe.getvalue()
    if columns == "60":
        assert "347   succeeded   Subject Intensity" in printed
    else:
        told = "run 347 · state succeeded · analysis Subject Intensity v1.0 · attempts 1"
        assert " ".join(printed.split()) == told
        assert all(len(line) <= 30 for line in printed.splitlines())


# Looking


def test_status_has_two_lines_a_runner_of_eighty_columns(documents, failing):
    failing.run()
    work_off()
    Document.objects.create(title="title 8")

    lines = typed("status", LABEL, "--no-color").splitlines()

    assert lines[0] == "✘ No worker is running · ✘ 3 failed"
    assert lines[1].startswith(LABEL)
    assert lines[1].endswith("Echo v1.0 · daily 03:00")
    assert lines[2] == "  ########xxxxxx..  3 done, 3 failed, 1 pending"
    assert lines[3] == "Why runs failed: manage.py autorun failures"
    assert all(len(line) <= 80 for line in lines)


def test_status_of_large_numbers_and_long_names_fits(runner, monkeypatch):
    from autorun.management.subcommands import status
    from autorun.state.counts import Progress

    progress = Progress(*[12_345_678] * 7)
    state = status.RunnerState(
        runner=SimpleNamespace(label="x" * 70, LIMIT=None, ON_WRITE=False),
        analysis="y" * 70,
        schedule="daily 03:00",
        progress=progress,
        pending=123_456,
    )
    monkeypatch.setattr(status, "states_of", lambda runners, **_: [state])

    monkeypatch.delenv("COLUMNS", raising=False)
    piped = typed("status", LABEL).splitlines()
    monkeypatch.setenv("COLUMNS", "80")
    lines = typed("status", LABEL).splitlines()

    assert piped[1] == f"{'x' * 70}  {'y' * 70} · daily 03:00"
    assert piped[2].endswith(" ignored")
    assert all(len(line) <= 80 for line in lines[:-1])
    assert "12.35M done, 12.35M failed, 123k pending" in lines[2]


def test_status_of_many_runners_is_quick_and_begins_with_the_troubled_ones(documents, failing):
    failing.run()
    work_off()
    others = [declare(NAME=f"Another{n:02}Runner", TITLE=f"Another {n}") for n in range(60)]

    with installed(*others):
        typed("status", "--no-pending")  # which makes the nodes
        with CaptureQueriesContext(connection) as captured:
            printed = typed("status", "--no-pending").splitlines()

    assert len(captured) <= 15
    assert printed[1].startswith(LABEL)


def test_status_as_json(documents, failing):
    failing.run()
    work_off()

    (state,) = typed_json("status", LABEL)

    assert (state["runner"], state["succeeded"], state["failed"]) == (LABEL, 3, 3)
    assert (state["pending"], state["paused_at"], state["model"]) == (0, None, "library.Document")


def test_workers_and_runs_are_listed(documents, failing):
    failing.run()
    work_off()
    Chunk.objects.update(worker="celery@lab-1:abc123:17")

    (worker,) = typed_json("workers")
    failed = typed_json("runs", LABEL, "--state", "failed", "--worker", "celery@lab-1")

    assert (worker["name"], worker["runs"], worker["chunks"]) == ("celery@lab-1", 6, 0)
    assert [run["state"] for run in failed] == ["failed"] * 3
    assert "celery@lab-1" in typed("workers")
    assert str(failed[0]["row"]) in typed("runs", "--row", failed[0]["row"])
    assert "No runs match." in typed("runs", "--worker", "celery@lab-2")
    with pytest.raises(CommandError, match="is not a time"):
        typed("runs", "--ended-from", "yesterday")


def test_outputs_are_listed(documents, failing):
    failing.run()
    work_off()

    found = typed_json("outputs", LABEL)
    printed = typed("outputs", LABEL, "--row", found[0]["row"])

    assert [each["outputs"] for each in found] == [{}] * 3
    assert found[0]["row"] in printed
    assert f"manage.py autorun export {LABEL} --output results.csv" in printed
    assert "No outputs yet." in typed("outputs", LABEL, "--row", 0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("manage.py autorun sta", ["status"]),
        ("python manage.py autorun status tests.Ec", [LABEL]),
        ("python manage.py autorun batches --state pau", ["paused"]),
        ("manage.py autorun retry --ca", ["--cause"]),
        ("python script.py sta", []),
    ],
)
def test_bash_completes(runner, tmp_path, line, words):
    script = tmp_path / "autorun.bash"
    script.write_text(typed("completion", "bash"))
    complete = f"""source {script}
        COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _autorun; printf '%s\\n' "${{COMPREPLY[@]}}"
    """

    found = subprocess.run(["bash", "-c", complete], capture_output=True, text=True, check=True)

    assert found.stdout.split() == words
    assert found.stderr == ""


def test_other_shells_have_a_script_too(runner):
    zsh, fish = typed("completion", "zsh"), typed("completion", "fish")

    assert zsh == f"autoload -U +X bashcompinit && bashcompinit\n{typed('completion', 'bash')}"
    runners = fish.partition("'__autorun_at status' -a '")[2].partition("'")[0]
    assert LABEL in runners.split()
    assert "'__autorun_at batches' -l state -x -a 'running paused" in fish


def test_status_without_pending_counts_none(documents, runner):
    (state,) = typed_json("status", LABEL, "--no-pending")

    assert state["pending"] is None


def test_status_check(documents, runner):
    with pytest.raises(CommandError, match=LABEL) as pending:
        typed("status", LABEL, "--check")
    runner.run()
    with pytest.raises(CommandError, match=r"\.$"):
        typed("status", LABEL, "--check")
    work_off()

    assert pending.value.returncode == 3
    assert "6 done" in typed("status", LABEL, "--check")


def test_status_of_a_runner_that_cannot_be_loaded():
    from autorun.declare import registry

    with registry.registered(declare(ANALYSIS="Gone", ANALYSIS_VERSION="1")):
        assert "No analysis is registered as 'Gone'" in typed("status", LABEL)


def test_status_shows_parked_runs_and_who_knows_why(documents, runner):
    runner.run()
    Chunk.objects.update(state=Chunk.State.PARKED, reason="It is gone.")

    printed = typed("status", LABEL)

    assert "6 parked" in printed
    assert "6 runs parked, since " in printed
    assert ": It is gone" in printed
    assert "Why rows are held up: manage.py autorun doctor" in printed


def test_status_that_counts_no_rows_says_nothing_of_rows(documents, runner):
    printed = typed("status", LABEL, "--no-pending")

    assert "no runs" in printed
    assert "no rows" not in printed


def test_explain(documents, runner):
    pk = documents[0].pk

    assert "pending, never_ran: Echo v1.0 has not run" in typed("explain", LABEL, pk)
    assert typed_json("explain", LABEL, pk)["run"] is None
    with pytest.raises(CommandError, match=r"\.$"):
        typed("explain", LABEL, pk, "--check")
    runner.run()
    work_off()
    found = typed_json("explain", LABEL, pk, "--check")
    assert (found["code"], found["run"]["status"], found["pk"]) == ("succeeded",) * 2 + (str(pk),)


@pytest.mark.parametrize(
    ("key", "message"), [("x", "not a primary key of library.Document"), ("99", "There is no")]
)
def test_explain_of_a_row_that_is_not_there(runner, key, message):
    with pytest.raises(CommandError, match=message):
        typed("explain", LABEL, key)


@pytest.mark.parametrize("model", [Document, Photo, Country])
def test_explain_of_a_row_that_was_deleted(model):
    pk = model.objects.create(pk="de" if model is Country else None).pk
    with installed(runner := declare(lambda value: None, DATA_MODEL=model, INPUT_FIELDS=())):
        runner().run()
        work_off()
        model.objects.all().delete()

        found = typed_json("explain", LABEL, pk)
        printed = typed("explain", LABEL, pk)
        with installed(declare(DATA_MODEL=model, INPUT_FIELDS=(), VERSION="2.0")):
            newer = typed("explain", LABEL, pk)

    assert (found["code"], found["pk"], found["is_pending"]) == ("deleted", str(pk), False)
    assert found["run"]["status"] == "succeeded"
    assert "deleted: The row has been deleted; Echo v1.0 succeeded at " in printed
    assert "deleted: The row has been deleted.\n" in newer


def test_explain_takes_uuids():
    photo = Photo.objects.create()
    with installed(declare(DATA_MODEL=Photo, INPUT_FIELDS=())):
        assert "never_ran" in typed("explain", LABEL, photo.pk)
        assert "never_ran" in typed("explain", LABEL, photo.pk.hex)


def test_failures_are_grouped_by_their_shape(documents, failing):
    failing.run()
    work_off()

    printed = typed("failures")
    (group,) = typed_json("failures", LABEL)

    assert "3 failed runs" in printed
    assert "ValueError: '...' is odd at <hex>, line N" in printed
    assert f"Echo v1.0 ({LABEL}): 3 failed runs" in printed
    assert f"Retry them: manage.py autorun retry {LABEL}\n" in printed
    assert (group["runs"], group["exception_class"]) == (3, "ValueError")
    assert group["runner"] == LABEL
    assert dt.datetime.fromisoformat(group["last_at"]).tzinfo is not None
    with pytest.raises(CommandError, match="3 runs failed"):
        typed("failures", "--check")


def test_failures_of_a_runner_that_is_gone(documents):
    with installed(declare(fails_for_odd_titles, MAX_ATTEMPTS=1)) as _:
        from autorun.declare import registry

        registry.get(LABEL).run()
        work_off()

    printed = typed("failures")

    assert f"Echo v1.0 ({LABEL}): 3 failed runs" in printed
    assert "autorun retry" not in printed
    assert typed_json("failures")[0]["runner"] is None


def test_failures_of_the_present_version_come_first(documents):
    for version in ("1.0", "1.1"):
        runner = declare(fails_for_odd_titles, MAX_ATTEMPTS=1, VERSION=version)
        with installed(runner):
            runner().run()
            work_off()
            printed = typed("failures")

    places = [printed.index(f"Echo v{version} ({LABEL}): 3") for version in ("1.1", "1.0")]
    assert places == sorted(places)


def test_failures_of_an_earlier_version_are_cleared(documents):
    earlier, present = declare(fails_for_odd_titles, MAX_ATTEMPTS=1), declare(VERSION="1.1")
    with installed(earlier):
        earlier().run()
        work_off()
        with pytest.raises(CommandError, match="3 runs failed"):
            typed("failures", "--check")

    with installed(present):
        printed = typed("failures", "--check")
        cleared = typed("ignore", LABEL, "--failed", "--no-input")

        assert f"Clear: manage.py autorun ignore {LABEL} --failed" in printed
        assert "3 failed runs ignored" in cleared
        assert typed("failures") == "No failed runs.\n"
        assert typed("failures", LABEL) == "No failed runs of the present version.\n"


def test_failures_within_a_time(documents, failing):
    failing.run()
    work_off()

    assert [each.runs for each in group_failures(within=dt.timedelta(hours=1))] == [3]

    Failure.objects.update(failed_at=timezone.now() - dt.timedelta(days=2))
    assert "No failed runs." in typed("failures", "--within", "24h", "--check")
    with pytest.raises(CommandError, match="write 30m, 24h or 7d"):
        typed("failures", "--within", "yesterday")


def test_failures_that_are_tried_again(documents):
    with installed(declare(fails_for_odd_titles, RETRY_BACKOFF=1000)) as _:
        from autorun.declare import registry

        registry.get(LABEL).run()
        work_off()

        assert typed_json("failures") == []
        assert [each["runs"] for each in typed_json("failures", "--all")] == [3]


@pytest.mark.parametrize(
    ("message", "shape"),
    [
        ("No such file: '/a/b.nii'\nmore", "No such file: '...'"),
        ("cannot open /data/scans/7.nii", "cannot open <path>"),
        ("the row's 'mean' isn't there", "the row's '...' isn't there"),
        ("[Errno 2] row 17 has 3.5e-3", "[Errno 2] row N has N"),
        ("id 6f1c3c52-1111-4222-8333-abcdefabcdef", "id <uuid>"),
        ("", ""),
    ],
)
def test_the_shape_of_a_message(message, shape):
    assert message_shape(message) == shape


def test_batches(documents, failing):
    batch = failing.backfill()
    work_off()

    printed = typed("batches")
    (found,) = typed_json("batches", LABEL, "--state", "finished")

    assert f"{batch.pk} backfill of {LABEL}" in printed
    assert "6 planned, 3 done, 3 failed" in printed
    assert (found["planned"], found["succeeded"], found["failed"], found["left"]) == (6, 3, 3, 0)
    assert typed_json("batches", "--state", "running") == []


def test_a_batch_that_no_worker_picks_up_says_so(documents, runner, sent, monkeypatch):
    batch = runner.backfill()
    plan_at_once(sent)
    Chunk.objects.update(
        state=Chunk.State.QUEUED, published_at=timezone.now() - dt.timedelta(seconds=40)
    )

    def resume(seconds):
        Chunk.objects.update(published_at=timezone.now())
        work_off()

    listed, status = typed("batches"), typed("status", "--no-pending")
    terminal = Terminal(out := io.StringIO())
    monkeypatch.setattr(time, "sleep", resume)
    watching.watch(batch, terminal)

    assert "no worker" in listed
    assert "manage.py autorun doctor" in listed
    assert status.startswith("✘ No worker is picking up tasks")
    assert out.getvalue().startswith("No worker is picking up tasks: manage.py autorun doctor")


def test_sweeps_that_found_nothing_are_left_out(documents, runner):
    adopted = typed("adopt", LABEL, "--no-input")
    typed("sweep", LABEL)

    assert "6 rows" in adopted
    assert "No batches.\nSweeps that found nothing are hidden" in typed("batches")
    assert f"sweep of {LABEL}" in typed("batches", "--all")
    assert len(typed_json("batches", "--all")) == 1
    assert typed_json("batches") == []


def test_doctor(configured_eagerly):
    out = io.StringIO()
    with pytest.raises(CommandError, match="error") as raised:
        call_command("autorun", "doctor", "--format", "json", stdout=out)
    findings = json.loads(out.getvalue())
    shown = io.StringIO()
    with pytest.raises(CommandError):
        call_command("autorun", "doctor", stdout=shown)

    assert raised.value.returncode == 3
    assert findings[0].keys() == {"level", "subject", "message", "hint"}
    assert "eager mode" in shown.getvalue()


@pytest.mark.parametrize(
    ("levels", "options", "code"),
    [
        (("ok", "ok"), (), 0),
        (("ok", "warning"), (), 0),
        (("ok", "warning"), ("--strict",), 3),
        (("error", "ok"), (), 3),
    ],
)
def test_doctor_ends_with_3_where_something_is_wrong(set_constants, levels, options, code):
    from autorun.observe import doctor

    findings = [doctor.Finding(level, "It says so.", subject="broker") for level in levels]
    set_constants(doctor, FIRST=(), THEN=(lambda: findings,))
    try:
        typed("doctor", *options)
        ended = 0
    except CommandError as error:
        ended = error.returncode

    assert ended == code


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@localhost:6379/0", "redis://:**@localhost:6379/0"),
    ],
)
def test_doctor_hides_a_password_only_where_there_is_one(url, shown):
    from autorun.observe.doctor import messaging

    with configured(broker_write_url=url):
        assert messaging._shown_url() == shown


def test_doctor_counts_one(documents, runner):
    from autorun.models import Pulse
    from autorun.observe.doctor.backlog import examine_held_up
    from autorun.observe.doctor.messaging import examine_upkeep

    Document.objects.exclude(pk=documents[0].pk).delete()
    runner.run()
    Chunk.objects.update(state=Chunk.State.PARKED, reason="It is gone.")
    Pulse.objects.update_or_create(name="upkeep", defaults={"beat_at": timezone.now()})

    found = next(examine_held_up()).message
    assert found.startswith(f"{LABEL}: 1 run parked since ")
    assert found.endswith(": It is gone.")
    assert next(examine_upkeep()).message == "Last round less than 1 min ago."


@pytest.fixture
def configured_eagerly() -> Iterator[None]:
    with configured(task_always_eager=True):
        yield


# Planning


def test_plan_counts_rows_by_reason(documents, failing):
    failing.run(Document.objects.exclude(title="title 0"))
    work_off()
    Document.objects.filter(title="title 2").update(title="title 6")

    found = typed_json("plan", LABEL, "--sample", "2")

    groups = {each["reason"]: each for each in found["groups"]}
    assert {reason: each["rows"] for reason, each in groups.items()} == {
        "missing": 1, "changed": 1, "preparable": 0, "failed": 3, "done": 1, "under_way": 0,
        "not_applicable": 0, "unprepared": 0, "filtered": 0,
    }  # fmt: skip
    assert groups["changed"]["samples"] == [str(documents[2].pk)]
    assert len(groups["failed"]["samples"]) == 2
    assert found["planned"] == 2
    assert Run.objects.filter(status=Run.Status.PENDING).count() == 0


@pytest.mark.parametrize(
    ("arguments", "planned"),
    [
        (("--only", "failed"), 3),
        (("--only", "missing"), 1),
        (("--only", "all"), 5),
        (("--force",), 6),
        (("--filter", "early"), 0),
        (("--limit", "1"), 1),
    ],
)
def test_a_plan_is_what_the_backfill_does(documents, arguments, planned):
    filters = {"early": Q(title="title 4")}
    with installed(echo := declare(fails_for_odd_titles, MAX_ATTEMPTS=1, FILTERS=filters)):
        echo().run(Document.objects.exclude(title="title 0"))
        work_off()
        Document.objects.filter(title="title 2").update(title="title 6")

        found = typed_json("plan", LABEL, *arguments)
        before = Run.objects.count()
        printed = typed("backfill", LABEL, *arguments)

    assert found["planned"] == planned
    assert Run.objects.count() - before == planned
    assert re.search(rf"{planned} runs? planned", printed)


def test_plan_tells_what_is_filtered_and_what_cannot_be_prepared(documents):
    def filter_queryset(self, queryset, log_level=0):
        return queryset.exclude(title="title 1")

    def get_instance_representation(self, instance):
        return 1 / int(instance.title[-1])

    options = {
        "INPUT_FIELDS": None,
        "filter_queryset": filter_queryset,
        "get_instance_representation": get_instance_representation,
    }
    with installed(declare(**options)):
        groups = {each["reason"]: each["rows"] for each in typed_json("plan", LABEL)["groups"]}
        printed = typed("plan", LABEL, "--sample", "3")

    assert (groups["missing"], groups["unprepared"], groups["filtered"]) == (4, 1, 1)
    assert "recorded as failed" in printed
    assert "4 runs to plan" in printed
    assert f"manage.py autorun backfill {LABEL}" in printed


def test_plan_offers_to_adopt_once_every_row_has_changed(documents):
    offer = f"keep results: manage.py autorun adopt {LABEL}"
    with installed(declare()):
        typed("run", LABEL)
        work_off()
        Document.objects.filter(title="title 0").update(title="changed")
        assert offer not in typed("plan", LABEL)

    with installed(declare(INPUT_FIELDS=("title", "state"))):
        assert offer in typed("plan", LABEL)
        typed("adopt", LABEL, "--no-input")
        assert "Nothing to plan" in typed("plan", LABEL)


def test_plan_offers_to_keep_results_of_which_only_the_definition_changed(documents):
    offer = f"keep results: manage.py autorun adopt {LABEL} --same-input"
    with installed(declare()):
        typed("run", LABEL)
        work_off()
        Document.objects.filter(title="title 0").update(title="changed")
        assert offer not in typed("plan", LABEL)

    with installed(declare(INPUT_FIELDS=("title", "state"))):
        assert f"5 changed rows changed only by INPUT_FIELDS; {offer}" in typed("plan", LABEL)
        assert "5 pending rows" in typed("adopt", LABEL, "--same-input", "--dry")
        assert "5 rows" in typed("adopt", LABEL, "--same-input", "--no-input")
        printed = typed("plan", LABEL)

    assert "1 run to plan" in printed
    assert offer not in printed


def test_plan_check(documents, runner):
    with pytest.raises(CommandError, match="6 runs to plan"):
        typed("plan", LABEL, "--check")
    runner.adopt()
    assert "Nothing to plan." in typed("plan", LABEL, "--check")


def test_force_and_only_are_refused_together(runner):
    with pytest.raises(CommandError, match="leave --only out"):
        typed("backfill", LABEL, "--force", "--only", "failed")


def test_an_unknown_filter_is_refused(runner):
    with pytest.raises(CommandError, match=r"no filter 'erly' in FILTERS\. There are: early"):
        typed("backfill", LABEL, "--filter", "erly")


def test_run_says_what_goes_on(documents, runner):
    printed = typed("run", LABEL, "--max-total", "4")

    assert "Echo v1.0: Batch Execution" in printed
    assert "over 4 Document instances" in printed
    assert Run.objects.count() == 4


def test_run_dry_and_of_some_keys(documents, runner):
    printed = typed("run", LABEL, documents[0].pk, documents[1].pk, "--dry")

    assert "Would start Echo v1.0 execution over 2 Document instances." in printed
    assert not Run.objects.exists()


def test_sweep(documents, runner):
    assert "6 candidates, 0 up to date, 6 runs planned" in typed("sweep", LABEL)
    assert "6 candidates, 0 up to date, 6 in progress, 0 runs planned" in typed("sweep", "--all")
    work_off()
    assert "6 candidates, 6 up to date, 0 runs planned" in typed("sweep", LABEL)
    with pytest.raises(CommandError, match="Which runner"):
        typed("sweep")
    assert Batch.objects.filter(trigger=Batch.Trigger.SWEEP, runner=LABEL).count() == 3


def test_sweep_and_run_name_what_failed_for_good(documents, failing):
    assert "autorun retry" not in typed("run", LABEL)
    work_off()
    Document.objects.create(title="title 8")

    swept = typed("sweep", LABEL)

    assert "7 candidates, 3 up to date, 3 failed, 1 run planned." in swept
    assert f"Retry failed runs: manage.py autorun retry {LABEL}\n" in swept
    assert f"manage.py autorun retry {LABEL}\n" in typed("run", LABEL)


def test_sweep_and_backfill_by_a_worker(
    documents, runner, sent, django_capture_on_commit_callbacks
):
    assert "sweep queued." in typed("sweep", LABEL, "--queue")
    with django_capture_on_commit_callbacks(execute=True):
        typed("backfill", LABEL, documents[0].pk, "--queue", "--only", "all", "--window", "5")

    batch = Batch.objects.get()
    assert [(each.task, each.args) for each in sent] == [
        ("autorun.sweep", (LABEL,)),
        ("autorun.backfill", (LABEL, None, None, None, False, None, None, batch.pk)),
    ]
    assert (batch.window, batch.planned_at) == (5, None)
    assert (batch.scope["pks"], batch.scope["only"]) == ([str(documents[0].pk)], "all")
    assert batch.requested_by.endswith("(command line)")
    assert not Run.objects.exists()


def test_watching_a_backfill_that_no_worker_starts_ends(documents, runner, sent, monkeypatch):
    monkeypatch.setattr(watching, "START_TIMEOUT", 0.0)

    with pytest.raises(CommandError, match="No worker has started the backfill"):
        typed("backfill", LABEL, "--queue", "--watch")


def test_a_broker_that_is_away_is_a_clear_error(runner):
    def refuse(messages):
        raise BrokerUnavailable("ConnectionRefusedError: nobody there")

    with redirected(refuse), pytest.raises(CommandError, match="nobody there"):
        typed("sweep", LABEL, "--queue")


def test_backfill_of_some_keys_with_a_window(documents, runner):
    printed = typed("backfill", LABEL, documents[0].pk, documents[3].pk, "--window", "1")

    batch = Batch.objects.get()
    assert set(current_runs()) == {documents[0].pk, documents[3].pk}
    assert batch.window == 1
    assert batch.requested_by.endswith("(command line)")
    assert f"manage.py autorun pause {batch.pk}" in printed


MANY_DIGITS = "9" * 20
WHOLE_NUMBER = "is not a whole number from 1 to 2,147,483,647: write 1000, for example"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("backfill", LABEL, "--limit", MANY_DIGITS), WHOLE_NUMBER),
        (("backfill", LABEL, "--window", "3000000000"), WHOLE_NUMBER),
        (("backfill", LABEL, "--limit", "abc"), f"'abc' {WHOLE_NUMBER}"),
        (("run", LABEL, "--max-total", "0"), WHOLE_NUMBER),
        (("plan", LABEL, "--sample", "²"), WHOLE_NUMBER),
        (("batches", "--limit", MANY_DIGITS), WHOLE_NUMBER),
        (("batches", "--limit", "9" * 5000), WHOLE_NUMBER),
        (("failures", "--within", "99999999999d"), "is longer than 36500d: leave the option out"),
        (("failures", "--within", "9999999d"), "is longer than 36500d: leave the option out"),
        (("failures", "--within", "9" * 5000 + "m"), "is longer than 36500d"),
        (("failures", "--within", "²d"), "is not a time span: write 30m, 24h or 7d"),
        (
            ("retry", LABEL, MANY_DIGITS),
            "is not a primary key of library.Document, which has BigAuto",
        ),
        (("explain", LABEL, MANY_DIGITS), "is not a primary key of library.Document"),
        (("pause", "²"), "No runner is registered as '²'"),
        (("pause", MANY_DIGITS), f"There is no batch {MANY_DIGITS}. See: manage.py autorun"),
        (("resume", "9" * 5000), "See: manage.py autorun batches"),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_a_wrong_argument_is_named_with_what_to_write(runner, arguments, said):
    with pytest.raises(CommandError, match=re.escape(said)):
        typed(*arguments)


def test_the_longest_time_and_the_largest_key_are_taken(documents, runner):
    assert "No failed runs." in typed("failures", "--within", "36500d")
    with pytest.raises(CommandError, match=r"There is no library\.Document with the key"):
        typed("explain", LABEL, 2**63 - 1)
    assert "No batches." in typed("batches", "--limit", 2**31 - 1)


def test_what_plans_says_so_as_json(documents, failing):
    swept = typed_json("sweep", LABEL)
    work_off()
    ran = typed_json("run", LABEL)
    filled = typed_json("backfill", LABEL, "--only", "all", "--limit", "1")
    dry = typed_json("backfill", LABEL, "--only", "failed", "--dry")
    retried = typed_json("retry", LABEL)
    Document.objects.create(title="title 8")
    adopted = [typed_json("adopt", LABEL, *how) for how in (["--dry"], ["--no-input"])]

    assert [each["runner"] for each in swept] == [LABEL]
    assert (swept[0]["batch"]["planned"], swept[0]["failed_for_good"]) == (6, 0)
    assert (ran["trigger"], ran["planned"], ran["candidates"]) == ("code", 0, 6)
    assert (filled["trigger"], filled["planned"]) == ("backfill", 1)
    assert dry == {"runner": LABEL, "planned": 2}
    assert (retried["planned"], retried["left"]) == (2, 2)
    assert adopted == [
        {"runner": LABEL, "rows": 1, "dry": True},
        {"runner": LABEL, "rows": 1, "dry": False},
    ]


def test_a_dry_run_as_json_has_no_batch(documents, runner):
    found = typed_json("run", LABEL, "--dry")

    assert (found["id"], found["planned"]) == (None, 6)
    assert not Batch.objects.exists()


def test_a_queued_sweep_as_json_has_no_batch(runner, sent):
    assert typed_json("sweep", LABEL, "--queue") == [
        {
            "runner": LABEL,
            "queued": True,
            "failed_for_good": None,
            "under_way": None,
            "batch": None,
        }
    ]


@pytest.mark.parametrize("name", ["backfill", "retry"])
def test_watching_is_for_people(name, documents, runner):
    with pytest.raises(CommandError, match="--watch cannot be combined with --format json"):
        typed(name, LABEL, "--watch", "--format", "json")
    assert not Batch.objects.exists()


@pytest.mark.parametrize("name", ["run", "backfill", "retry", "adopt", "ignore"])
def test_keys_of_no_row_are_named_and_the_others_done(name, documents, failing):
    failing.run(Document.objects.filter(pk=documents[1].pk))
    work_off()
    key = documents[1 if name == "retry" else 2].pk
    unasked = ["--no-input"] if name in ("adopt", "ignore") else []
    before = statuses(is_current=True)

    with pytest.raises(CommandError, match=r"no library\.Document with the key 98765, 98766\.$"):
        typed(name, LABEL, key, "98765", "98766", *unasked)

    assert statuses(is_current=True) != before


@pytest.mark.parametrize("name", ["run", "backfill", "retry", "adopt", "ignore"])
def test_with_keys_of_no_row_alone_nothing_is_begun(name, runner):
    with pytest.raises(CommandError, match="with the key 98765") as raised:
        typed(name, LABEL, "98765")

    assert raised.value.returncode == 1
    assert not Batch.objects.exists()


@pytest.mark.parametrize("way", ["keys", "field", "standard input"])
def test_touched_rows_run_again_though_nothing_in_the_database_changed(
    way, documents, runner, monkeypatch
):
    runner.backfill()
    work_off()
    touched = documents[1:3]
    keys, titles = [each.pk for each in touched], [each.title for each in touched]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(titles)))
    named = {"keys": keys, "field": [*titles, "--field", "title"]}
    arguments = named.get(way, ["-", "--field", "title"])

    printed = typed("touch", "library.document", *arguments)
    work_off()

    assert re.fullmatch(rf"{LABEL}: batch \d+, 2 runs planned\.\n", printed)
    again = Run.objects.filter(is_current=None).values_list("object_id", flat=True)
    assert sorted(again) == sorted(keys)


def test_touch_leaves_a_dependent_runner_to_the_one_that_it_waits_for(documents, runner):
    after = declare(NAME="AfterRunner", TITLE="After", DEPENDS_ON=(LABEL,))
    with installed(type(runner), after):
        runner.backfill()
        work_off()

        (batch,) = typed_json("touch", "library.Document", documents[0].pk)
        work_off()

        assert batch["runner"] == LABEL
        rows = Run.objects.of(after().get_node()).filter(object_id=documents[0].pk)
        assert rows.count() == 2


def test_touch_names_what_no_row_has_and_does_the_rest(documents, runner):
    with pytest.raises(CommandError, match=r"^No library\.Document has the title no, none\.$"):
        typed("touch", "library.Document", "none", documents[0].title, "no", "--field", "title")

    assert Batch.objects.get().planned == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["library.Paper", "1"], "No runner processes 'library.Paper'. Models with runners: lib"),
        (["library.Document", "1", "--field", "titel"], "--field titel: Document has no field"),
        (["library.Document", "first"], "--field pk: .*must be an integer"),
    ],
)
def test_what_touch_cannot_find_is_an_error_that_names_it(arguments, error, runner):
    with pytest.raises(CommandError, match=error):
        typed("touch", *arguments)

    assert not Batch.objects.exists()


def test_backfill_names_what_it_leaves_alone(documents, failing):
    typed("backfill", LABEL)
    work_off()

    printed = typed("backfill", LABEL)

    assert "Skipped 3 failed rows (no attempts left)." in printed
    assert f"manage.py autorun retry {LABEL}\n" in printed
    assert "Skipped" not in typed("backfill", LABEL, documents[0].pk)


def test_times_name_their_zone(documents, failing, settings):
    settings.TIME_ZONE = "Asia/Tokyo"
    batch = failing.backfill()
    work_off()

    assert re.search(r"\d\d:\d\d:\d\d JST  6 planned", typed("batches"))
    assert "last (JST)" in typed("failures")
    assert re.search(r" at \S+ \S+ JST", typed("explain", LABEL, documents[0].pk))
    assert typed_json("batches")[0]["created_at"].endswith("Z")
    assert batch.planned == 6


def test_backfill_dry_records_nothing(documents, runner):
    assert "would plan 6 runs" in typed("backfill", LABEL, "--dry")
    assert not Batch.objects.exists()


def test_backfill_watched_to_its_end(documents, failing, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: work_off())

    printed = typed("backfill", LABEL, "--watch")

    assert "0 of 6, 0 failed" in printed
    assert "finished: 3 runs succeeded, 3 failed." in printed
    assert f"manage.py autorun failures {LABEL}" in printed


def watched(*arguments: Any, monkeypatch: Any, meanwhile: Any, screen: Any = None) -> Any:
    """Return the output and the error if `meanwhile` happens between two looks."""
    out = io.StringIO() if screen is None else screen
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(time, "sleep", meanwhile)
    try:
        call_command("autorun", *map(str, arguments), "--watch", stdout=out)
    except CommandError as error:
        return out.getvalue(), error
    return out.getvalue(), None


def test_a_batch_that_fails_while_it_is_watched_ends_with_its_reason(
    documents, runner, monkeypatch
):
    def fail(seconds):
        failed = {"state": Batch.State.FAILED, "reason": "OSError: no disk"}
        Batch.objects.update(**failed)

    printed, error = watched("backfill", LABEL, monkeypatch=monkeypatch, meanwhile=fail)

    pk = Batch.objects.get().pk
    assert f"Batch {pk} failed: 0 runs succeeded, 0 failed." in printed
    assert (str(error), error.returncode) == (f"Batch {pk} failed: OSError: no disk", 1)


def test_a_batch_that_is_cancelled_while_it_is_watched_ends_with_1(documents, runner, monkeypatch):
    def cancel(seconds):
        batches.cancel(Batch.objects.get(), reason="Cancelled by ada.")

    printed, error = watched("backfill", LABEL, monkeypatch=monkeypatch, meanwhile=cancel)

    assert "6 cancelled." in printed
    assert str(error) == f"Batch {Batch.objects.get().pk} was cancelled: Cancelled by ada."
    assert error.returncode == 1


@pytest.mark.parametrize(("check", "code"), [((), None), (("--check",), 3)])
@pytest.mark.parametrize("name", ["backfill", "retry"])
def test_failed_runs_of_a_watched_batch_end_with_3_if_asked(
    documents, failing, monkeypatch, name, check, code
):
    if name == "retry":
        failing.run()
        work_off()

    _, error = watched(
        name, LABEL, *check, monkeypatch=monkeypatch, meanwhile=lambda seconds: work_off()
    )

    assert (error and error.returncode) == code
    assert error is None or re.fullmatch(r"3 runs of batch \d+ failed\.", str(error))


@pytest.mark.parametrize("name", ["backfill", "retry"])
def test_check_needs_something_to_watch(documents, runner, name):
    with pytest.raises(CommandError, match="add --watch"):
        typed(name, LABEL, "--check")
    assert not Batch.objects.exists()


@pytest.mark.parametrize("is_terminal", [False, True], ids=["lines", "bar"])
@pytest.mark.parametrize("what", ["batch", "runner"])
def test_what_is_paused_while_it_is_watched_is_told_once(
    documents, runner, monkeypatch, what, is_terminal
):
    looks: list[float] = []

    def pause_and_go_on(seconds):
        looks.append(seconds)
        batch = Batch.objects.get()
        if len(looks) == 1:
            batches.pause(batch) if what == "batch" else interventions.pause_runner(runner)
        if len(looks) == 3:
            batches.resume(batch) if what == "batch" else interventions.resume_runner(runner)
            work_off()

    screen = Screen() if is_terminal else None
    printed, error = watched(
        "backfill", LABEL, monkeypatch=monkeypatch, meanwhile=pause_and_go_on, screen=screen
    )

    held = f"Batch {Batch.objects.get().pk}" if what == "batch" else LABEL
    assert error is None
    assert printed.count(f"{held} is paused: manage.py autorun resume {held.split()[-1]}") == 1
    if is_terminal:
        assert f", {'runner ' * (what == 'runner')}paused" in printed


def test_ctrl_c_stops_watching_only(documents, runner, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)

    assert "continues." in typed("backfill", LABEL, "--watch")
    assert "the runs continue" in typed("status", LABEL, "--watch")
    assert Batch.objects.get().state == Batch.State.RUNNING


def test_a_bar_for_those_who_look(documents, runner, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(time, "sleep", lambda seconds: work_off())
    screen = Screen()

    call_command("autorun", "backfill", LABEL, "--watch", stdout=screen)

    assert "6/6" in screen.getvalue()
    assert "6 runs succeeded" in screen.getvalue()


# Directing


def test_retry(documents, failing):
    failing.run()
    work_off()

    printed = typed("retry", LABEL, documents[1].pk)

    assert "1 failed run to retry" in printed
    assert statuses(is_current=True).count(Run.Status.PENDING) == 1
    assert "2 failed runs to retry" in typed("retry", LABEL)


def test_a_runner_is_paused_and_goes_on(documents, runner):
    assert f"{LABEL} paused;" in typed("pause", LABEL)
    assert "was already paused;" in typed("pause", LABEL)
    hints = typed("status", LABEL)
    assert "Resume paused runners: manage.py autorun resume RUNNER" in hints
    assert "Start pending rows" not in hints
    runner.run()
    assert "6 waiting, paused" in typed("status", LABEL)
    assert "resumed." in typed("resume", LABEL)
    assert "was neither paused nor held." in typed("resume", LABEL)
    assert "6 queued" in typed("status", LABEL)


def test_all_runners_are_paused_and_go_on(documents, runner, broken):
    paused = typed("pause", "--all")
    number = Node.objects.exclude(paused_at=None).count()

    assert f"{number} runners paused;" in paused
    assert "0 runners paused;" in typed("pause", "--all")
    assert f"{number} paused" in typed("status").splitlines()[0]
    assert f"{number} runners resumed." in typed("resume", "--all")


@pytest.mark.parametrize("command", ["pause", "resume"])
@pytest.mark.parametrize("arguments", [(), (LABEL, "--all")])
def test_a_target_or_all_is_named(runner, command, arguments):
    with pytest.raises(CommandError, match="Name a runner or a batch, or use --all"):
        typed(command, *arguments)


def test_a_batch_is_paused_goes_on_and_is_cancelled(documents, runner):
    batch = runner.backfill()

    assert f"Batch {batch.pk} paused;" in typed("pause", batch.pk)
    with pytest.raises(CommandError, match="is paused: only a running one can pause"):
        typed("pause", batch.pk)
    assert "resumed." in typed("resume", batch.pk)
    with pytest.raises(CommandError, match="not paused"):
        typed("resume", batch.pk)
    assert "6 runs cancelled" in typed("cancel", batch.pk)
    with pytest.raises(CommandError, match="is cancelled already"):
        typed("cancel", batch.pk)
    with pytest.raises(CommandError, match="There is no batch 999999"):
        typed("cancel", 999999)


def test_all_that_a_runner_has_planned_is_cancelled(documents, runner):
    from autorun.planning.named import plan_keys

    runner.backfill(Document.objects.filter(pk__in=[each.pk for each in documents[:3]]))
    plan_keys(runner, [each.pk for each in documents[3:]])

    assert "6 runs cancelled" in typed("cancel", LABEL)
    assert runner.pending().count() == 6
    assert "Cancelled by" in Batch.objects.get().reason


def test_a_runner_that_is_gone_can_be_cancelled(documents):
    with installed(echo := declare()):
        echo().run()
    Chunk.objects.update(state=Chunk.State.PARKED)

    assert "6 runs cancelled" in typed("cancel", LABEL)


def test_adopt_and_ignore(documents, runner):
    assert f"{LABEL}: 2 pending rows." in typed("adopt", LABEL, "--filter", "early", "--dry")
    assert "2 rows recorded as up to date" in typed(
        "adopt", LABEL, "--filter", "early", "--no-input"
    )
    assert "1 row ignored" in typed("ignore", LABEL, documents[5].pk, "--no-input")
    assert runner.pending().count() == 3
    assert statuses() == [Run.Status.SUCCEEDED] * 2 + [Run.Status.CANCELLED]


@pytest.mark.parametrize("out", [Screen, io.StringIO], ids=["terminal", "pipe"])
@pytest.mark.parametrize("arguments", [(), ("--format", "json")], ids=["text", "json"])
@pytest.mark.parametrize("name", ["adopt", "ignore"])
def test_whoever_types_is_asked_wherever_the_output_goes(
    documents, runner, monkeypatch, name, arguments, out
):
    monkeypatch.setattr(sys, "stdin", Screen("n\ny\n"))
    refused, agreed, asked = out(), out(), io.StringIO()

    call_command("autorun", name, LABEL, *arguments, stdout=refused, stderr=asked)
    after_no = runner.pending().count()
    call_command("autorun", name, LABEL, *arguments, stdout=agreed, stderr=asked)

    assert (after_no, runner.pending().count()) == (6, 0)
    assert re.fullmatch(rf"({LABEL}: [^?]* 6 pending rows [^?]*\? \[y/N\] ){{2}}", asked.getvalue())
    assert "[y/N]" not in refused.getvalue() + agreed.getvalue()
    if arguments:
        assert [json.loads(each.getvalue())["rows"] for each in (refused, agreed)] == [0, 6]
    else:
        assert "nothing was changed." in refused.getvalue()
        assert "6 rows" in agreed.getvalue()


@pytest.mark.parametrize("arguments", [(), ("--format", "json")], ids=["text", "json"])
@pytest.mark.parametrize("name", ["adopt", "ignore"])
def test_where_nobody_can_be_asked_nothing_is_done_without_no_input(
    documents, runner, monkeypatch, name, arguments
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))

    with pytest.raises(CommandError, match=rf"{LABEL}: to .*6 pending rows.* Add --no-input"):
        typed(name, LABEL, *arguments)

    assert runner.pending().count() == 6
    assert "6" in typed(name, LABEL, *arguments, "--dry")
    assert "6" in typed(name, LABEL, *arguments, "--no-input")
    assert runner.pending().count() == 0


def fails_variously(value: str) -> None:
    raise (OSError if int(value[-1]) % 2 else ValueError)(value)


@pytest.fixture
def various(documents) -> Iterator[Any]:
    """Three rows that failed with OSError and three with ValueError, of which one is long ago."""
    runner = declare(fails_variously, MAX_ATTEMPTS=1, FILTERS={"early": Q(title__lt="title 2")})
    with installed(runner), redirected(plan_at_once):
        runner().run()
        work_off()
        old = Failure.objects.filter(run__object_id=documents[0].pk)
        old.update(failed_at=timezone.now() - dt.timedelta(days=2))
        yield runner()


CHOICES = pytest.mark.parametrize(
    ("choice", "number"),
    [
        (("--cause", "OSError"), 3), (("--within", "24h"), 5),
        (("--cause", "ValueError", "--within", "24h"), 2), (("--cause", "KeyError"), 0),
    ],
    ids=["exception", "time", "both", "none"],
)  # fmt: skip


@CHOICES
def test_failed_runs_of_one_exception_or_time_are_ignored(various, choice, number):
    dry = typed_json("ignore", LABEL, *choice, "--dry")
    printed = typed("ignore", LABEL, *choice, "--no-input")

    assert dry["rows"] == number
    assert f"{LABEL}: {number} failed run" in printed
    progress = various.progress()
    assert (progress.failed, progress.ignored) == (6 - number, number)


@CHOICES
def test_failed_runs_of_one_exception_or_time_are_retried(
    various, choice, number, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        printed = typed("retry", LABEL, *choice)

    assert f"{number} failed runs to retry" in printed
    progress = various.progress()
    assert (progress.failed, progress.queued) == (6 - number, number)
    assert [batch.planned for batch in Batch.objects.filter(trigger="backfill")] == [number][
        :number
    ]


def test_failed_runs_of_one_cause_are_retried(various):
    causes = {each["exception_class"]: each for each in typed_json("failures", LABEL)}
    key = causes["ValueError"]["cause"]

    printed = typed("retry", LABEL, "--cause", key)

    assert key in typed("failures", LABEL)
    assert f"{causes['ValueError']['runs']} failed run" in printed
    with pytest.raises(CommandError, match="--cause names an exception"):
        typed("retry", LABEL, "--cause", key, "--within", "24h")


def test_all_failed_runs_are_ignored_or_those_of_some_rows(various, documents):
    keys = [documents[0].pk, documents[3].pk]

    of_keys = typed_json("ignore", LABEL, *keys, "--failed", "--no-input")
    of_filter = typed("ignore", LABEL, "--filter", "early", "--failed", "--no-input")
    rest = typed("ignore", LABEL, "--failed", "--no-input")

    assert of_keys["rows"] == 2
    assert "1 failed run ignored until the input changes." in of_filter
    assert "3 failed runs ignored until the input changes." in rest
    assert various.progress().ignored == 6


def test_failed_runs_of_some_rows_are_retried(
    various, documents, django_capture_on_commit_callbacks
):
    keys = [each.pk for each in documents[:3]]

    with django_capture_on_commit_callbacks(execute=True):
        (batch,) = typed_json("retry", LABEL, *keys, "--cause", "ValueError")

    assert (batch["runner"], batch["trigger"]) == (LABEL, "backfill")
    assert various.progress().queued == 2


@pytest.mark.parametrize("name", ["retry", "ignore"])
def test_an_exception_that_nothing_raised_is_answered_with_those_that_were(various, name):
    printed = typed(name, LABEL, "--cause", "KeyError")

    assert "No run failed with KeyError. Exceptions raised: OSError, ValueError." in printed
    assert typed_json("retry", LABEL, "--cause", "KeyError") == []


@pytest.mark.parametrize("name", ["retry", "ignore"])
def test_where_nothing_failed_of_late_the_way_to_what_did_is_shown(various, name):
    Failure.objects.update(failed_at=timezone.now() - dt.timedelta(days=2))

    assert f"autorun failures {LABEL}" in typed(name, LABEL, "--cause=OSError", "--within=1h")


def test_keys_may_come_after_options(various, documents):
    keys = [documents[0].pk, documents[3].pk]

    dry = json.loads(typed("ignore", LABEL, keys[0], "--failed", "--format", "json", "--dry"))
    behind = json.loads(typed("ignore", LABEL, "--failed", "--format", "json", "--dry", *keys))

    assert (dry["rows"], behind["rows"]) == (1, 2)
    with pytest.raises(CommandError, match=r"There is no .* with the key -3"):
        typed("ignore", LABEL, "--failed", "--", -3)


def test_what_a_subcommand_does_not_know_is_answered_with_its_own_usage(capsys):
    with pytest.raises(SystemExit):
        execute_from_command_line(["manage.py", "autorun", "retry", LABEL, "--now", "3"])

    printed = capsys.readouterr().err
    assert "autorun retry: error: unrecognized arguments: --now" in printed
    assert "[PK ...]" in printed


def test_sweep_takes_runners_or_all(runner):
    with pytest.raises(CommandError, match="Name runners or give --all, not both"):
        typed("sweep", LABEL, "--all")


def test_ignoring_failed_runs_asks_first(various, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Screen("n\n"))
    asked = io.StringIO()

    call_command("autorun", "ignore", LABEL, "--failed", stdout=io.StringIO(), stderr=asked)

    assert "ignore 6 failed runs until the input changes? [y/N]" in asked.getvalue()
    assert various.progress().failed == 6


def test_ignore_without_pending_rows_names_what_failed(various):
    printed = typed("ignore", LABEL, "--no-input")

    assert f"{LABEL}: 0 pending rows.\n" in printed
    assert f"manage.py autorun ignore {LABEL} --failed" in printed


def test_sync(runner):
    with pytest.raises(CommandError, match=r"\.$"):
        typed("sync", "--dry", "--check")
    assert f"autorun: sweep {LABEL}: created" in typed("sync")
    assert typed_json("sync", "--check")["created"] == []
    assert "up to date" in typed("sync")


def test_sync_remove(runner):
    typed("sync")

    with pytest.raises(CommandError, match=r"^Beat had entries of autorun\.$"):
        typed("sync", "--remove", "--dry", "--check")
    assert f"autorun: sweep {LABEL}: removed" in typed("sync", "--remove")
    assert typed_json("sync", "--remove", "--check")["removed"] == []
    assert typed("sync", "--remove") == "Beat has no entries of autorun.\n"


@pytest.mark.parametrize("at_once", [2, 3, 100])
def test_prune(documents, runner, settings, set_constants, at_once):
    set_constants(folding, MOST_RUNS=at_once, DELETED_AT_ONCE=1)
    runner.run()
    typed("cancel", LABEL)
    Run.objects.update(finished_at=timezone.now() - dt.timedelta(days=90))

    assert typed("prune").startswith("Deleted 6 runs")
    settings.AUTORUN = {"RETENTION": None}
    assert "everything is kept" in typed("prune")


# A row that would write to the terminal itself

#: Sets the window's title, fills the clipboard, moves up and erases; turns the line around.
HOSTILE = "\x1b]0;x\x07\x1b]52;c;eA==\x07\x1b[1A\x1b[2K\x9b2J\u202eevil\u2066\x7f"

HOSTILE_KEY = "k\x1b\nforge"


def fails_with_hostility(value: str) -> None:
    raise ValueError(f"cannot read {HOSTILE}")


OF_HOSTILE = "tests.HostileRunner"
HOSTILE_CALLS = [
    ("status",),
    ("failures", OF_HOSTILE),
    ("explain", OF_HOSTILE, HOSTILE_KEY),
    ("explain", OF_HOSTILE, f"absent{HOSTILE}"),
    ("explain", f"tests.{HOSTILE}", "1"),
    ("plan", OF_HOSTILE, "--only", "failed"),
    ("plan", OF_HOSTILE, "--only", HOSTILE),
    ("retry", OF_HOSTILE),
    ("retry", OF_HOSTILE, "--cause", HOSTILE),
    ("retry", OF_HOSTILE, "--cause", HOSTILE),
    ("batches",),
    ("batches", HOSTILE),
    ("runs",),
    ("runs", OF_HOSTILE, "--row", HOSTILE),
    ("runs", "--worker", HOSTILE),
    ("outputs", OF_HOSTILE),
    ("outputs", OF_HOSTILE, "--row", HOSTILE_KEY),
    ("compare", OF_HOSTILE, "1.0", HOSTILE),
    ("workers",),
    ("workers", "--drain", HOSTILE),
    ("doctor",),
    ("triggers",),
    ("triggers", "--sql"),
    ("export", OF_HOSTILE),
    ("export", OF_HOSTILE, "--format", "jsonl"),
    ("export", OF_HOSTILE, "--filter", HOSTILE),
    ("ignore", OF_HOSTILE, "--no-input", "--failed"),
    ("ignore", OF_HOSTILE, "--no-input", HOSTILE_KEY),
    ("adopt", OF_HOSTILE, "--no-input"),
    ("adopt", OF_HOSTILE, "--no-input", HOSTILE),
    ("run", OF_HOSTILE, HOSTILE_KEY),
    ("run", OF_HOSTILE, HOSTILE),
    ("sweep", OF_HOSTILE),
    ("sweep", HOSTILE),
    ("backfill", OF_HOSTILE),
    ("backfill", OF_HOSTILE, "--filter", HOSTILE),
    ("touch", "library.Country", HOSTILE_KEY),
    ("touch", "library.Country", HOSTILE),
    ("touch", "library.Country", HOSTILE, "--field", HOSTILE),
    ("touch", HOSTILE, HOSTILE_KEY),
    ("pause", OF_HOSTILE),
    ("pause", HOSTILE),
    ("hold", OF_HOSTILE),
    ("hold", HOSTILE),
    ("resume", OF_HOSTILE),
    ("resume", HOSTILE),
    ("cancel", OF_HOSTILE),
    ("cancel", HOSTILE),
    ("sync",),
    ("prune",),
    ("completion", "bash"),
    ("completion", HOSTILE),
]


def test_the_hostile_row_is_shown_by_every_subcommand():
    assert {name for name, *_ in HOSTILE_CALLS} == {each.name for each in SUBCOMMANDS}


@pytest.mark.parametrize("arguments", HOSTILE_CALLS)
@pytest.mark.parametrize("colour", ["--no-color", "--force-color"])
def test_no_text_of_a_row_acts_on_the_terminal(arguments, colour, capsys):
    hostile = declare(
        fails_with_hostility,
        NAME="HostileRunner",
        DATA_MODEL=Country,
        INPUT_FIELDS=("name",),
        MAX_ATTEMPTS=1,
        ANALYSIS_CONFIGURATION={},
    )
    with installed(hostile):
        Country.objects.create(code=HOSTILE_KEY, name=f"{HOSTILE}\nforged")
        hostile().run()
        work_off()
        try:
            said = typed(*arguments, colour)
        except (CommandError, SystemExit) as error:
            said = str(error)
        said += "".join(capsys.readouterr())

    if arguments[0] == "export" and colour == "--no-color":
        return  # a pipe gets the data as they are
    own_colours = re.compile(r"\x1b\[[\d;]*m")
    plain = own_colours.sub("", said)
    assert plain == harmless(plain)
    if arguments[0] != "export":
        assert "forge" not in [line[:5] for line in plain.splitlines()]


def test_a_key_of_several_lines_is_one_line_of_a_table():
    options = {"NAME": "HostileRunner", "DATA_MODEL": Country, "INPUT_FIELDS": ("name",)}
    Country.objects.create(code=HOSTILE_KEY)
    with installed(first := declare(lambda value: {"of": 1}, **options)):
        first().run()
        work_off()
    with installed(second := declare(lambda value: {"of": 2}, VERSION="2.0", **options)):
        second().run()
        work_off()

        listed = typed("outputs", "tests.HostileRunner")
        compared = typed("compare", "tests.HostileRunner", "1.0", "2.0")

    assert "k\u241b\u240aforge" in listed
    assert "k\u241b\u240aforge: 1 -> 2" in compared


def test_no_text_of_a_row_acts_on_a_reader_of_mail_or_of_logs():
    assert harmless(HOSTILE) == "␛]0;x␇␛]52;c;eA==␇␛[1A␛[2K�2J�evil�␡"
    assert harmless("two\nlines\tand é") == "two\nlines\tand é"
    assert "\x1b" not in one_line(ValueError(HOSTILE))
