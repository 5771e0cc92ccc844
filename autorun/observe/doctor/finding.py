"""The result of one examination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from celery import current_app

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """A result of the doctor; warnings and errors have a `hint` that says what to do."""

    level: Level
    subject: str
    message: str
    hint: str = ""


def ok(subject: str, message: str) -> Finding:
    return Finding("ok", subject, message)


def warning(subject: str, message: str, hint: str) -> Finding:
    return Finding("warning", subject, message, hint)


def error(subject: str, message: str, hint: str) -> Finding:
    return Finding("error", subject, message, hint)


def celery_command(*arguments: str) -> str:
    """`celery -A APP ARGUMENTS` in backticks, with the project's app if it has a name."""
    return f"`celery -A {current_app.main or 'your_project'} {' '.join(arguments)}`"
