"""Limits that runners share, such as those of a service that their bodies call.

from autorun.limits import Limit

AUTORUN = {"LIMITS": {"openai": Limit(parallel=20, rate="3000/m")}}

A runner names one by `LIMIT = "openai"`. The module can be imported by a settings module.
"""

import re
from dataclasses import dataclass

#: Seconds in each unit of a rate.
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_RATE = re.compile(r"(\d+(?:\.\d+)?)/([smhd])")


@dataclass(frozen=True)
class Limit:
    """At most `parallel` runs at once, and at most `rate` calls of bodies.

    The limit covers all workers and all runners that name it. A rate is a number of calls per
    second, minute, hour or day: "3000/m". None means no such limit. Raises ValueError for a wrong
    value.
    """

    parallel: int | None = None
    rate: str | None = None

    def __post_init__(self) -> None:
        if self.parallel is None and self.rate is None:
            raise ValueError('This limits nothing. Write Limit(parallel=20, rate="3000/m").')
        is_integer = isinstance(self.parallel, int) and not isinstance(self.parallel, bool)
        if self.parallel is not None and not (is_integer and self.parallel > 0):
            raise ValueError(
                f"parallel is {self.parallel!r}, which is not an integer of 1 or more. "
                "Write Limit(parallel=20); leave it out for no such limit."
            )
        if self.rate is not None and not self.per_second > 0:
            raise ValueError(
                f"rate is {self.rate!r}, which is not a number above 0 with a unit: /s, /m, /h "
                'or /d. Write Limit(rate="3000/m"); leave it out for no such limit.'
            )

    @property
    def per_second(self) -> float:
        """Calls a second; 0 for any number."""
        match = _RATE.fullmatch(self.rate) if isinstance(self.rate, str) else None
        return float(match[1]) / UNITS[match[2]] if match else 0.0

    @property
    def unit_seconds(self) -> float:
        """The seconds within which the service counts calls: a minute for "3000/m"."""
        return UNITS[self.rate[-1]] if self.rate else 0.0
