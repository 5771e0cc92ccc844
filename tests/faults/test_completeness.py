"""Every fault has a test, and every crash point is in the code where its name says."""

import ast
import re
from pathlib import Path

import pytest

import autorun
from autorun.crashing import POINTS

FAULTS = set(range(1, 29))

pytestmark = pytest.mark.once


def test_every_fault_has_a_test():
    tested = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.faults":
                tested |= {number.value for number in node.args if isinstance(number, ast.Constant)}

    assert tested == FAULTS


def test_every_crash_point_is_passed_somewhere_and_known():
    source = Path(autorun.__file__).parent
    text = "".join(path.read_text() for path in source.rglob("*.py"))

    assert set(re.findall(r'crash_point\("([^"]+)"\)', text)) == set(POINTS)
