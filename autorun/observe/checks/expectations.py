"""Conditions on the values of options and settings."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery.schedules import crontab
from django.utils.module_loading import import_string


@dataclass(frozen=True)
class Expectation:
    """A condition on a value, the condition in words, and an example that meets it."""

    words: str
    holds: Callable[[Any], bool]
    example: str

    def __or__(self, other: Expectation) -> Expectation:
        def holds(value: Any) -> bool:
            return self.holds(value) or other.holds(value)

        return Expectation(f"{self.words}, or {other.words}", holds, self.example)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_callable(value: Any) -> bool:
    """Whether `value` is a callable, or the dotted path of one."""
    if isinstance(value, str):
        try:
            return callable(import_string(value))
        except Exception:  # noqa: BLE001  importing a module of the project may raise anything
            return False
    return callable(value)


def integer(least: int, most: int | None = None, *, example: int) -> Expectation:
    words = f"an integer of {least} or more" if most is None else f"an integer, {least} to {most}"

    def holds(value: Any) -> bool:
        return is_integer(value) and least <= value and (most is None or value <= most)

    return Expectation(words, holds, str(example))


def positive(*, example: float) -> Expectation:
    return Expectation(
        "a number above 0", lambda value: is_number(value) and value > 0, f"{example:g}"
    )


def not_negative(*, example: float) -> Expectation:
    return Expectation(
        "a number of 0 or more", lambda value: is_number(value) and value >= 0, f"{example:g}"
    )


def text(*, longest: int = 255, example: str) -> Expectation:
    words = f"a string of at most {longest} characters"

    def holds(value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip()) and len(value) <= longest

    return Expectation(words, holds, repr(example))


def one_of(*choices: str) -> Expectation:
    words = " or ".join(map(repr, choices))
    return Expectation(
        words, lambda value: isinstance(value, str) and value in choices, repr(choices[0])
    )


NONE = Expectation("None", lambda value: value is None, "None")
BOOLEAN = Expectation("True or False", lambda value: isinstance(value, bool), "True")
DURATION = Expectation(
    "a datetime.timedelta above 0",
    lambda value: isinstance(value, dt.timedelta) and value > dt.timedelta(0),
    "datetime.timedelta(days=30)",
)
CALLABLE = Expectation(
    "a function, or the dotted path of one that can be imported",
    is_callable,
    '"autorun.notifications.mail_admins"',
)
SCHEDULE = (
    Expectation(
        "a celery.schedules.crontab",
        lambda value: isinstance(value, crontab),
        'crontab(minute="0", hour="3")',
    )
    | DURATION
    | NONE
)


def advice(name: str, expected: Expectation, value: Any) -> str:
    """The edit that replaces `value`, which is not as expected."""
    if expected is SCHEDULE:
        return _schedule_advice(value)
    return f"{name} = {expected.example}, for example."


def _schedule_advice(value: Any) -> str:
    fields = value.split() if isinstance(value, str) else []
    if len(fields) == 5:
        names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        given = zip(names, fields, strict=True)
        arguments = ", ".join(f'{name}="{each}"' for name, each in given if each != "*")
        return f"write crontab({arguments}), with `from celery.schedules import crontab`."
    if is_number(value) and value > 0:
        return f"write datetime.timedelta(seconds={value:g})."
    return f"write {SCHEDULE.example}, datetime.timedelta(hours=1), or None for no sweeps."
