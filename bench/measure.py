"""Measures some topics on the database the settings name, and writes their lines as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import django

#: Topic by module; the order is the order of the table.
TOPICS = (
    *("planning", "counting", "statements", "starting", "saving", "writing", "bodies", "cliffs"),
    *("sets", "reading", "flowing", "sizes"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.measure")
    parser.add_argument("topics", nargs="*", help=f"of {', '.join(TOPICS)}; all of them by default")
    parser.add_argument("--scale", default="full")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    django.setup()
    from bench import scale, stage
    from bench.measuring import as_json
    from bench.report import one_line
    from sample_app.processes import termination_as_interrupt

    chosen = getattr(scale, options.scale.upper())
    found = []
    # If stopped or timed out, it still removes its database and stops its worker.
    with termination_as_interrupt(), stage.database():
        for topic in options.topics or TOPICS:
            began = time.monotonic()
            for line in importlib.import_module(f"bench.{topic}").measure(chosen):
                found.append(as_json(line))
                print(one_line(line), flush=True)
                options.output.write_text(json.dumps(found, indent=1))
            print(f"  ({topic}: {time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
