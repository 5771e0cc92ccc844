"""System checks: what can be known to be wrong before anything runs.

They look at declarations and settings only, and never query the database. `docs/` lists their ids;
each message has a hint that names an edit or a command.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage, register

TAG = "autorun"


def connect() -> None:
    """Have `manage.py check` run them, under the tag "autorun"."""
    register(check_all, TAG)


def check_all(**kwargs: Any) -> Iterable[CheckMessage]:
    """What all of autorun's checks find."""
    # Imported when checks run: a server's processes start without them.
    from autorun.observe.checks import (
        autorun_setting,
        declarations,
        installation,
        names,
        overrides,
        relations,
        values,
    )

    for check in (
        autorun_setting.check_settings,
        installation.check_installation,
        declarations.check_declarations,
        names.check_names,
        values.check_values,
        overrides.check_overrides,
        relations.check_relations,
    ):
        yield from check(**kwargs)
