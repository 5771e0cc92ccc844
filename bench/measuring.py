"""Times contenders in turns, and compares them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from django.db import connection

Work = Callable[[], object]


@dataclass(frozen=True)
class Line:
    """A line of the table: `value` should be at most, or at least, `goal`; None if it has no goal.

    `seconds` are medians by contender; they promise nothing, the ratio does.
    """

    key: str
    database: str
    work: str
    against: str
    value: float
    goal: float | None = None
    at_least: bool = False
    unit: str = "times"
    seconds: Mapping[str, float] = field(default_factory=dict)
    rows: int | None = None
    note: str = ""
    points: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    @property
    def is_reached(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


class Timings:
    """Seconds of each contender, by round."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self.seconds = seconds

    def ratio(self, contender: str, reference: str) -> float:
        """The ratio of the two medians."""
        return median(self.seconds[contender]) / median(self.seconds[reference])

    def medians(self) -> dict[str, float]:
        return {name: median(each) for name, each in self.seconds.items()}

    def line(self, contender: str, reference: str, **columns: Any) -> Line:
        """The line of the ratio of two contenders."""
        return Line(
            database=connection.vendor,
            value=self.ratio(contender, reference),
            seconds=self.medians(),
            **columns,
        )


def in_turns(
    contenders: Mapping[str, Work],
    *,
    rounds: int = 5,
    before: Callable[[str], object] | None = None,
) -> Timings:
    """Run every contender once per round, in alternating order; `before` is not timed."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            if before is not None:
                before(name)
            seconds[name].append(timed(contenders[name]))
    return Timings(seconds)


def timed(work: Work) -> float:
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def growth_exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of log(cost) over log(size), by least squares."""
    xs = [math.log(size) for size, _ in points]
    ys = [math.log(cost) for _, cost in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - mean_x) ** 2 for x in xs)


def as_json(line: Line) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(line), "is_reached": line.is_reached}
