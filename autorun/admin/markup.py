"""Times, code, JSON, outputs and templates as HTML."""

import datetime as dt
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from django.template import engines
from django.template.backends.django import DjangoTemplates
from django.template.loader import render_to_string
from django.utils import formats, timezone
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString, mark_safe

from autorun.state.words import ago, encodable, escaped, harmless

#: What a form sends back as it is.
_SENT = re.compile(r'(\svalue="[^"]*")')


#: A picture that a browser shows without asking any server.
PICTURE = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/=\s]+\Z")
#: Larger outputs are shown as JSON alone.
MOST_VALUES = 50
MOST_CHARACTERS = 500
#: Characters of JSON that are shown at all; the rest is a page of text.
MOST_SHOWN = 200_000


def rendered(template: str, context: dict[str, Any]) -> SafeString:
    """Return a template of autorun, rendered by Django's engine."""
    html = render_to_string(f"autorun/{template}.html", context, using=django_engine())
    return harmless_html(html)


def harmless_html(html: str) -> SafeString:
    """The HTML with a sign in place of each character that is invisible or turns a line around."""
    # Those in the values of forms stay.
    if html != (changed := harmless(html)):
        parts = _SENT.split(html)
        parts[::2] = map(harmless, parts[::2])
        changed = "".join(parts)
    return mark_safe(changed)  # noqa: S308  it was HTML, and no sign has a meaning in it


def django_engine() -> str | None:
    """Return the name of Django's template engine: TEMPLATES may have another one before it."""
    return next((each.name for each in engines.all() if isinstance(each, DjangoTemplates)), None)


def time_since(when: dt.datetime | None) -> SafeString:
    """`3 min ago`, with the exact time as its title; '' for None."""
    if when is None:
        return SafeString("")
    local = timezone.localtime(when) if timezone.is_aware(when) else when
    title = formats.date_format(local, "DATETIME_FORMAT")
    html = '<time datetime="{}" title="{}">{}</time>'
    return format_html(html, when.isoformat(), title, ago(when))


def prose(text: str) -> SafeString:
    """Text with everything between backticks as code."""
    parts = conditional_escape(text).split("`")
    if len(parts) % 2 == 0:
        return mark_safe("`".join(parts))  # noqa: S308  escaped above
    coded = [f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)]
    return mark_safe("".join(coded))  # noqa: S308  escaped above


def as_json(value: Any, *, most: int | None = None) -> str:
    """Indented JSON, keys in their order; its first `most` characters if that is given.

    Characters that a browser or a terminal would not show are escaped.

    Indentation makes deeply nested values many times longer, so no more than those are written.
    """
    encoder = json.JSONEncoder(indent=2, ensure_ascii=False, default=str)
    if most is None:
        return escaped(encodable(encoder.encode(value)))
    parts, length = [], 0
    for part in encoder.iterencode(value):
        parts.append(part)
        length += len(part)
        if length >= most:
            break
    return escaped(encodable("".join(parts)[:most]))


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
