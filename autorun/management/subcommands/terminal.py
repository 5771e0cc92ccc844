"""Output of a subcommand to a terminal, a pipe or a file, with colour or without."""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO, cast

from django.core.serializers.json import DjangoJSONEncoder
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from autorun.state.words import harmless, in_one_line

#: Width of a pipe or a file: programs that read it expect unbroken lines.
UNLIMITED = 10_000
#: Columns that a layout fills if the width is unlimited.
DEFAULT_WIDTH = 80

#: Columns between two of a table's, and those of a word that is not folded.
BETWEEN, LONGEST_WORD = 3, 12
#: The mark and the style of each level of a finding.
SIGNS = {"ok": ("✔", "green"), "warning": ("!", "yellow"), "error": ("✘", "red")}
#: A word, or a command in backticks, with what surrounds it.
UNBROKEN = re.compile(r"(?:`[^`]*`|\S)+\s*")
#: Replacements for characters that an ASCII terminal lacks.
PLAIN = str.maketrans({"…": "...", "·": "-", "━": "=", "→": "->", "✔": "+", "✘": "x"})


class Terminal:
    """Writes text, or JSON if `as_json`, to `stream`, within its encoding and width.

    Questions go to `aside`, standard error by default, so that they are visible if `stream` is a
    file, and never part of what a pipe reads.
    """

    def __init__(
        self,
        stream: Any,
        *,
        aside: Any = None,
        no_color: bool = False,
        force_color: bool = False,
        as_json: bool = False,
    ) -> None:
        self.stream = _Forgiving(stream)
        self.aside = _Forgiving(sys.stderr if aside is None else aside)
        self.as_json = as_json
        is_terminal = getattr(self.stream, "isatty", lambda: False)()
        self.console = _HarmlessConsole(
            file=cast("TextIO", self.stream),
            no_color=no_color or None,
            color_system=None if no_color else "auto",
            force_terminal=True if force_color else None,
            highlight=False,
            markup=False,
            emoji=False,
            width=None if is_terminal or os.environ.get("COLUMNS") else UNLIMITED,
            quiet=as_json,
        )

    @property
    def is_interactive(self) -> bool:
        """Whether output can be redrawn in place."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    @property
    def has_colour(self) -> bool:
        return self.console.color_system is not None and not self.console.no_color

    @property
    def layout_width(self) -> int:
        """Columns for a layout that fills the line."""
        return DEFAULT_WIDTH if self.console.width == UNLIMITED else min(self.console.width, 100)

    def fitting(self, line: Text) -> Text:
        """The line, cut at the width of the terminal; a pipe or a file gets all of it."""
        if self.console.width != UNLIMITED:
            line.truncate(self.console.width, overflow="ellipsis")
        return line

    def say(self, *parts: str | tuple[str, str] | Text) -> None:
        """Print a paragraph of text and styled text, not wrapped inside a command in backticks."""
        for paragraph in Text.assemble(*parts).split("\n", allow_blank=True):
            lines = paragraph.divide(_breaks(paragraph.plain, self.console.width))
            for line in lines[:-1]:
                line.rstrip()
            for line in lines:
                self.console.print(line, soft_wrap=True)

    def hint(self, text: str) -> None:
        """Print the next step, a command to copy, without wrapping it."""
        self.console.print(Text(text, style="dim"), soft_wrap=True)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
        """Print rows under headings: those of numbers start with #, of names to copy with =.

        If that breaks words, a row is a paragraph with a heading before each of its cells.
        """
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        # Only a Text may have several lines: data could otherwise pass for a row of its own.
        cells = [
            [each if isinstance(each, Text) else Text(in_one_line(each)) for each in row]
            for row in rows
        ]
        names = [heading.lstrip("#=") for heading in headings]
        for place, (heading, name) in enumerate(zip(headings, names, strict=True)):
            is_whole = heading.startswith(("#", "="))
            table.add_column(
                name,
                justify="right" if heading.startswith("#") else "left",
                no_wrap=is_whole,
                overflow="fold",
                min_width=_least_width([Text(name), *(row[place] for row in cells)], is_whole),
            )
        least = sum(column.min_width or 0 for column in table.columns)
        if least + BETWEEN * (len(names) - 1) > self.console.width:
            for row in cells:
                said = [Text.assemble(name, " ", row[n]) for n, name in enumerate(names) if row[n]]
                self.say(Text(" · ").join(said))
            return
        for row in cells:
            table.add_row(*row)
        self.console.print(table)

    def json(self, value: Any) -> None:
        """Print `value` as JSON, times in ISO 8601, if that is the format."""
        if self.as_json:
            self.stream.write(json.dumps(value, cls=DjangoJSONEncoder, indent=2) + "\n")

    @property
    def can_ask(self) -> bool:
        """Whether a question can be answered, even if the output goes to a file."""
        return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()

    def confirm(self, question: str) -> bool:
        self.aside.write(f"{harmless(question)} [y/N] ")
        self.aside.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def _least_width(cells: Iterable[Text], is_whole: bool) -> int:
    """The width of the longest cell, or of the longest word, of which a part is enough."""
    texts = [each.plain for each in cells]
    if is_whole:
        return max(map(cell_len, texts))
    return min(LONGEST_WORD, max(cell_len(word) for text in texts for word in (*text.split(), "")))


def _breaks(text: str, width: int) -> list[int]:
    """Offsets at which lines of `width` columns start."""
    breaks: list[int] = []
    column = len(text) - len(text.lstrip())
    for word in UNBROKEN.finditer(text):
        if word.start() and column + cell_len(word[0].rstrip()) > width:
            breaks.append(word.start())
            column = 0
        column += cell_len(word[0])
    return breaks


class _HarmlessConsole(Console):
    """A console whose own escape sequences are the only ones that reach the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else harmless(text), style, control)


class _Forgiving:
    """A text stream that replaces characters that its encoding lacks, instead of raising."""

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
