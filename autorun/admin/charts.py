"""Numbers under their names, and the geometry of the charts, which templates draw as SVG."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.utils.translation import gettext as _

from autorun.state.words import estimate, number

WIDTH = 1000
#: Any part that exists can be seen.
NARROWEST = 6
HEIGHT = 100


@dataclass(frozen=True)
class Figure:
    """A value under its name; the `note` beside it, or `otherwise` in place of none, is grey."""

    name: str
    value: str = ""
    note: str = ""
    otherwise: str = ""

    @property
    def grey(self) -> str:
        return self.note if self.value else self.otherwise


def time_left(seconds: float | None, *, is_paused: bool, is_stuck: bool, otherwise: str) -> Figure:
    """The time until all runs have finished, or the reason why it is not known."""
    if is_paused or is_stuck:
        otherwise = _("paused") if is_paused else _("no worker is processing it")
        return Figure(_("Time left"), otherwise=otherwise)
    return Figure(_("Time left"), estimate(seconds), otherwise=otherwise)


@dataclass(frozen=True)
class Part:
    """A part of a stacked bar; `query` leads to the list of its runs."""

    name: str
    words: str
    number: int
    query: str = ""
    is_about: bool = False

    @property
    def count(self) -> str:
        return number(self.number, is_about=self.is_about)

    def __str__(self) -> str:
        return f"{self.count} {self.words}"


@dataclass(frozen=True)
class Rectangle:
    """A rectangle of a chart; `name` gives its colour."""

    name: str
    x: str
    y: str
    width: str
    height: str
    title: str = ""


@dataclass(frozen=True)
class Shape:
    """The columns of one colour, which `name` gives, as the outline of an SVG path."""

    name: str
    outline: str


@dataclass(frozen=True)
class Bar:
    """A stacked bar; its label says the same in words."""

    label: str
    rectangles: Sequence[Rectangle]


def stacked(parts: Iterable[Part], *, empty: str = "") -> Bar:
    """The parts side by side over the whole width."""
    shown = [part for part in parts if part.number > 0]
    total = sum(part.number for part in shown)
    widths = [max(NARROWEST, WIDTH * part.number / total) for part in shown]
    scale = WIDTH / sum(widths) if widths else 1
    rectangles = []
    x = 0.0
    for part, width in zip(shown, widths, strict=True):
        size = f"{width * scale:.2f}"
        rectangles.append(Rectangle(part.name, f"{x:.2f}", "0", size, "10", str(part)))
        x += width * scale
    return Bar(", ".join(map(str, shown)) or empty or _("No runs yet"), rectangles)


def columns(numbers: Sequence[tuple[int, int]]) -> list[Shape]:
    """A column for each (succeeded, failed), the second on top of the first."""
    highest = max((good + bad for good, bad in numbers), default=0) or 1
    outlines: dict[str, str] = {}

    def draw(name: str, index: int, y: float, height: float) -> None:
        outline = f"M{index * 10} {y:.1f}h8v{height:.1f}h-8z"
        outlines[name] = outlines.get(name, "") + outline

    for index, (good, bad) in enumerate(numbers):
        bottom: float = HEIGHT
        for name, value in (("succeeded", good), ("failed", bad)):
            if value:
                height = max(4.0, HEIGHT * value / highest)
                bottom -= height
                draw(name, index, bottom, height)
        if not good and not bad:
            draw("nothing", index, HEIGHT - 3, 3)
    return [Shape(*each) for each in outlines.items()]
