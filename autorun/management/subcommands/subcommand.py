"""The base classes of subcommands, and the rows and runners that their arguments name."""

import argparse
import getpass
import inspect
import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from django.core.management.base import CommandError

from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.hooks import every_row
from autorun.management.subcommands.parsing import CONDITION_NOT_MET, KEYS, RUNNER, Argument
from autorun.management.subcommands.terminal import Terminal
from autorun.planning.scope import Scope
from autorun.state.keys import key_kind
from autorun.state.origins import COMMAND_LINE

KEYS_PER_QUERY = 10_000


class Subcommand(ABC):
    """One subcommand: its docstring is its help, and the start of it its line in their list.

    A handler gives its result to the terminal twice, as text and as JSON: the terminal prints only
    the one that `--format` asks for.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    arguments: ClassVar[tuple[Argument, ...]] = ()
    runs_despite_check_errors: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name", cls.__name__.lower())
        first = re.split("[.:;]", cls.description())[0]
        cls.summary = first[:1].lower() + first[1:]

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    @classmethod
    def description(cls) -> str:
        return inspect.getdoc(cls) or cls.name

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        for names, options in cls.arguments:
            parser.add_argument(*names, **options)

    @abstractmethod
    def handle(self, **options: Any) -> None:
        """Print the result. Raises CommandError, also if the condition of `--check` is not met."""


class OnRows(Subcommand):
    """A subcommand on rows of a runner: those whose keys are given, or all.

    An error names the keys that do not exist, after the others have been processed.
    """

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        for names, options in (RUNNER, KEYS, *cls.arguments):
            parser.add_argument(*names, **options)

    def handle(self, **options: Any) -> None:
        runner = registry.get(options.pop("runner"))
        keys = options.pop("keys")
        absent = _absent_keys(runner, keys)
        if not absent or len(absent) < len(keys):
            scope = Scope(filter=options.get("filter"), pks=tuple(keys) or None)
            self.handle_rows(runner, scope, **options)
        if absent:
            label = runner.get_model()._meta.label
            raise CommandError(f"There is no {label} with the key {', '.join(absent)}.")

    @abstractmethod
    def handle_rows(self, runner: Runner, scope: Scope, **options: Any) -> None:
        """Process the rows of the scope; at least one of the given keys exists."""


def condition_not_met(message: str) -> CommandError:
    """The error to raise if the condition of `--check` does not hold."""
    return CommandError(message, returncode=CONDITION_NOT_MET)


def primary_key(runner: Runner, text: str, *, using: str | None = None) -> Any:
    """`text` as a primary key of the runner's model. Raises CommandError if it cannot be one.

    With `using`, it may be one that only that database can store.
    """
    model = runner.get_model()
    kind = key_kind(model)
    pk = kind.read(text, using=using)
    if pk is None:
        raise CommandError(
            f"{text!r} is not a primary key of {model._meta.label}, which has "
            f"{type(kind.field).__name__} keys."
        )
    return pk


def chosen_runners(labels: list[str]) -> list[Runner]:
    """The runners with these labels, or all. Raises NotRegistered, which lists the known labels."""
    return [registry.get(label) for label in labels] if labels else registry.runners()


def requested_by() -> str:
    """The user's name, for the record of who requested a batch."""
    try:
        return f"{getpass.getuser()} ({COMMAND_LINE})"
    except (OSError, KeyError, ImportError):  # the user has no name, as in some containers
        return COMMAND_LINE


def _absent_keys(runner: Runner, keys: list[str]) -> list[str]:
    """The keys, as typed, that no row of the runner's model has."""
    wanted = {primary_key(runner, key): key for key in keys}
    found: set[Any] = set()
    for start in range(0, len(wanted), KEYS_PER_QUERY):
        rows = every_row(runner).filter(pk__in=list(wanted)[start : start + KEYS_PER_QUERY])
        found.update(rows.values_list("pk", flat=True))
    return [key for pk, key in wanted.items() if pk not in found]
