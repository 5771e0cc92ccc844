"""Prints by how many megabytes planning all items raises the peak of this process."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import django


def peak() -> float:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


def main(name: str) -> None:
    django.setup()
    from bench import planning, stage
    from bench.subject.models import Item

    runner = getattr(planning, name)()
    stage.hold(runner)
    # Load everything that does not depend on the number of rows before measuring.
    runner.backfill(Item.objects.filter(pk__lte=10))
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = peak()
    runner.backfill()
    print(f"{peak() - before:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
