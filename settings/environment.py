"""Where things are."""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def var_directory() -> Path:
    """Where run-time files go: `AUTORUN_VAR`, else `var/` in the checkout. Created when absent."""
    directory = Path(os.environ.get("AUTORUN_VAR") or CHECKOUT / "var").absolute()
    directory.mkdir(parents=True, exist_ok=True)
    return directory
