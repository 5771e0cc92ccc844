"""The README's examples do what it says."""

import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from autorun import analysis as analyses, conf
from autorun.declare import registry
from autorun.models import Run
from autorun.runner import QuerySetRunner
from sample_app.models import Scan
from tests.engine import work_off

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OLDEST = (ROOT / ".ci" / "oldest.txt").read_text()
BOUND = re.compile(r"([\w-]+)>=([\d.]+)")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]


@pytest.mark.django_db
def test_the_runner_runs(monkeypatch):
    scans = types.ModuleType("scans")
    models = types.ModuleType("scans.models")
    models.Scan = Scan
    monkeypatch.setitem(sys.modules, "scans", scans)
    monkeypatch.setitem(sys.modules, "scans.models", models)
    Scan.objects.create(path="/a.nii", size=1)
    with analyses.temporarily_registered():
        analyses._registry.clear()
        names = {"__name__": "scans.runners"}
        exec(PYTHON[0], names)
        exec(PYTHON[1], names)
        runner = names["ScanPreprocessingRunner"]
        assert issubclass(runner, QuerySetRunner)
        with registry.registered(runner):
            assert runner().run().planned == 1
            work_off()

    assert Run.objects.get().outputs == {"mean": 0.0}


def test_the_oldest_versions_are_those_that_are_required_and_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["redis"]]
    bounds = dict(match.groups() for each in required if (match := BOUND.match(each)))
    tested = dict(re.findall(r"^([\w-]+)==([\d.]*\d)", OLDEST, re.MULTILINE))
    names, _, versions = (
        re.split(r" \| ", line.strip("| "))
        for line in re.findall(r"(?<=\n)\| Python .*?\n.*\n.*", README)[0].splitlines()
    )
    told = {
        name: re.match(r"[\d.]+", version)[0]
        for names, version in zip(names, versions, strict=True)
        for name in re.sub(r" \(.*", "", names).split(", ")
    }

    assert f">={told.pop('Python')}" == project["requires-python"]
    assert told == {name: bounds[name] for name in told}
    assert all(tested[name].startswith(bounds[name]) for name in told)


def test_dependencies_end_before_the_next_major_version_and_their_versions_are_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    required = [*project["dependencies"], *(each for extra in extras for each in extra)]
    unbounded = {each for each in required if "<" not in each}
    names = {re.match(r"[\w-]+", each)[0].lower() for each in required}

    assert unbounded == {"packaging"}
    for path in ("constraints.txt", ".ci/oldest-constraints.txt"):
        locked = (ROOT / path).read_text()
        assert names <= set(re.findall(r"^([\w-]+)(?:\[\w+\])?==", locked, re.MULTILINE))
        assert "://" not in locked


@pytest.mark.parametrize("path", ["constraints.txt", ".ci/oldest-constraints.txt"])
def test_what_is_installed_has_a_hash(path):
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    groups.pop("embeddings")
    every_entry = locked(path, *groups)

    assert len(every_entry) > 150
    assert all("--hash=sha256:" in entry for entry in every_entry)
    assert every_entry == re.findall(r"^\w.*(?:\n +.*)*", (ROOT / path).read_text(), re.MULTILINE)
    names = {entry.partition("==")[0] for entry in locked(path, "sample")}
    assert {"celery", "vine", "numpy"} <= names
    assert not names & {"pytest", "mypy", "sphinx"}


def locked(path, *groups):
    command = [sys.executable, ".ci/locked", path, *groups]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\w.*(?:\n +.*)*", printed, re.MULTILINE)


def test_the_settings_exist():
    names = {}
    exec(PYTHON[2], names)

    assert set(names["AUTORUN"]) <= set(conf.DEFAULTS)


def test_the_commands_exist():
    parser = load_command_class(get_commands()["autorun"], "autorun").create_parser("", "autorun")
    known = parser.format_help()
    cells = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", README, re.MULTILINE)
    commands = [name for cell in cells for name in re.findall(r"\w+", cell)]

    assert len(commands) >= 9
    for command in commands:
        assert command in known


def test_the_make_targets_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()

    for target in re.findall(r"^\$ make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_it_stays_short():
    assert len(README.splitlines()) < 150
