"""How long a failed run waits before its next attempt."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autorun.runner import QuerySetRunner

logger = logging.getLogger(__name__)

LONGEST = 3600.0  # seconds
#: What stands in for a hook that raises.
FALLBACK = 60.0


def exponential(first: float, attempt: int) -> float:
    """Seconds to wait after the `attempt`-th attempt: doubled each time, jittered by a quarter."""
    seconds: float = min(first * 2 ** min(attempt - 1, 30), LONGEST)
    return seconds * random.uniform(0.75, 1.25)


def backoff_of(runner: QuerySetRunner, attempt: int) -> float:
    """What the runner's hook says; a hook that is broken costs time, never an attempt."""
    try:
        return max(0.0, float(runner.get_retry_backoff(attempt)))
    except Exception:
        logger.exception("%s: get_retry_backoff(%d) failed.", runner.label, attempt)
        return exponential(FALLBACK, attempt)
