"""Outputs as a page shows them: values under their names, pictures as pictures."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from autorun.state.words import encodable

#: A picture that a browser shows without asking any server.
PICTURE = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/=\s]+\Z")
#: Larger outputs are shown as JSON alone.
MOST_VALUES = 50
MOST_CHARACTERS = 500
#: Characters of JSON that are shown at all; the rest is a page of text.
MOST_SHOWN = 200_000


@dataclass(frozen=True)
class OutputLine:
    """One value of the outputs: its columns. `picture` is the address of an image, or ''."""

    name: str
    text: str
    picture: str = ""

    @classmethod
    def of(cls, name: str, value: Any) -> Self:
        if isinstance(value, str) and PICTURE.match(value):
            return cls(name, "", value)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        cut = encodable(text[:MOST_CHARACTERS])
        return cls(name, cut if len(text) <= MOST_CHARACTERS else f"{cut}…")


def as_lines(outputs: Any) -> list[OutputLine]:
    """The lines of a dict, nested values as JSON, or of a picture; none for other outputs."""
    if isinstance(outputs, Mapping):
        items = outputs.items() if len(outputs) <= MOST_VALUES else ()
        return [OutputLine.of(name, value) for name, value in items]
    line = OutputLine.of("", outputs)
    return [line] if line.picture else []
