"""Checks that a wheel holds the package `autorun`, all of it, and nothing else.

python .ci/check_wheel.py path/to/wheel.whl
"""

import subprocess
import sys
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def main(wheel: str) -> int:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", "autorun"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    tracked = set(listed.stdout.split())
    problems = [f"not in the wheel: {name}" for name in sorted(tracked - packed)]
    problems += [f"not of the package: {name}" for name in sorted(packed - tracked)]
    languages = [f"autorun/locale/{each}/LC_MESSAGES/django.mo" for each in ("de", "fr")]
    for needed in ("autorun/py.typed", "autorun/templates/", "autorun/migrations/0001", *languages):
        if not any(name.startswith(needed) for name in packed):
            problems.append(f"needed: {needed}")
    print("\n".join(problems) or f"{Path(wheel).name} holds autorun, {len(packed)} files.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
