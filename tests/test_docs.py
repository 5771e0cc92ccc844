"""Every snippet of docs/ and README does what its page says; the reference names all there is.

A page is read from top to bottom, but for its last section if that is "The example": what the rest
of the page uses is read first, so that a how-to may begin with its question and the answer.

- a `python` block runs in the page's own names; one that begins with a comment that names a file
  (`# scans/runners.py`) runs as that module, and the next block of that name goes on with it. Its
  runners are registered, its test cases run. Settings are looked at, name by name;
- a `pycon` block is a doctest in the page's names;
- of a `console` block every command is parsed by what it would start; where output is shown below
  an `autorun` command, it runs, and its output is compared;
- of an `ini` block the commands of `ExecStart` are parsed, and of a `bash` or `yaml` block those of
  celery; metrics in a `yaml` block are some of ours;
- lines of `% test: code`, which readers do not see, run where they stand. A `work_off()` there is
  the worker.

The tutorial is not read so: its files are written to an empty directory, and its commands run.
"""

import argparse
import ast
import dataclasses
import doctest
import importlib.util
import inspect
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
import types
import unittest
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import celery
import pytest
from celery.app.defaults import NAMESPACES, flatten
from celery.bin.celery import celery as celery_command
from django.apps import apps
from django.conf import global_settings, settings as django_settings
from django.contrib import admin
from django.core.management import (
    CommandError,
    call_command,
    get_commands,
    load_command_class,
)
from django.db import transaction
from django.dispatch import Signal
from django.test import override_settings

from autorun import analysis as analyses, conf, exceptions, testing
from autorun.contrib.prometheus import METRICS
from autorun.declare import registry
from autorun.declare.base import Runner, declared
from autorun.management.subcommands import SUBCOMMANDS
from autorun.models import Batch, Chunk, Run
from autorun.observe import explanation
from autorun.observe.checks.values import check_settings
from autorun.planning.reasons import Reason
from autorun.runner import QuerySetRunner
from autorun.state.counts import Progress
from sample_app.models import Scan, Subject
from settings import celery_app
from tests.engine import work_off
from tests.library.models import Document, Summary

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted(each for each in DOCS.rglob("*.md") if "_build" not in each.parts)
PAGES.append(ROOT / "README.md")
TUTORIAL = DOCS / "tutorial.md"

BLOCK = re.compile(
    r"^```(?P<language>[\w-]+)\n(?P<code>.*?)^```$|(?P<hidden>(?:^% test: [^\n]*\n)+)",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"# (?P<path>[\w/]+\.py)(?P<words>\b.*)?\n")
#: What is only shown: transcripts, files of other programs.
SHOWN = ("text", "json", "sql")
#: Programs that are not ours to check.
OTHERS = (
    "pip",
    "sudo",
    "systemctl",
    "journalctl",
    "cd",
    "mkdir",
    "django-admin",
    "redis-cli",
    "find",
    "mv",
    "source",
    "touch",
)
COMPARED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, or hidden lines; `language` is then "test"."""

    language: str
    code: str
    line: int

    @property
    def path(self) -> str:
        """The file a `python` block is of; '' for none."""
        found = FILE.match(self.code)
        return found["path"] if found else ""

    @property
    def words(self) -> str:
        """Return the comment after the file's name."""
        found = FILE.match(self.code)
        return (found["words"] or "") if found else ""

    def commands(self) -> Iterator[tuple[str, str]]:
        """Each command of a `console` block, with the output that is shown below it."""
        for part in re.split(r"^\$ ", self.code, flags=re.MULTILINE)[1:]:
            joined = part.replace("\\\n", " ")
            command, _, output = joined.partition("\n")
            yield re.sub(r"\s+#.*", "", command).strip(), output


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["hidden"]:
            code = match["hidden"].replace("% test: ", "")
            found.append(Block("test", code, line))
        else:
            found.append(Block(match["language"], match["code"], line))
    return found


@pytest.mark.parametrize(
    "page", [each for each in PAGES if each != TUTORIAL], ids=lambda page: page.stem
)
@pytest.mark.once
@pytest.mark.django_db(databases=["default", "archive"])
def test_a_page_does_what_it_says(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        reader = Reader(page, monkeypatch, stack)
        for block in in_order(page):
            reader.read(block)


def in_order(page: Path) -> list[Block]:
    start = page.read_text().partition("\n## The example\n")[0].count("\n") + 1
    return sorted(blocks_of(page), key=lambda block: block.line <= start)


class Reader:
    """Runs the blocks of one page, with an app `scans` whose models are the sample app's."""

    def __init__(self, page: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self.page = page
        self.monkeypatch = monkeypatch
        self.modules: dict[str, types.ModuleType] = {}
        self.names: dict[str, Any] = {
            "__name__": f"docs.{page.stem}",
            "Scan": Scan,
            "Subject": Subject,
            "work_off": work_off,
        }
        # Without handlers the lines of a transcript go to standard output, as in a plain shell.
        monkeypatch.setattr("autorun.declare.console.logger.propagate", False)
        stack.enter_context(patch.dict(declared))
        stack.enter_context(analyses.temporarily_registered())
        stack.enter_context(registry.registered(alone=True))
        stack.enter_context(patch.dict(admin.site._registry))
        analyses._registry.clear()
        admin.site._registry.pop(Scan, None)
        self.module("scans").__path__ = []
        self.module("scans.models").Scan = Scan
        self.module("scans.models").Subject = Subject
        self.module("scans.models").Document = Document
        self.module("scans.models").Summary = Summary

    def module(self, name: str) -> types.ModuleType:
        if name not in self.modules:
            module = self.modules[name] = types.ModuleType(name)
            self.monkeypatch.setitem(sys.modules, name, module)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(self.module(parent), child, module)
        return self.modules[name]

    def read(self, block: Block) -> None:
        where = f"{self.page.relative_to(ROOT)}, line {block.line}"
        reading = getattr(self, f"read_{block.language.replace('-', '_')}", None)
        if reading is None:
            assert block.language in SHOWN, f"{where}: nothing tests a {block.language} block."
            return
        try:
            reading(block, where)
        except Exception as error:
            error.add_note(f"In {where}:\n{block.code}")
            raise

    def read_test(self, block: Block, where: str) -> None:
        exec(compile(block.code, where, "exec"), self.names)

    def read_python(self, block: Block, where: str) -> None:
        # Blank lines, so that a traceback shows the line of the page.
        code = compile("\n" * block.line + block.code, str(self.page), "exec", dont_inherit=True)
        if not block.path:
            exec(code, self.names)
        elif block.path.endswith("settings.py"):
            check_project_settings(block.code)
        elif block.path.endswith("celery.py"):
            run_alone(block.code)
        else:
            self.run_module(block.path.removesuffix(".py").replace("/", "."), code)

    def run_module(self, name: str, code: Any) -> None:
        module = self.module(name)
        exec(code, vars(module))
        if name.endswith(".runners"):
            registry.register_module(name)
        for case in [each for each in vars(module).values() if is_test_case_of(each, name)]:
            run_test_case(case)

    def read_pycon(self, block: Block, where: str) -> None:
        examples = doctest.DocTestParser().get_doctest(
            block.code, self.names, self.page.name, str(self.page), block.line
        )
        report = io.StringIO()
        runner = doctest.DocTestRunner(verbose=False, optionflags=COMPARED)
        failed = runner.run(examples, clear_globs=False, out=report.write).failed
        self.names.update(examples.globs)
        assert not failed, report.getvalue()

    def read_console(self, block: Block, where: str) -> None:
        code = 0
        for command, output in block.commands():
            words = shlex.split(command)
            if command == "echo $?":
                compare(output, str(code))
                continue
            check_command(words)
            if output.strip() and "autorun" in words[:3]:
                found, code = run_subcommand(words[words.index("autorun") + 1 :])
                compare(output, found)

    def read_ini(self, block: Block, where: str) -> None:
        for command in re.findall(r"^ExecStart=((?:.*\\\n)*.*)", block.code, re.MULTILINE):
            words = shlex.split(command.replace("\\\n", " "))
            check_command([Path(words[0]).name, *words[1:]])

    def read_bash(self, block: Block, where: str) -> None:
        for command in re.findall(r"\bcelery -A [^'\n]*", block.code.replace("\\\n", " ")):
            check_command(shlex.split(re.sub(r"--concurrency \$\w+", "--concurrency 8", command)))

    def read_yaml(self, block: Block, where: str) -> None:
        for items in re.findall(r"command: \[(.*)\]", block.code):
            check_command([item.strip(' "') for item in items.split(",")])
        assert set(re.findall(r"\bautorun_\w+", block.code)) <= METRICS.keys(), where


def is_test_case_of(value: Any, module: str) -> bool:
    is_case = inspect.isclass(value) and issubclass(value, unittest.TestCase)
    return is_case and value.__module__ == module


def run_test_case(case: type[unittest.TestCase]) -> None:
    """Its tests, each in a savepoint: Django's own classes would close this test's connection."""
    names = unittest.defaultTestLoader.getTestCaseNames(case)
    assert names, case
    for name in names:
        test = case(name)
        savepoint = transaction.savepoint()
        try:
            test.setUp()
            getattr(test, name)()
        finally:
            test.doCleanups()
            transaction.savepoint_rollback(savepoint)


def compare(expected: str, found: str) -> None:
    checker = doctest.OutputChecker()
    expected, found = (
        f"{re.sub('─+', '─', textwrap.dedent(text)).strip()}\n" for text in (expected, found)
    )
    assert checker.check_output(expected, found, COMPARED), f"{expected}\n--- but:\n\n{found}"


def run_subcommand(words: list[str]) -> tuple[str, int]:
    """Return what `manage.py autorun` prints, and its exit code."""
    out = io.StringIO()
    try:
        call_command("autorun", *words, stdout=out, skip_checks=True)
    except CommandError as error:
        out.write(f"CommandError: {error}\n")
        return out.getvalue(), error.returncode
    return out.getvalue(), 0


def check_command(words: list[str]) -> None:
    """That there is such a command, and that it takes these arguments; of a pipe, each one."""
    if ">" in words:
        words = words[: words.index(">")]
    if "|" in words:
        check_command(words[: words.index("|")])
        words = words[words.index("|") + 1 :]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program, *rest = words
    if program in ("python", "python3"):
        check_python_command(rest)
    elif program == "manage.py":
        check_management_command(rest[0], rest[1:])
    elif program == "celery":
        check_celery_command(rest)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert program in OTHERS, f"Nobody knows the program {program!r}."


def check_python_command(words: list[str]) -> None:
    if words[0] == "manage.py":
        check_management_command(words[1], words[2:])
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]), f"There is no module {words[1]!r}."
    else:
        assert (ROOT / words[0]).exists(), f"There is no {words[0]}."


def check_management_command(name: str, arguments: list[str]) -> None:
    assert name in get_commands(), f"There is no manage.py {name}."
    command = load_command_class(get_commands()[name], name)
    command.create_parser("manage.py", name).parse_args(arguments)


def check_celery_command(words: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-A", required=True)
    parser.add_argument("name")
    known, rest = parser.parse_known_args(words[:3])
    command = celery_command.commands[known.name]
    context = command.context_class(command)
    _, left, _ = command.make_parser(context).parse_args([*rest, *words[3:]])
    assert not left, f"celery {known.name} does not take {left}."


def check_project_settings(code: str) -> None:
    """That every setting there is one, and that autorun finds nothing wrong with its own."""
    names: dict[str, Any] = {"BASE_DIR": Path("/srv/mysite"), "INSTALLED_APPS": []}
    exec(code, names)
    known = {"db_reuse_max", *dict(flatten(NAMESPACES))}
    if celery.__version__ < "5.5":
        known.add("worker_soft_shutdown_timeout")
    for name, value in names.items():
        if name.startswith("CELERY_"):
            assert name.removeprefix("CELERY_").lower() in known, f"Celery has no {name}."
        elif name == "AUTORUN":
            databases = names.get("DATABASES", {"default": {}})
            with (
                override_settings(AUTORUN=value),
                patch.object(django_settings, "DATABASES", databases),
            ):
                assert not check_settings()
        elif name.isupper() and name != "BASE_DIR":
            assert hasattr(global_settings, name), f"Django has no {name}."


def run_alone(code: str) -> None:
    """A module that changes the process it is imported in: in a process of its own."""
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "settings.test"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


# The tutorial


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tutorial_leads_where_it_says(tmp_path: Path) -> None:
    with Project(tmp_path) as project:
        for block in blocks_of(TUTORIAL):
            try:
                project.follow(block)
            except BaseException as error:
                error.add_note(f"In docs/tutorial.md, line {block.line}:\n{block.code}")
                error.add_note(project.logs())
                raise


class Project:
    """The files and processes of someone who follows the tutorial in an empty directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = [str(Path(sys.executable).parent), os.environ["PATH"]]
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        self.environment = kept | {
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Project":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def follow(self, block: Block) -> None:
        if block.language == "python":
            assert block.path, "A block of the tutorial must begin with the name of its file."
            file = self.directory / block.path
            body = block.code[block.code.index("\n") + 1 :]
            # A slow machine needs longer than a reader for what is shown before the next attempt.
            body = body.replace("    DATA_MODEL", "    RETRY_BACKOFF = 30\n    DATA_MODEL")
            is_addition = "at the end" in block.words
            assert file.exists() or not is_addition, f"There is no {block.path} to add to."
            file.write_text(f"{file.read_text()}\n{body}" if is_addition else body)
        elif block.language == "console":
            for command, output in block.commands():
                self.run(command, output)
        elif block.language == "pycon":
            self.check_session(block.code)
        else:
            assert block.language in SHOWN

    def run(self, command: str, output: str) -> None:
        words = shlex.split(command)
        if words[0] in ("pip", ".") or words[:3] == ["python3", "-m", "venv"]:
            return  # the tests have an environment
        if words[-1] == "runserver":  # would need a port of its own
            check_command(words)
            return
        if words[0] == "celery":
            self.start(words)
            return
        deadline = time.monotonic() + (60 if output.strip() else 0)
        while True:
            done = subprocess.run(
                words,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if not output.strip():
                assert done.returncode == 0, done.stdout + done.stderr
                return
            try:
                compare(output, done.stdout + done.stderr)
                return
            except AssertionError:  # a worker may not have come to it yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def start(self, words: list[str]) -> None:
        """A worker or beat, in place of the one that runs."""
        check_command(words)
        what = words[3]
        if before := self.running.pop(what, None):
            before.send_signal(signal.SIGINT)  # Ctrl-C
            before.wait(30)
        path = self.directory / f"{what}.log"
        with path.open("wb") as log:
            self.running[what] = process = subprocess.Popen(
                words,
                cwd=self.directory,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 40
        sign = {"worker": " ready.", "beat": "beat: Starting..."}[what]
        while sign not in path.read_text():
            assert process.poll() is None, "It ended."
            assert time.monotonic() < deadline, "It is not ready."
            time.sleep(0.1)

    def check_session(self, code: str) -> None:
        """A doctest in a process of its own, as `manage.py shell` is one."""
        script = (
            "import doctest, django; django.setup(); "
            "import sys; code = sys.stdin.read(); "
            "test = doctest.DocTestParser().get_doctest(code, {}, 'shell', None, 0); "
            f"runner = doctest.DocTestRunner(optionflags={COMPARED}); "
            "sys.exit(runner.run(test).failed)"
        )
        settings = next(self.directory.glob("*/settings.py")).parent.name
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=self.directory,
            env=self.environment | {"DJANGO_SETTINGS_MODULE": f"{settings}.settings"},
            input=code,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def logs(self) -> str:
        return "\n".join(
            f"{log.name}:\n{log.read_text()[-3000:]}" for log in self.directory.glob("*.log")
        )


# The reference


def rows(page: str, section: str = "", *, folder: Path = REFERENCE) -> dict[str, list[str]]:
    """The cells of a page's tables by the name in the first one; of one section, where given."""
    text = (folder / f"{page}.md").read_text()
    if section:
        text = re.split(rf"^#+ {re.escape(section)}$", text, flags=re.MULTILINE)[1]
        text = re.split(r"^##+ ", text, flags=re.MULTILINE)[0]  # not a comment in code
    return tables(text)


def tables(text: str) -> dict[str, list[str]]:
    """The cells of all rows by the names in the first one."""
    found: dict[str, list[str]] = {}
    for line in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
        first, *others = (cell.strip() for cell in re.split(r"(?<!\\)\|", line))
        for name in re.findall(r"`([^`]+)`", first):
            assert name not in found, f"{name} is documented twice."
            found[name] = others
    return found


def written(value: str) -> str:
    """The code in a cell."""
    found = re.match(r"`([^`]*)`", value)
    return found[1] if found else value


def test_every_option_is_documented():
    options = {name: value for name, value in vars(Runner).items() if name.isupper()}
    documented = rows("runner", "Options")

    assert set(documented) == set(options)
    for name, (default, *_) in documented.items():
        if default not in ("required", "by setting"):
            assert ast.literal_eval(written(default)) == options[name], name
        elif default == "by setting":
            assert repr(options[name]) == "BY_SETTING", name


def test_every_hook_and_method_is_documented():
    methods = {
        name
        for name, value in (vars(Runner) | vars(QuerySetRunner)).items()
        if not name.startswith("_")
        and not name.isupper()
        and not isinstance(value, property | cached_property)
    }
    documented = {
        name: cells
        for section in ("Hooks", "Methods", "Computed values")
        for name, cells in rows("runner", section).items()
    }

    twins = {name for name in methods if name.startswith("a") and name[1:] in methods}
    page = (REFERENCE / "runner.md").read_text()
    assert {name.partition("(")[0] for name in documented} == methods - twins
    assert [name for name in twins if f"`{name}()`" not in page] == []
    for call in documented:
        ast.parse(call)
        name = call.partition("(")[0]
        arguments = re.findall(r"(\w+)(?:=[^,)]*)?", call.partition("(")[2])
        for argument in arguments:
            known = inspect.signature(getattr(QuerySetRunner, name)).parameters
            assert argument in known or argument in call.partition("=")[2], call


def test_every_setting_is_documented():
    documented = rows("settings", "The settings")

    assert set(documented) == set(conf.DEFAULTS)
    for name, (default, *_) in documented.items():
        names = {"crontab": importlib.import_module("celery.schedules").crontab}
        names["timedelta"] = importlib.import_module("datetime").timedelta
        assert eval(written(default), names) == conf.DEFAULTS[name], name


def test_every_subcommand_and_its_arguments_are_documented():
    text = (REFERENCE / "commands.md").read_text()
    sections = re.findall(r"^## `(\w+)`$", text, re.MULTILINE)

    assert set(sections) == {each.name for each in SUBCOMMANDS}
    for subcommand in SUBCOMMANDS:
        parser = argparse.ArgumentParser(add_help=False)
        subcommand.add_arguments(parser)
        arguments = set()
        for action in parser._actions:
            spelling = action.option_strings[0] if action.option_strings else action.metavar
            arguments.add(str(spelling).partition("|")[0])
        documented = rows("commands", f"`{subcommand.name}`")
        names = {name.split()[0] for name in documented}
        assert names == arguments, subcommand.name


def test_every_check_is_documented():
    numbers = set()
    for module in (ROOT / "autorun" / "observe" / "checks").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                numbers |= set(re.findall(r"^[EW]\d{3}$", node.value))

    assert set(rows("checks")) == {f"autorun.{number}" for number in numbers}


def test_every_signal_is_documented():
    try:
        module = importlib.import_module("autorun.signals")
    except ModuleNotFoundError:
        signals = set()
    else:
        signals = {name for name, value in vars(module).items() if isinstance(value, Signal)}

    assert set(rows("signals", "Signals")) == signals


def test_every_permission_is_documented():
    meta = Run._meta
    # Of Django's own four only the right to view is asked for.
    codenames = {"view_run", *(codename for codename, _ in meta.permissions)}

    documented = rows("permissions", "Permissions")
    assert set(documented) == {f"autorun.{codename}" for codename in codenames}


def test_every_task_is_documented_with_its_arguments():
    tasks = {name: task for name, task in celery_app.tasks.items() if name.startswith("autorun.")}
    documented = {call.partition("(")[0]: call for call in rows("signals", "Tasks")}

    assert set(documented) == set(tasks)
    for name, call in documented.items():
        assert call.removeprefix(name).replace(" ", "") == shown_signature(tasks[name].run)


def shown_signature(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    shown = [
        each.name if each.default is each.empty else f"{each.name}={each.default!r}"
        for each in parameters
        if each.name.strip("_")  # not what a newer version may send besides
    ]
    return f"({','.join(shown)})"


def test_every_table_and_column_is_documented():
    text = (REFERENCE / "tables.md").read_text()
    models = {model.__name__: model for model in apps.get_app_config("autorun").get_models()}

    assert set(re.findall(r"^## `(\w+)`$", text, re.MULTILINE)) == set(models)
    for name, model in models.items():
        columns = {field.name for field in model._meta.concrete_fields}
        assert set(rows("tables", f"`{name}`")) == columns, name


def test_every_state_is_documented():
    text = " ".join((REFERENCE / "tables.md").read_text().split())

    for states in (Run.Status, Chunk.State, Chunk.Priority):
        for state in states:
            assert f"{state.value} {state.name}" in text
    assert ", ".join(Batch.State.values) in text
    assert ", ".join(Batch.Trigger.values) in text


def test_every_exception_is_documented():
    known = {
        name
        for name, value in vars(exceptions).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }

    assert set(rows("signals", "Exceptions")) == known


def test_every_word_of_an_explanation_is_documented():
    codes = set(re.findall(r'"(\w+)"', inspect.getdoc(explanation.Explanation) or ""))

    assert len(codes) > 10
    assert set(rows("runner", "Codes of `explain`")) == codes


def test_every_reason_is_documented():
    assert {str(reason) for reason in Reason} <= set(rows("commands", "`plan`")) | set(
        rows("commands", "Reasons")
    )


def test_every_count_of_progress_is_documented():
    counts = {each.name for each in dataclasses.fields(Progress)}

    assert set(rows("runner", "Counts of `progress`")) == counts


def test_everything_for_tests_is_documented():
    functions = {name for name in vars(testing.Functions) if not name.startswith("_")}
    documented = tables((DOCS / "howto" / "test.md").read_text())

    assert {call.partition("(")[0] for call in documented} == functions
    for call in documented:
        name, _, arguments = call.partition("(")
        known = inspect.signature(getattr(testing, name)).parameters
        assert re.findall(r"(\w+)(?:=[^,)]*)?[,)]", arguments) == list(known), name


def test_every_metric_is_documented():
    prometheus = pytest.importorskip("autorun.contrib.prometheus")
    found = rows("monitor", "Prometheus", folder=DOCS / "howto")
    documented = {name: cells for name, cells in found.items() if name.startswith("autorun_")}

    assert set(documented) == set(prometheus.METRICS)
    for name, (labels, _) in prometheus.METRICS.items():
        assert documented[name][0] == ", ".join(labels), name


@pytest.mark.parametrize(
    ("section", "bridge", "name"),
    [
        ("Health check", "health", "Autorun"),
        ("Prometheus", "prometheus", "register"),
        ("OpenTelemetry", "otel", "enable"),
    ],
)
def test_every_argument_of_a_bridge_is_documented(section, bridge, name):
    found = getattr(pytest.importorskip(f"autorun.contrib.{bridge}"), name)
    documented = rows("monitor", section, folder=DOCS / "howto")

    arguments = {each for each in documented if not each.startswith("autorun_")}
    assert arguments == set(inspect.signature(found).parameters)


# The pages


GLOSSARY = (
    *("pending", "run", "current run", "chunk", "batch", "sweep", "backfill", "trigger"),
    *("node", "fingerprint", "lease", "window", "rescue", "park", "adopt", "ignore", "runner"),
    *("supersede", "plan", "release", "upkeep", "retry", "queued", "waiting", "force"),
)


def test_the_glossary_has_every_word():
    text = (DOCS / "glossary.md").read_text()
    parts = [
        re.findall(r"^([a-z][\w ,]*)\n: ", part, re.MULTILINE) for part in text.split("\n## ")[1:]
    ]
    known = {word.strip() for entry in chain(*parts) for word in entry.split(",")}

    assert set(GLOSSARY) <= known
    assert len(known) <= 35
    assert len(parts[0]) == 10
    assert parts == [sorted(part) for part in parts]


def test_every_file_that_the_design_names_exists():
    _, _, way = (DOCS / "design.md").read_text().partition("## The way of a row")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", way)

    assert [each for each in named if not (ROOT / "autorun" / each).exists()] == []


def test_the_design_names_every_module_that_a_row_passes_through():
    _, _, way = (DOCS / "design.md").read_text().partition("## The way of a row")
    stages = ("declare", "triggers", "planning", "dispatch", "execution", "upkeep", "control")
    modules = [each for stage in stages for each in (ROOT / "autorun" / stage).glob("[!_]*.py")]

    assert len(modules) > 70
    assert [each.name for each in modules if f"`{each.parent.name}/{each.name}`" not in way] == []


def test_the_design_ends_with_the_layers_of_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [set(layer.split(" : ")) for layer in contracts["contracts"][0]["layers"]]
    _, _, folders = (DOCS / "design.md").read_text().partition("## Folders")

    documented: list[set[str]] = [set() for _ in layers]
    for number, names in re.findall(r"^\| (\d+) \| ([^|]+) \|", folders, re.MULTILINE):
        documented[int(number) - 1] |= set(re.findall(r"`(\w+)(?:/|\.py)`", names))
    assert documented == layers


def test_snippets_are_where_the_reader_of_pages_finds_them():
    for page in PAGES:
        text = page.read_text()
        fences = re.findall(r"^[ \t]*```(?:python|pycon|console)\b", text, re.MULTILINE)
        known = [
            each for each in blocks_of(page) if each.language in ("python", "pycon", "console")
        ]
        assert len(fences) == len(known), page.name


@pytest.mark.once
@pytest.mark.slow
def test_the_pages_build_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    loading = re.compile(
        r"""<(?:script|img|iframe|source)[^>]+src=["'](?:https?:)?//"""
        r"""|<link[^>]+rel=["'](?:stylesheet|preload|icon)["'][^>]+href=["'](?:https?:)?//"""
        r"""|url\(["']?(?:https?:)?//|@import"""
    )
    for file in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        assert not loading.search(file.read_text()), file.name
