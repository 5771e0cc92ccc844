"""How long a failed run waits before its next attempt."""

import random

LONGEST = 3600.0  # seconds
#: What stands in for a hook that raises, in seconds.
FALLBACK = 60.0


def exponential(first: float, attempt: int) -> float:
    """Seconds to wait after the `attempt`-th attempt: doubled each time, jittered by a quarter."""
    seconds: float = min(first * 2 ** min(attempt - 1, 30), LONGEST)
    return seconds * random.uniform(0.75, 1.25)
