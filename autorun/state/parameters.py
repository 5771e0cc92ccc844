"""Values from addresses and forms, which may be anything: meaningless ones are ignored."""

import datetime as dt
from collections.abc import Container, Mapping
from typing import Any

from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _

#: How long ago something may have been, by the words of an address.
SINCE: Mapping[str, dt.timedelta] = {
    "1h": dt.timedelta(hours=1),
    "24h": dt.timedelta(hours=24),
    "7d": dt.timedelta(days=7),
    "30d": dt.timedelta(days=30),
}

#: The range of integer keys that every database takes.
LEAST, MOST = -(1 << 63), (1 << 63) - 1
LONGEST_NUMBER = len(str(LEAST))
LONGEST_TEXT = 255


def read_number(given: object, *, least: int = 0, most: int = MOST) -> int | None:
    """The whole number in `given`, text or JSON; None if it is not a number in that range."""
    if isinstance(given, int) and not isinstance(given, bool):
        number = given
    else:
        text = given.strip() if isinstance(given, str) else ""
        digits = text.removeprefix("-")
        # Python is slow to read a number with thousands of digits, or refuses to.
        if not (digits.isascii() and digits.isdecimal()) or len(text) > LONGEST_NUMBER:
            return None
        number = int(text)
    return number if least <= number <= most else None


def no_number(given: object, *, least: int = 0, most: int = MOST) -> str:
    """The error message for a field that must hold a number in that range; '' if it does."""
    text = "" if given is None else str(given).strip()
    if not text or read_number(text, least=least, most=most) is not None:
        return ""
    of = {"text": text[:40], "least": f"{least:,}", "most": f"{most:,}"}
    return _("“%(text)s” is not a whole number from %(least)s to %(most)s.") % of


def read_time(given: object) -> dt.datetime | None:
    """The time in `given`, to the minute, or None; in the project's zone unless it names one."""
    # A browser writes a date and a time like this: `2031-05-04T03:00`.
    try:
        when = parse_datetime(str(given))
        if when is None:
            return None
        aware = when if timezone.is_aware(when) else timezone.make_aware(when)
        local = timezone.localtime(aware).replace(second=0, microsecond=0)
        local.timestamp()
    except (ValueError, OverflowError):
        return None
    return local


def read_text(given: Mapping[str, Any], name: str) -> str:
    # PostgreSQL refuses NUL in a text.
    return str(given.get(name, "")).replace("\0", "").strip()[:LONGEST_TEXT]


def read_one_of(known: Container[object], given: object) -> str:
    """`given` if it is known, else ''."""
    return str(given) if given in known else ""
