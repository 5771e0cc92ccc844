"""System checks: errors in declarations and settings that are known before anything runs.

They never query the database, with a few exceptions, which `migrate` runs. `docs/` lists their ids;
each has a hint: an edit or a command.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Tags, register

TAG = "autorun"


def connect() -> None:
    """Register the checks with `manage.py check`, under the tag "autorun"."""
    register(check_all, TAG)
    register(check_databases, TAG, Tags.database)


def check_all(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> Iterable[CheckMessage]:
    """Run all of autorun's checks, on runners of these apps only if any are given."""
    # Imported here, because processes that run no checks need none of these modules.
    from autorun.declare import registry
    from autorun.observe.checks import (
        declarations,
        installation,
        names,
        of_databases,
        output_targets,
        overrides,
        relations,
        values,
    )
    from autorun.observe.checks.problems import is_in

    runners = [each for each in registry.runners() if is_in(app_configs, type(each))]
    yield from values.check_settings()
    yield from installation.check_installation()
    yield from installation.check_neighbours(registry.runners())
    yield from declarations.check_unregistered(app_configs)
    for runner in runners:
        yield from declarations.check_declaration(runner)
        yield from installation.check_tenants(runner)
        yield from values.check_values(runner)
        yield from overrides.check_overrides(runner)
        yield from output_targets.check_landing(runner)
        yield from of_databases.check_database_of_writes(runner)
        yield from values.check_related(runner)
    yield from names.check_names(runners)
    yield from relations.check_relations(runners)


def check_databases(
    databases: Sequence[str] | None = None, **kwargs: Any
) -> Iterable[CheckMessage]:
    """Run the checks that ask the `databases`; there are none unless the caller names some."""
    from autorun.observe.checks import of_databases

    yield from of_databases.check_character_sets(databases)
    yield from of_databases.check_time_zones(databases)
    yield from of_databases.check_triggers(databases)
