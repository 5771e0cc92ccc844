"""What an examination says about one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from celery import current_app

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """`level` is "ok", "warning" or "error"; the last two have a `hint` that says what to do."""

    level: Level
    subject: str
    message: str
    hint: str = ""


def ok(subject: str, message: str) -> Finding:
    return Finding("ok", subject, message)


def app_name() -> str:
    """What stands behind `celery -A` in this project, as far as that can be known."""
    return current_app.main or "your_project"


def number_of(count: int, one: str, many: str) -> str:
    """`1 run is`, `2 runs are`."""
    return f"{count} {one if count == 1 else many}"


def duration(seconds: float) -> str:
    """`seconds` as people say it, in its largest unit."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        number = int(seconds // length)
        if number:
            return f"{number} {unit}{'s' * (number != 1)}"
    return f"{max(seconds, 0):.0f} s"
