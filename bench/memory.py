"""By how many megabytes some work raises the peak of a process that has done nothing before."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import django


def megabytes(work: str, *arguments: object) -> float:
    """What the work adds, in a new process.

    `work` is "module:function" of a function that loads what does not depend on the number of rows
    and returns the function to measure.
    """
    module = [sys.executable, "-m", "bench.memory", work, *map(str, arguments)]
    return float(subprocess.run(module, check=True, capture_output=True, text=True).stdout)


def main(work: str, *arguments: str) -> None:
    django.setup()
    module, _, name = work.partition(":")
    measured = getattr(import_module(module), name)(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _peak()
    measured()
    print(f"{_peak() - before:.2f}")


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
