"""The time and memory that autorun adds to the start of a project, each in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from statistics import median

from django.db import connection

from bench.measuring import Line
from bench.scale import Scale

#: The project uses Celery in both cases. Processor time, because a start waits for nothing.
SCRIPT = """
import json, re, time
began = time.process_time()
import django
from celery import Celery
app = Celery("bench")
app.config_from_object("django.conf:settings", namespace="CELERY")
django.setup()
seconds = time.process_time() - began
resident = int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps([seconds, resident]))
"""


def measure(scale: Scale) -> Iterator[Line]:
    with tempfile.TemporaryDirectory(prefix="autorun-bench-") as compiled:
        found = _starts(scale.starts, compiled)
    pairs = list(zip(found["with autorun"], found["without"], strict=True))
    yield Line(
        key="start-time",
        database=connection.vendor,
        work="django.setup() with autorun installed",
        against="the same project (Celery, django-celery-beat) without it",
        value=median(with_[0] - without[0] for with_, without in pairs) * 1000,
        goal=50,
        unit="ms more",
        seconds={name: median(each[0] for each in all_) for name, all_ in found.items()},
    )
    yield Line(
        key="start-memory",
        database=connection.vendor,
        work="memory after django.setup() with autorun installed",
        against="the same project (Celery, django-celery-beat) without it: "
        f"{median(each[1] for each in found['without']):.0f} MB",
        value=median(with_[1] - without[1] for with_, without in pairs),
        goal=5,
        unit="MB more",
    )


def _starts(count: int, compiled: str) -> dict[str, list[tuple[float, float]]]:
    """Seconds and megabytes of each start, without the first ones, which compile."""
    found: dict[str, list[tuple[float, float]]] = {"with autorun": [], "without": []}
    # An installed package is compiled; a checkout may be read-only.
    surroundings = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
    surroundings.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(count + 1):
        for name, without in (("with autorun", "0"), ("without", "1")):
            output = subprocess.run(
                [sys.executable, "-c", SCRIPT],
                check=True,
                capture_output=True,
                text=True,
                env=surroundings | {"AUTORUN_BENCH_WITHOUT": without},
            ).stdout
            found[name].append(tuple(json.loads(output)))
    return {name: starts[1:] for name, starts in found.items()}
