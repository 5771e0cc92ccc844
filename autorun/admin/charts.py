"""The geometry of the charts, which templates draw as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH = 1000
#: What there is at all can be seen.
NARROWEST = 6
HEIGHT = 100


@dataclass(frozen=True)
class Segment:
    """A part of a stacked bar, in units of a thousandth of its width."""

    name: str
    label: str
    number: int
    x: float
    width: float


def stacked(parts: Iterable[tuple[str, str, int]]) -> list[Segment]:
    """Parts, each (name, label, number), side by side over the whole width."""
    shown = [(name, label, number) for name, label, number in parts if number > 0]
    total = sum(number for _, _, number in shown)
    widths = [max(NARROWEST, WIDTH * number / total) for _, _, number in shown]
    scale = WIDTH / sum(widths) if widths else 1
    segments = []
    x = 0.0
    for (name, label, number), width in zip(shown, widths, strict=True):
        segments.append(Segment(name, label, number, round(x, 2), round(width * scale, 2)))
        x += width * scale
    return segments


@dataclass(frozen=True)
class Column:
    """A column of a small chart: `good` and, on top of it, `bad`, as heights out of 100."""

    x: int
    good: float
    bad: float

    @property
    def good_y(self) -> float:
        return HEIGHT - self.good

    @property
    def bad_y(self) -> float:
        return HEIGHT - self.good - self.bad


def columns(numbers: Sequence[tuple[int, int]]) -> list[Column]:
    """One column for each (good, bad), as high as its share of the highest."""
    highest = max((good + bad for good, bad in numbers), default=0) or 1
    return [
        Column(index * 10, _height(good, highest), _height(bad, highest))
        for index, (good, bad) in enumerate(numbers)
    ]


def _height(number: int, highest: int) -> float:
    return round(max(4.0, HEIGHT * number / highest), 1) if number else 0.0
