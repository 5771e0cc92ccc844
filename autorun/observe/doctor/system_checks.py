"""What the project's settings and code say."""

from __future__ import annotations

from collections.abc import Iterator

from celery import current_app
from django.core import checks

from autorun.declare import registry
from autorun.observe.doctor.finding import Finding, Level, ok


def examine_checks() -> Iterator[Finding]:
    """Autorun's own system checks, silenced ones apart."""
    messages = [each for each in checks.run_checks(tags=["autorun"]) if not each.is_silenced()]
    for message in sorted(messages, key=lambda each: (-each.level, str(each.obj), str(each.id))):
        level: Level = "error" if message.is_serious() else "warning"
        place = f"{message.obj}: " if message.obj else ""
        yield Finding(level, f"check {message.id}", f"{place}{message.msg}", message.hint or "")
    number = len(registry.runners())
    if not number:
        yield Finding(
            "warning",
            "runners",
            "No runner is registered, so there is nothing to do.",
            "Declare one, with a DATA_MODEL, in the module `runners` of an installed app.",
        )
    elif not messages:
        yield ok("system checks", f"{number} runner{'s' * (number != 1)}, nothing to complain of.")


def examine_eagerness() -> Iterator[Finding]:
    if current_app.conf.task_always_eager:
        yield Finding(
            "error",
            "eager mode",
            "Celery's task_always_eager is on: whoever saves a row waits for its analysis.",
            "Remove CELERY_TASK_ALWAYS_EAGER from the settings; it is for tests.",
        )
