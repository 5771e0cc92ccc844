"""Every fault has a test, and every crash point is in the code where its name says."""

import ast
import re
from pathlib import Path

import pytest

import autorun
from autorun.state.probes import POINTS

FAULTS = {*range(1, 59)}
HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "reliability.md"

pytestmark = pytest.mark.once


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]


def faults_tested() -> dict[int, set[str]]:
    """Names of the tests that say which faults they inject."""
    found: dict[int, set[str]] = {}
    for path in HERE.parent.rglob("test_*.py"):
        for function in functions(path):
            for mark in function.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.faults":
                    for number in map(ast.literal_eval, mark.args):
                        found.setdefault(number, set()).add(function.name)
    return found


def test_every_fault_has_a_test_and_the_documentation_names_it():
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    documented = {int(number): set(re.findall(r"`(\w+)`", names)) for number, names in rows}

    assert faults_tested() == documented
    assert set(documented) == FAULTS


def test_every_test_that_the_documentation_names_exists():
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text()))
    known = {each.name for path in HERE.parent.rglob("test_*.py") for each in functions(path)}

    assert named
    assert named <= known


def test_every_crash_point_is_passed_somewhere_and_known():
    source = Path(autorun.__file__).parent
    text = "".join(path.read_text() for path in source.rglob("*.py"))

    assert set(re.findall(r'crash_point\("([^"]+)"\)', text)) == set(POINTS)
