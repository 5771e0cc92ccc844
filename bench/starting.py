"""What autorun adds to the start of a project: each start in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from django.db import connection

from bench.measuring import Line
from bench.scale import Scale

#: Celery is what the project uses without autorun, too. Processor time: a start waits for nothing.
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
    found: dict[str, list[tuple[float, float]]] = {"with autorun": [], "without": []}
    for _ in range(scale.starts):
        for name, without in (("with autorun", "0"), ("without", "1")):
            output = subprocess.run(
                [sys.executable, "-c", SCRIPT],
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | {"AUTORUN_BENCH_WITHOUT": without},
            ).stdout
            found[name].append(tuple(json.loads(output)))
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
