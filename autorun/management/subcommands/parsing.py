"""The arguments that subcommands share, and the text they are parsed from."""

import argparse
import datetime as dt
import re
from typing import Any

from django.core.management.base import CommandParser

from autorun.state.words import harmless

#: The parameters of one call of `add_argument`.
Argument = tuple[tuple[str, ...], dict[str, Any]]

CONDITION_NOT_MET = 3
#: Larger counts do not fit every database's integer, and longer times are typing errors.
LARGEST_COUNT = 2**31 - 1
LONGEST = dt.timedelta(days=36_500)
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class SubcommandParser(CommandParser):
    """Takes keys after options, too: `retry RUNNER --format json 3 4`."""

    _is_intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._is_intermixing:  # argparse calls this again, for options and for positionals
            return super().parse_known_args(args, namespace)
        for text in args or ():
            try:
                text.encode()
            except UnicodeEncodeError:  # Python stands in for bytes that it cannot decode
                self.error(f"an argument is not valid UTF-8: {text!a}")
        self._is_intermixing = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False
        if unknown:  # reported here, so that the error shows the subcommand's own usage
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> Any:
        super().error(harmless(message))


def argument(*names: str, **options: Any) -> Argument:
    return names, options


def flag(*names: str, **options: Any) -> Argument:
    return names, {"action": "store_true"} | options


def number(name: str, **options: Any) -> Argument:
    return argument(name, type=count, metavar="N", **options)


def check(condition: str) -> Argument:
    """The option that makes `condition` decide the exit code."""
    return flag("--check", help=f"exit with code {CONDITION_NOT_MET} {condition}")


def within(help_text: str) -> Argument:
    return argument("--within", type=time_span, metavar="TIME", help=help_text)


def count(text: str) -> int:
    parsed = int(text) if text.isdecimal() and len(text) <= len(str(LARGEST_COUNT)) else 0
    if not 1 <= parsed <= LARGEST_COUNT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number from 1 to {LARGEST_COUNT:,}: write 1000, for example"
        )
    return parsed


def time_span(text: str) -> dt.timedelta:
    found = re.fullmatch(r"([0-9]+)([mhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time span: write 30m, 24h or 7d")
    try:
        span = dt.timedelta(**{UNITS[found[2]]: int(found[1])})
    except (OverflowError, ValueError):
        span = dt.timedelta.max
    if span > LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} is longer than {LONGEST.days}d: leave the option out to include everything"
        )
    return span


RUNNER = argument("runner", metavar="RUNNER", help="runner label: app_label.ClassName")
RUNNER_OR_ALL = argument("runner", metavar="RUNNER", nargs="?", help="runner label (default: all)")
# Without a default, argparse takes them for required.
KEYS = argument("keys", metavar="PK", nargs="*", default=[], help="keys of rows (default: all)")
FILTER = argument("--filter", metavar="NAME", help="a name from the runner's FILTERS")
QUEUE = flag("--queue", help="let a worker do the planning, in a Celery task")
FORMAT = argument(
    "--format",
    choices=("text", "json"),
    default="text",
    help="json for scripts: stable keys, ISO times, nothing else on standard output",
)
NO_INPUT = argument(
    *("--no-input", "--noinput"),
    action="store_false",
    dest="interactive",
    help="do not ask; required if standard input is not a terminal",
)
#: Arguments that narrow an action down to some failures.
FAILURES = (
    argument("--cause", metavar="KEY", help="a cause's key or exception, as `failures` prints it"),
    within("only runs that failed within the last 30m, 24h or 7d"),
)
