"""The project's Celery app: what `-A` calls it, and what the settings call its options."""

import sys
from typing import Any

from celery import current_app
from celery.app import defaults
from django.conf import settings as django_settings

PREFIX = "CELERY_"
#: The names that options have in settings which are read without a namespace.
OLD_NAMES: dict[str, str] = vars(defaults)["_TO_OLD_KEY"]


def setting_of(option: str) -> str:
    """Return the name by which the project's Celery app reads `option`, if it reads anything."""
    app: Any = current_app
    if app.namespace or not app._config_source:
        return f"{app.namespace or 'CELERY'}_{option.upper()}"
    if app._config_source in ("django.conf:settings", django_settings):
        return OLD_NAMES[option]
    return option


def unread_settings() -> list[str]:
    """Return the options that Django's settings have as CELERY_OPTION and the app does not."""
    app: Any = current_app
    found = []
    for name in filter(lambda name: name.startswith(PREFIX), dir(django_settings)):
        option = name.removeprefix(PREFIX).lower()
        if option not in OLD_NAMES or (app._config_source and setting_of(option) == name):
            continue
        if app.conf.get(option) != getattr(django_settings, name):
            found.append(option)
    return found


def celery_command(*arguments: str) -> str:
    """`celery -A APP ARGUMENTS` in backticks, with the module that has the project's app."""
    return f"`celery -A {_module() or 'your_project'} {' '.join(arguments)}`"


def _module() -> str:
    app: Any = current_app
    names = [
        name.removesuffix(".celery")
        for name, module in list(sys.modules.items())
        if app in (vars(module).get("app"), vars(module).get("celery_app"))
    ]
    project = str(django_settings.SETTINGS_MODULE).partition(".")[0]
    # Others may have imported it.
    is_elsewhere = {name: name.partition(".")[0] not in (project, app.main) for name in names}
    return min(names, key=lambda name: (is_elsewhere[name], name.count("."), name), default="")
