"""Numbers, times, schedules and reasons in words, the same on the pages and the command line.

They are in the active language, which is English on the command line.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from django.utils import dateformat, formats, timezone
from django.utils.translation import gettext as _, ngettext
from django.utils.translation.trans_null import gettext_noop  # the usual one reads the settings

#: What is the case with a row that a planning pass checks: "12 rows: changed since their last run".
REASONS: Mapping[str, str] = {
    "missing": gettext_noop("never run"),
    "changed": gettext_noop("changed since their last run"),
    "preparable": gettext_noop("failed for lack of an input that can be prepared now"),
    "failed": gettext_noop("failed, no attempts left"),
    "done": gettext_noop("up to date"),
    "not_applicable": gettext_noop("not applicable"),
    "under_way": gettext_noop("in progress"),
    "unprepared": gettext_noop("input cannot be prepared"),
    "filtered": gettext_noop("excluded by the filter, or waiting for another runner"),
}

_UNITS = ((gettext_noop("d"), 86_400), ("h", 3_600), ("min", 60), ("s", 1))
#: An estimate below each limit is rounded to so many seconds.
_STEPS = ((10, 1), (60, 5), (600, 30), (3_600, 60), (36_000, 600))
_DAYS = gettext_noop("Sundays,Mondays,Tuesdays,Wednesdays,Thursdays,Fridays,Saturdays")
#: States and entries of filters, for the catalogues: the pages translate them by their names.
NAMES = (
    gettext_noop("waiting"), gettext_noop("postponed"), gettext_noop("queued"),
    gettext_noop("running"), gettext_noop("parked"), gettext_noop("succeeded"),
    gettext_noop("failed"), gettext_noop("not applicable"), gettext_noop("not_applicable"),
    gettext_noop("ignored"), gettext_noop("cancelled"), gettext_noop("superseded"),
    gettext_noop("pending"), gettext_noop("finished"), gettext_noop("paused"), gettext_noop("ok"),
    gettext_noop("warning"), gettext_noop("error"), gettext_noop("idle"), gettext_noop("save"),
    gettext_noop("write"), gettext_noop("sweep"), gettext_noop("backfill"), gettext_noop("code"),
    gettext_noop("related"), gettext_noop("dependency"), gettext_noop("related row"),
    gettext_noop("related write"), gettext_noop("added"), gettext_noop("row added"),
    gettext_noop("removed"), gettext_noop("row removed"),
    gettext_noop("1h"), gettext_noop("24h"), gettext_noop("7d"), gettext_noop("30d"),
    gettext_noop("pending rows"), gettext_noop("missing rows"), gettext_noop("changed rows"),
    gettext_noop("failed rows"), gettext_noop("not_applicable rows"), gettext_noop("all rows"),
    gettext_noop("all rows, again"),
)  # fmt: skip


#: Characters that act on a terminal instead of being shown, each with one that is shown instead.
_ACTING = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    # Of the upper half of Latin-1, the line separators, and what turns the direction of a line.
    **dict.fromkeys([*range(0x80, 0xA0), 0x2028, 0x2029, 0x061C, 0x200E, 0x200F], 0xFFFD),
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


def spoken(relation: str) -> str:
    """A path over relations as words: "session subject"."""
    return relation.replace("__", " ").replace("_", " ")


def harmless(text: str) -> str:
    """The text, as long as before, without characters that control a terminal or turn a line."""
    # Keys, names and messages of exceptions come from anyone who can name a file.
    return text.translate(_ACTING)


def in_one_line(text: str) -> str:
    """The text, as long as before and harmless, with a sign in place of each line break."""
    return harmless(text).replace("\n", "\u240a")


def escaped(json: str) -> str:
    """The JSON with escapes in place of such characters."""
    return json.translate({code: f"\\u{code:04x}" for code in _ACTING})


def encodable(text: str) -> str:
    """The text with escapes in place of lone surrogates, as from the name of a file."""
    return text.encode(errors="backslashreplace").decode()


def number(value: int | None, *, is_about: bool = False) -> str:
    """An integer with thousands separators, `98,765` or `about 98,765`; '' for None."""
    if value is None:
        return ""
    exact = formats.number_format(value, force_grouping=True)
    return _("about %s") % exact if is_about else exact


def approximate(value: float | None) -> str:
    """A number with six significant digits; '' for None."""
    if value is None:
        return ""
    rounded = float(f"{value:.6g}")
    return formats.localize(int(rounded) if rounded.is_integer() else rounded)


def some_of(some: int, most: float) -> str:
    """`3 of 8`; `3` if there is no maximum."""
    if not most:
        return number(some)
    return _("%(some)s of %(all)s") % {"some": number(some), "all": number(int(most))}


def number_in(state: str, value: int, *, is_about: bool = False) -> str:
    """So many runs or runners in a state: `3 failed`, `about 3 failed`; '' for none."""
    message = {
        "succeeded": ngettext("%s succeeded", "%s succeeded", value),
        "failed": ngettext("%s failed", "%s failed", value),
        "parked": ngettext("%s parked", "%s parked", value),
        "in progress": ngettext("%s in progress", "%s in progress", value),
        "pending": ngettext("%s pending", "%s pending", value),
        "stale": ngettext("%s stale", "%s stale", value),
        "paused": ngettext("%s paused", "%s paused", value),
    }[state]
    return message % number(value, is_about=is_about) if value else ""


def in_words(name: str, number: int = 1) -> str:
    """The name of a state as pages show it, for so many rows or runs: `not applicable`."""
    agreeing = {
        "succeeded": ngettext("succeeded", "succeeded", number),
        "postponed": ngettext("postponed", "postponed", number),
        "parked": ngettext("parked", "parked", number),
        "not applicable": ngettext("not applicable", "not applicable", number),
        "ignored": ngettext("ignored", "ignored", number),
        "cancelled": ngettext("cancelled", "cancelled", number),
    }
    name = name.replace("_", " ")
    return agreeing.get(name) or _(name)


def short_number(value: int) -> str:
    """A count in at most five characters or so: `98,765`, `123k`, `4.56M`."""
    if value < 100_000:
        return f"{value:,}"
    if value < 1_000_000:
        return f"{value // 1_000}k"
    return f"{value / 1_000_000:.2f}M"


def counted(value: int, one: str, many: str = "") -> str:
    """`1 run`, `2,000 runs`; `many` for what an "s" does not make plural: `2 runs are`."""
    return f"{value:,} {one if value == 1 else many or f'{one}s'}"


def because(reason: str) -> str:
    """A reason as the end of a sentence that has no full stop yet; "" without one."""
    return f": {reason.rstrip('.')}" if reason else ""


def duration(seconds: float | None) -> str:
    """Seconds in at most two units: `340 ms`, `2.1 s`, `3 min 20 s`, `2 h 5 min`; '' for None."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else _("under 1 ms")
    if seconds < 60:
        return f"{_decimal(seconds, 1)} s" if seconds < 9.95 else f"{int(seconds)} s"
    index = next(index for index, (_, size) in enumerate(_UNITS) if seconds >= size)
    (unit, size), (smaller, smaller_size) = _UNITS[index : index + 2]
    whole, rest = divmod(int(seconds), size)
    part = rest // smaller_size
    return f"{whole} {_(unit)} {part} {_(smaller)}" if part else f"{whole} {_(unit)}"


def estimate(seconds: float | None) -> str:
    """The same of a guess, rounded by less than a tenth: `25 s`, `3 min 30 s`, `2 h 10 min`."""
    if seconds is None:
        return ""
    step = next((step for limit, step in _STEPS if seconds < limit), 3_600)
    rounded = max(1, round(seconds / step) * step)
    return f"{rounded} s" if rounded < 60 else duration(rounded)


def rate(per_second: float) -> str:
    """Runs a second, a minute or an hour, in the first unit that gives at least 1; '' for none."""
    if not per_second:
        return ""
    for factor, words in ((1, _("%s runs/s")), (60, _("%s runs/min")), (3_600, _("%s runs/h"))):
        value = per_second * factor
        if value >= 1:
            return words % (number(round(value)) if value >= 10 else _decimal(value, 1))
    return words % _decimal(value, 2)


def ago(when: dt.datetime) -> str:
    """The time since a moment, or until one: `3 min ago`, `in 2 h`, `now`."""
    seconds = (timezone.now() - when).total_seconds()
    if abs(seconds) < 1:
        return _("now")
    unit, size = next((unit, size) for unit, size in _UNITS if abs(seconds) >= size)
    text = f"{int(abs(seconds) // size)} {_(unit)}"
    return (_("%s ago") if seconds > 0 else _("in %s")) % text


def moment(when: dt.datetime | None) -> str:
    """A time in the project's time zone: `2031-05-04 03:00:00 CEST`; '' for None."""
    if when is None:
        return ""
    if not timezone.is_aware(when):
        return dateformat.format(when, _("Y-m-d H:i:s"))
    local = timezone.localtime(when)
    return f"{dateformat.format(local, _('Y-m-d H:i:s'))} {local:%Z}"


def schedule(value: Any) -> str:
    """When a schedule of celery's is due: `daily 03:00`, `Mondays 03:00`, `every 5 min`.

    A crontab that is none of these is quoted: `cron 0 3 1 * *`.
    """
    if value is None:
        return _("no sweeps")
    every = getattr(value, "run_every", value)
    if isinstance(every, dt.timedelta):
        return _("every %s") % duration(every.total_seconds())
    return _crontab(value) if hasattr(value, "_orig_minute") else str(value)


def meant(
    word: str,
    among: Iterable[str],
    *,
    cutoff: float = 0.6,
    plain: Callable[[str], str] | None = None,
) -> str | None:
    """The one of `among` that `word` is probably a slip of, or None.

    `cutoff` is how alike the two must be, from 0 to 1, after `plain` has removed from each what
    does not distinguish it: case and underscores by default.
    """

    stem = plain or (lambda name: name.replace("_", "").lower())

    def likeness(name: str) -> tuple[float, float]:
        return _ratio(stem(word), stem(name)), _ratio(word, name)

    best = max(among, key=likeness, default=None)
    return best if best is not None and likeness(best)[0] >= cutoff else None


def suggestion(word: str, among: Iterable[str], *, otherwise: str = "", **how: Any) -> str:
    """`Did you mean 'scan'?`, about the one of `among` that is `meant`; `otherwise` if none is."""
    close = meant(word, among, **how)
    return f"Did you mean {close!r}?" if close else otherwise


def _crontab(value: Any) -> str:
    names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    minute, hour, *days = parts = [str(getattr(value, f"_orig_{name}")) for name in names]
    if parts[1:] == ["*"] * 4 and minute.startswith("*/"):
        return _("every %s") % f"{minute[2:]} min"
    if minute.isdigit() and hour.isdigit() and days[:2] == ["*", "*"]:
        time = f"{int(hour):02}:{int(minute):02}"
        if days[2] == "*":
            return _("daily %s") % time
        if days[2] in tuple("01234567"):
            return f"{_(_DAYS).split(',')[int(days[2]) % 7]} {time}"
    return f"cron {' '.join(parts)}"


def _decimal(value: float, places: int) -> str:
    return formats.number_format(f"{value:.{places}f}", force_grouping=True)


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()
