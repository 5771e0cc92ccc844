"""The environment that this process runs its analyses in: Python, packages and git revision."""

import hashlib
import json
import os
import platform
import re
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

# The folder of an installed package's metadata: `name-1.2.dist-info`.
_METADATA = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(-py[\d.]+)?\.(dist|egg)-info")


@cache
def environment() -> dict[str, Any]:
    """Python's version, the installed packages with theirs, and the project's git revision."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": dict(sorted(_packages().items())),
        "revision": _revision(),
    }


@cache
def environment_digest() -> str:
    return hashlib.sha256(json.dumps(environment(), sort_keys=True).encode()).hexdigest()


def _packages() -> dict[str, str]:
    """The packages by the names of their folders; reading their metadata takes 30 times as long."""
    found: dict[str, str] = {}
    for place in sys.path:
        with suppress(OSError):
            for folder in Path(place or ".").iterdir():
                if match := _METADATA.fullmatch(folder.name):
                    # The first on the path is the one that is imported.
                    found.setdefault(match["name"].lower().replace("_", "-"), match["version"])
    return found


def _revision() -> str:
    """The commit that the settings module's working copy is at; "" without one."""
    settings = sys.modules.get(os.environ.get("DJANGO_SETTINGS_MODULE", ""))
    start = Path(getattr(settings, "__file__", None) or ".").resolve()
    for folder in (start, *start.parents):
        if (folder / ".git").exists():
            with suppress(OSError):
                return _head(folder / ".git")
    return ""


def _head(git: Path) -> str:
    if git.is_file():  # of a worktree or a submodule
        git = (git.parent / git.read_text().partition(":")[2].strip()).resolve()
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    common = git / "commondir"
    places = [git, (git / common.read_text().strip()).resolve()] if common.exists() else [git]
    for place in places:
        if (place / name).exists():
            return (place / name).read_text().strip()
        with suppress(OSError):
            for line in (place / "packed-refs").read_text().splitlines():
                if line.endswith(f" {name}"):
                    return line.partition(" ")[0]
    return ""
