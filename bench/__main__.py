"""`python -m bench`: measures every line of docs/performance.md, and writes it.

Each database, and each broker, is measured by a process of its own. Databases are made for it, and
dropped. What does not answer is left out, with a line that says so.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.report import CHECKOUT, merged, write

DATABASES = ("postgres", "sqlite")
BROKERS = ("rabbitmq", "redis")
WITHOUT_BROKER = (
    *("planning", "counting", "statements", "starting", "saving", "writing", "bodies", "cliffs"),
    *("sets", "reading"),
)
WITH_BROKER = ("flowing", "sizes")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--scale", choices=("quick", "medium", "full"), default="full")
    every = (*DATABASES, "mariadb")
    parser.add_argument("--databases", nargs="+", choices=every, default=DATABASES)
    parser.add_argument("--brokers", nargs="+", choices=BROKERS, default=BROKERS)
    topics = WITHOUT_BROKER + WITH_BROKER
    parser.add_argument("--topics", nargs="+", choices=topics, default=topics)
    parser.add_argument("--keep", action="store_true", help="change no file of the checkout")
    parser.add_argument("--add", action="store_true", help="keep what is not measured this time")
    options = parser.parse_args()
    lines: list[dict[str, object]] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="autorun-bench-") as directory:
        for database, broker, topics in _rounds(options):
            if why := _silence(database) or (broker and _silence(broker)):
                print(f"Left out: {database} {broker or ''}: {why}", flush=True)
                continue
            output = Path(directory) / f"{database}-{broker or 'memory'}.json"
            code = subprocess.run(
                [
                    *(sys.executable, "-m", "bench.measure", *topics),
                    *("--scale", options.scale, "--output", str(output)),
                ],
                check=False,
                cwd=CHECKOUT,
                env=os.environ
                | {
                    "DJANGO_SETTINGS_MODULE": "bench.settings",
                    "AUTORUN_BENCH_DATABASE": database,
                    "AUTORUN_BENCH_BROKER": broker or "memory",
                    "AUTORUN_VAR": directory,
                },
            ).returncode
            failed = failed or code != 0
            if output.exists():
                lines += json.loads(output.read_text())
    reached = [line["is_reached"] for line in lines if line["is_reached"] is not None]
    print(f"{sum(map(bool, reached))} of {len(reached)} goals reached.")
    if lines and not options.keep:
        write(
            merged(lines) if options.add else lines,
            scale=options.scale,
            circumstances=_circumstances(options.scale),
        )
    return 1 if failed else 0


def _rounds(options: argparse.Namespace) -> list[tuple[str, str | None, list[str]]]:
    rounds: list[tuple[str, str | None, list[str]]] = []
    for database in options.databases:
        alone = [topic for topic in WITHOUT_BROKER if topic in options.topics]
        if alone:
            rounds.append((database, None, alone))
        is_first = database == options.databases[0]
        # The quick scale measures the other databases with one broker.
        is_brief = options.scale == "quick" and not is_first
        for broker in options.brokers[:1] if is_brief else options.brokers:
            # The size of chunks depends on neither.
            measures_sizes = is_first and broker == options.brokers[0]
            with_broker = WITH_BROKER if measures_sizes else WITH_BROKER[:1]
            topics = [topic for topic in with_broker if topic in options.topics]
            if topics:
                rounds.append((database, broker, topics))
    return rounds


def _silence(service: str) -> str | None:
    from tests.services import silence

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bench.settings")
    return None if service == "sqlite" else silence(service)


def _circumstances(scale: str) -> str:
    load = os.getloadavg()[0]
    return (
        f"Measured on {dt.datetime.now(dt.UTC):%d %B %Y} at the {scale} scale, on "
        f"{os.cpu_count()} cores with a load of {load:.1f} at the end, "
        f"Python {platform.python_version()}."
    )


if __name__ == "__main__":
    sys.exit(main())
