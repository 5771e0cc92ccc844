"""Checks of what this process has not imported: the Celery app, and modules of runners."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from celery import current_app
from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage

from autorun.observe.checks.problems import warning

#: The packages that are discovered, and what a module of one has to contain to be of use.
PACKAGES = {"runners": r"^class \w+\(.*Runner", "analyses": r"^@(?:\w+\.)?analysis\("}


def check_imports() -> Iterator[CheckMessage]:
    """W206 and W207."""
    yield from _celery_app()
    for config in apps.get_app_configs():
        for name, pattern in PACKAGES.items():
            yield from _left_out(config, name, pattern)


def _celery_app() -> Iterator[CheckMessage]:
    if current_app.conf.broker_write_url or current_app.conf.task_always_eager:
        return
    project = str(django_settings.SETTINGS_MODULE).partition(".")[0]
    if current_app.main == "default":  # Celery's own, for want of another
        yield warning("celery.current_app", "W206")(
            "This process has not imported the project's Celery app, so messages would go to a "
            "broker at amqp://localhost.",
            f"Import it in {project}/__init__.py: `from {project}.celery import app as "
            "celery_app`.",
        )
    elif getattr(django_settings, "CELERY_BROKER_URL", None):
        yield warning("celery.current_app", "W206")(
            f"The Celery app {current_app.main!r} has no broker: it does not read "
            "CELERY_BROKER_URL, so messages would go to amqp://localhost.",
            'Call `app.config_from_object("django.conf:settings", namespace="CELERY")`.',
        )


def _left_out(config: AppConfig, name: str, pattern: str) -> Iterator[CheckMessage]:
    package = sys.modules.get(f"{config.name}.{name}")
    for folder in map(Path, getattr(package, "__path__", ())):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join((config.name, name, *parts)).removesuffix(".__init__")
            text = path.read_text(errors="replace")
            if module in sys.modules or not re.search(pattern, text, re.MULTILINE):
                continue
            yield warning(module, "W207")(
                f"{module} is not imported, so what it declares is not registered.",
                f"Add `import {module}` to {folder / '__init__.py'}.",
            )
