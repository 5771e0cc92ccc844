"""Paths of the checkout."""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def var_directory() -> Path:
    """The directory of run-time files: `AUTORUN_VAR` or `var/`; created if it does not exist."""
    directory = Path(os.environ.get("AUTORUN_VAR") or CHECKOUT / "var").absolute()
    directory.mkdir(parents=True, exist_ok=True)
    return directory
