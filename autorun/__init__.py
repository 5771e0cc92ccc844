"""Every row of a model, processed by this version of this analysis, and a record of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autorun.execution.running import Running

__version__ = "0.1.0"


def running() -> Running:
    """Return the run of the body that calls this, to report progress and to see a cancellation."""
    # Imported when it is called, because the package is imported before Django is set up.
    from autorun.execution.running import Running

    return Running()
