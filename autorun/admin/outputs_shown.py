"""Outputs as a page shows them: flat ones as a table, pictures as pictures."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: A picture that a browser shows without asking any server.
PICTURE = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/=\s]+\Z")
#: Larger outputs are shown as JSON alone.
MOST_VALUES = 50
MOST_CHARACTERS = 500
#: Characters of JSON that are shown at all; the rest is a page of text.
MOST_SHOWN = 200_000


@dataclass(frozen=True)
class OutputLine:
    """One value of flat outputs: its columns. `picture` is the address of an image, or ''."""

    name: str
    text: str
    picture: str = ""


def as_lines(outputs: Any) -> list[OutputLine]:
    """The lines of a dict without nested values, or of a picture; none for other outputs."""
    values = outputs if isinstance(outputs, Mapping) else {"": outputs}
    if len(values) > MOST_VALUES or any(isinstance(each, dict | list) for each in values.values()):
        return []
    lines = [_line(name, value) for name, value in values.items()]
    return lines if isinstance(outputs, Mapping) or lines[0].picture else []


def _line(name: str, value: Any) -> OutputLine:
    if isinstance(value, str) and PICTURE.match(value):
        return OutputLine(name, "", value)
    text = value if isinstance(value, str) else json.dumps(value)
    cut = text[:MOST_CHARACTERS]
    return OutputLine(name, cut if cut == text else f"{cut}…")
