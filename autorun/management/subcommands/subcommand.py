"""What every subcommand is, and the arguments that several of them take."""

from __future__ import annotations

import argparse
import datetime as dt
import getpass
import inspect
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser

from autorun.declare import hooks, registry
from autorun.declare.hooks import every_row
from autorun.declare.runner import Runner
from autorun.state.keys import key_kind

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from autorun.management.subcommands.terminal import Terminal

CONDITION_NOT_MET = 3
KEYS_AT_ONCE = 10_000
#: More than any of the databases' integers holds, and than any time is long, is a slip.
LARGEST = 2**31 - 1
LARGEST_KEY = 2**63
LONGEST = dt.timedelta(days=36_500)
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class ConditionNotMet(CommandError):
    """What `--check` asks for is not the case."""

    def __init__(self, message: str) -> None:
        super().__init__(message, returncode=CONDITION_NOT_MET)


class SubcommandParser(CommandParser):
    """Takes keys behind options, too: `retry RUNNER --format json 3 4`."""

    _is_intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What was typed, and nothing left over: an error shows the subcommand's own usage."""
        if self._is_intermixing:  # argparse asks for the options first, and then for the others
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


class Subcommand(ABC):
    """One subcommand: its docstring is its help, whose first line `summary` is in the list."""

    name: ClassVar[str]
    summary: ClassVar[str]
    runs_despite_check_errors: ClassVar[bool] = False

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    @classmethod
    def description(cls) -> str:
        return inspect.getdoc(cls) or cls.summary

    @classmethod  # noqa: B027 - most take something, but not all
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare what the subcommand takes; by default nothing."""

    @abstractmethod
    def handle(self, **options: Any) -> None:
        """Do it. Raises CommandError, or ConditionNotMet for `--check`."""


class OnRows(Subcommand):
    """A subcommand on rows of a runner: those whose keys are named, or all.

    Keys that there are not are named in an error, after the others have been dealt with.
    """

    def handle(self, **options: Any) -> None:
        runner = registry.get(options.pop("runner"))
        absent = absent_keys(runner, options["keys"])
        if not absent or len(absent) < len(options["keys"]):
            self.handle_rows(runner, **options)
        if absent:
            label, keys = runner.get_model()._meta.label, ", ".join(absent)
            raise CommandError(f"There is no {label} with the key {keys}.")

    @abstractmethod
    def handle_rows(self, runner: Runner, **options: Any) -> None:
        """Do it to the rows, some of which there are."""


def add_runner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runner", metavar="RUNNER", help="its label: app_label.ClassName")


def add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(  # without a default, argparse calls it required
        "keys", metavar="PK", nargs="*", default=[], help="primary keys of rows; else all rows"
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="json for scripts: stable keys, ISO times, nothing else on standard output",
    )


def add_check(parser: argparse.ArgumentParser, unless: str) -> None:
    parser.add_argument(
        "--check", action="store_true", help=f"end with exit code {CONDITION_NOT_MET} {unless}"
    )


def add_queue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--queue", action="store_true", help="have a worker do the planning, by a Celery task"
    )


def add_no_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-input",
        "--noinput",
        action="store_false",
        dest="interactive",
        help="ask nothing; needed where standard input is no terminal",
    )


def add_within(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("--within", type=duration, metavar="TIME", help=meaning)


def positive(text: str) -> int:
    """An argument that is a number of 1 or more."""
    number = int(text) if text.isdecimal() and len(text) <= len(str(LARGEST)) else 0
    if not 1 <= number <= LARGEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number from 1 to {LARGEST:,}: write 1000, for example"
        )
    return number


def positive_seconds(text: str) -> float:
    """An argument that is a duration of more than 0 seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST.total_seconds():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds above 0: write 1 or 0.5, for example"
        )
    return seconds


def duration(text: str) -> dt.timedelta:
    """An argument that is `30m`, `24h` or `7d`."""
    found = re.fullmatch(r"([0-9]+)([mhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 30m, 24h or 7d")
    try:
        time = dt.timedelta(**{UNITS[found[2]]: int(found[1])})
    except (OverflowError, ValueError):
        time = dt.timedelta.max
    if time > LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} is longer than {LONGEST.days}d: leave the option out for all there ever was"
        )
    return time


def rows_of(runner: Runner, keys: list[str]) -> QuerySet[Any] | None:
    """The rows of these primary keys; None, for all rows, where there are no keys.

    Raises CommandError for what cannot be a primary key.
    """
    if not keys:
        return None
    primary_keys = [primary_key(runner, key) for key in keys]
    return hooks.base_queryset(runner).filter(pk__in=primary_keys)


def absent_keys(runner: Runner, keys: list[str]) -> list[str]:
    """Those of the keys, as they were typed, that no row of the runner's model has.

    Raises CommandError for what cannot be a primary key.
    """
    wanted = {primary_key(runner, key): key for key in keys}
    found: set[Any] = set()
    for begin in range(0, len(wanted), KEYS_AT_ONCE):
        some = list(wanted)[begin : begin + KEYS_AT_ONCE]
        rows = every_row(runner).filter(pk__in=some)
        found.update(rows.values_list("pk", flat=True))
    return [key for pk, key in wanted.items() if pk not in found]


def primary_key(runner: Runner, text: str) -> Any:
    """`text` as a primary key of the runner's model. Raises CommandError for what is none."""
    kind = key_kind(runner.get_model())
    try:
        pk = kind.to_pk(text)
        if kind.is_integer and not -LARGEST_KEY <= pk < LARGEST_KEY:
            raise ValueError(text)  # some databases take no such number, not even to compare
        return pk
    except (ValidationError, ValueError, TypeError, OverflowError):
        raise CommandError(
            f"{text!r} is no primary key of {runner.get_model()._meta.label}, which has "
            f"{type(kind.field).__name__} keys."
        ) from None


def chosen_runners(labels: list[str]) -> list[Runner]:
    """The runners of these labels, or all. Raises NotRegistered, which names those there are."""
    return [registry.get(label) for label in labels] if labels else registry.runners()


def requested_by() -> str:
    """Who types this, for the record."""
    try:
        return f"{getpass.getuser()}, command line"
    except (OSError, KeyError, ImportError):  # no such user, as in some containers
        return "command line"
