"""Celery's settings for one test, whichever Celery is installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from settings import celery_app


def configure(**options: Any) -> None:
    """Change settings of the project's Celery app, by their lower-case names."""
    changes = _changes()
    for name, value in options.items():
        changes[name] = value
        # Before 5.7, Celery prefers the name that Django's settings have.
        changes[f"CELERY_{name.upper()}"] = value


@contextmanager
def configured(**options: Any) -> Iterator[None]:
    """Have the settings changed within the block, and as they were after it."""
    before = dict(_changes())
    configure(**options)
    try:
        yield
    finally:
        _changes().clear()
        _changes().update(before)


def _changes() -> dict[str, Any]:
    # Until a setting is read, the app is not configured, and its changes are not these.
    assert isinstance(celery_app.conf.task_always_eager, bool)
    changes: dict[str, Any] = celery_app.conf.changes
    return changes
