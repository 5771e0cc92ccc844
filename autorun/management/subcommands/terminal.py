"""Where a subcommand's output goes: a terminal, a pipe, a file; with colour or without."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO, cast

from django.core.serializers.json import DjangoJSONEncoder
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autorun.state.clock import as_told

#: Lines that nobody's terminal breaks: what reads a pipe wants them whole.
UNLIMITED = 10_000
#: Columns that a layout of our own fills, where nothing says how many there are.
USUAL = 80

#: What stands for characters that an ASCII terminal does not have.
PLAIN = str.maketrans({"…": "...", "·": "-", "━": "=", "→": "->", "✔": "+", "✘": "x"})


class Terminal:
    """Writes to `stream`, as its encoding, its width and the user's wishes allow.

    Questions go to `aside`, standard error by default, so that they are seen where `stream` leads
    into a file, and are not among what is read from a pipe.
    """

    def __init__(
        self,
        stream: Any,
        *,
        aside: Any = None,
        no_color: bool = False,
        force_color: bool = False,
    ) -> None:
        self.stream = _Forgiving(stream)
        self.aside = _Forgiving(sys.stderr if aside is None else aside)
        self.console = Console(
            file=cast("TextIO", self.stream),
            no_color=no_color or None,
            color_system=None if no_color else "auto",
            force_terminal=True if force_color else None,
            highlight=False,
            markup=False,
            emoji=False,
            width=self._forced_width(),
        )

    @property
    def is_interactive(self) -> bool:
        """Whether somebody looks at it while it is written."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    @property
    def has_colour(self) -> bool:
        return self.console.color_system is not None and not self.console.no_color

    @property
    def layout_width(self) -> int:
        """Columns for a layout that fills the line."""
        return USUAL if self.console.width == UNLIMITED else min(self.console.width, 100)

    def say(self, *parts: str | tuple[str, str] | Text) -> None:
        """One line; parts are text, or text with a style."""
        self.console.print(Text.assemble(*parts))

    def hint(self, text: str) -> None:
        """What to do next."""
        self.say((text, "dim"))

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
        """Rows under headings; numbers and short words are not broken."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        for heading in headings:
            is_number = heading.startswith("#")
            table.add_column(
                heading.removeprefix("#"),
                justify="right" if is_number else "left",
                no_wrap=is_number,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(each if isinstance(each, Text) else Text(each) for each in row))
        self.console.print(table)

    def json(self, value: Any) -> None:
        """`value` as JSON, times in ISO 8601."""
        self.stream.write(json.dumps(value, cls=DjangoJSONEncoder, indent=2) + "\n")

    @property
    def can_ask(self) -> bool:
        """Whether somebody can answer, wherever the output goes."""
        return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()

    def confirm(self, question: str) -> bool:
        """Whether the person at the terminal says yes."""
        self.aside.write(f"{question} [y/N] ")
        self.aside.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _forced_width(self) -> int | None:
        is_terminal = getattr(self.stream, "isatty", lambda: False)()
        return None if is_terminal or os.environ.get("COLUMNS") else UNLIMITED


class _Forgiving:
    """A text stream that replaces what its encoding cannot hold, instead of raising."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            plain = text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
            return self._stream.write(plain)


def number(value: int) -> str:
    """A count in few characters: 98,765, 123k, 4.56M."""
    if value < 100_000:
        return f"{value:,}"
    if value < 1_000_000:
        return f"{value // 1_000}k"
    return f"{value / 1_000_000:.2f}M"


def plural(count: int, noun: str, nouns: str = "") -> str:
    """`3 runs`, `1 run`."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def moment(value: dt.datetime | None) -> str:
    """A time as people here tell it; '' for none."""
    return "" if value is None else as_told(value)


def seconds(value: float) -> str:
    """A duration in one or two units."""
    if value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 10:
        return f"{value:.2g} s"
    if value < 120:
        return f"{value:.0f} s"
    if value < 7_200:
        return f"{value / 60:.0f} min"
    return f"{value / 3_600:.0f} h" if value < 172_800 else f"{value / 86_400:.0f} days"
