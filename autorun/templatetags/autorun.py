"""Numbers, times and states as people read them: `{% load autorun %}`."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from django import template
from django.utils import formats, timezone
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString, mark_safe

register = template.Library()

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


@register.filter
def number(value: Any) -> str:
    """An integer with its thousands apart; '' for None."""
    return "" if value is None else f"{int(value):,}"


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds in the two units that matter: `340 ms`, `2.1 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return ""
    if seconds < 1:
        milliseconds = seconds * 1000
        return f"{milliseconds:.0f} ms" if milliseconds >= 1 else "under 1 ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for index, (unit, size) in enumerate(_UNITS):
        if seconds >= size:
            smaller, smaller_size = (*_UNITS, ("s", 1))[index + 1]
            whole, rest = divmod(int(seconds), size)
            part = rest // smaller_size
            return f"{whole} {unit} {part} {smaller}" if part else f"{whole} {unit}"
    return ""


@register.filter
def ago(when: dt.datetime | None) -> SafeString:
    """A moment as the time since, or until, with the exact one as its title."""
    if when is None:
        return SafeString("")
    seconds = (timezone.now() - when).total_seconds()
    exact = formats.date_format(_local(when), "DATETIME_FORMAT")
    if abs(seconds) < 1:
        text = "now"
    elif seconds >= 0:
        text = f"{_roughly(seconds)} ago"
    else:
        text = f"in {_roughly(-seconds)}"
    template_ = '<time datetime="{}" title="{}">{}</time>'
    return format_html(template_, when.isoformat(), exact, text)


@register.filter
def moment(when: dt.datetime | None) -> SafeString:
    """A moment to the second, in the project's time zone."""
    if when is None:
        return SafeString("")
    local = _local(when)
    return format_html(
        '<time datetime="{}">{}</time>', when.isoformat(), local.strftime("%Y-%m-%d %H:%M:%S")
    )


@register.filter
def rate(per_second: float) -> str:
    """Runs a second, a minute or an hour, whichever gives a number worth reading."""
    for factor, unit in ((1, "s"), (60, "min"), (3600, "h")):
        value = per_second * factor
        if value >= 1:
            return f"{value:,.0f} runs/{unit}" if value >= 10 else f"{value:.1f} runs/{unit}"
    return f"{per_second * 3600:.2f} runs/h"


@register.filter
def as_json(value: Any) -> str:
    """JSON to read, keys in their order."""
    return json.dumps(value, indent=2, ensure_ascii=False)


@register.filter
def prose(text: str) -> SafeString:
    """Text with what stands between backticks as code."""
    parts = conditional_escape(text).split("`")
    if len(parts) % 2 == 0:
        return mark_safe("`".join(parts))  # noqa: S308  escaped above
    coded = [f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)]
    return mark_safe("".join(coded))  # noqa: S308  escaped above


@register.filter
def get(mapping: Any, key: Any) -> Any:
    """`mapping[key]`, or None."""
    return mapping.get(key)


@register.inclusion_tag("autorun/state.html")
def state(name: str) -> dict[str, str]:
    """A state as a badge: its word, with a colour and a mark."""
    return {"name": name}


def _roughly(seconds: float) -> str:
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _local(when: dt.datetime) -> dt.datetime:
    """The moment in the project's time zone, in which it is already without USE_TZ."""
    return timezone.localtime(when) if timezone.is_aware(when) else when
