"""Messages of system checks."""

import inspect
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from django.apps import AppConfig, apps
from django.core import checks

from autorun.state.encoding import qualified_name
from autorun.state.masking import masked
from autorun.state.words import harmless


def error(where: object, number: str) -> Callable[..., checks.Error]:
    """An error of this id; the call adds its message and its hint."""
    return partial(_made, checks.Error, where, number)


def warning(where: object, number: str) -> Callable[..., checks.Warning]:
    return partial(_made, checks.Warning, where, number)


def _made(kind: Any, where: object, number: str, msg: str, hint: str | None = None) -> Any:
    # Django prints it as it is, and it may quote what a hook raises.
    texts = [text and harmless(masked(text)) for text in (msg, hint)]
    return kind(*texts, obj=place(where), id=f"autorun.{number}")


def place(where: object) -> str | None:
    """The place to edit: the dotted path of a runner's class, or the text itself."""
    if where is None or isinstance(where, str):
        return where
    return qualified_name(where if inspect.isclass(where) else type(where))


def is_in(app_configs: Collection[AppConfig] | None, cls: type) -> bool:
    """Whether the class is of one of these apps, or no apps are given."""
    return app_configs is None or apps.get_containing_app_config(cls.__module__) in app_configs


def shown(value: Any) -> str:
    """`value` for a message: at most 60 characters, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."
