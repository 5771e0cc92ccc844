"""Runs the suite once on every database that answers: `python -m tests [pytest arguments]`.

`AUTORUN_TEST_DATABASE` names the only one to run on. A server that does not answer is skipped with
a line that says so, or is a failure with AUTORUN_REQUIRE_SERVICES=1.
"""

import os
import subprocess
import sys

from tests import services

NO_TESTS_COLLECTED = 5


def main(arguments: list[str]) -> int:
    chosen = os.environ.get("AUTORUN_TEST_DATABASE")
    # The closing lines are what is read first: SQLite's, which has the whole suite, or those of the
    # first database on which a test fails.
    databases = [chosen] if chosen else [*reversed(services.DATABASES)]
    silent = {
        name: why for name in [*databases, *services.BROKERS] if (why := services.silence(name))
    }
    for name, why in silent.items():
        print(f"{name}: not tested, it does not answer ({why})", flush=True)
    if silent and services.are_required():
        print("AUTORUN_REQUIRE_SERVICES=1, so that is a failure.")
        return 1
    codes = []
    for database in databases:
        if database not in silent:
            codes.append(_run(database, arguments))
            if codes[-1] not in (0, NO_TESTS_COLLECTED):
                return 1
    return 0 if 0 in codes else NO_TESTS_COLLECTED


def _run(database: str, arguments: list[str]) -> int:
    print(f"\nTests on {database}", flush=True)
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.call(command, env=os.environ | {"AUTORUN_TEST_DATABASE": database})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
