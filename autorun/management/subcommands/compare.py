"""compare: how the results of two versions differ."""

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError
from rich.text import Text

from autorun.declare import registry
from autorun.management.subcommands import parsing
from autorun.management.subcommands.subcommand import Subcommand
from autorun.observe.comparison import Comparison, OutputChange, compare
from autorun.state.words import counted, in_one_line


class Compare(Subcommand):
    """Compare the results of two versions on the rows that both have processed.

    Without versions, the runner's own is compared with its candidate.
    """

    arguments = (
        parsing.RUNNER,
        parsing.argument("before", nargs="?", metavar="BEFORE", help="the version to compare"),
        parsing.argument(
            "after", nargs="?", metavar="AFTER", help="the version to compare it with"
        ),
        parsing.argument(
            "--tolerance",
            type=float,
            default=0.0,
            metavar="SHARE",
            help="numbers that differ by at most this share are the same (default: 0)",
        ),
        parsing.FORMAT,
    )

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        before, after = options["before"], options["after"]
        if before is not None and after is None:
            raise CommandError("Name both versions, or none to compare with the candidate.")
        try:
            found = compare(runner, before, after, tolerance=options["tolerance"])
        except ValueError as error:
            raise CommandError(str(error)) from error
        self.terminal.json(asdict(found))
        self._say(found)

    def _say(self, found: Comparison) -> None:
        counts = (
            f"{found.same:,} same, {found.different:,} different, "
            f"{found.newly_failed:,} newly failed, {found.newly_fixed:,} newly fixed"
        )
        self.terminal.say(
            (found.runner, "bold"), f": v{found.before} and v{found.after}: {counts}."
        )
        if found.other_input:
            rows = counted(found.other_input, "row has", "rows have")
            self.terminal.say(f"{rows} changed in between and cannot be compared.")
        if found.outputs:
            headings = ("output", "#different", "#median before", "#median after", "differ most")
            self.terminal.table(headings, map(_line, found.outputs))


def _line(change: OutputChange) -> tuple[str | Text, ...]:
    medians = (
        "" if each is None else f"{each:g}" for each in (change.median_before, change.median_after)
    )
    rows = (in_one_line(f"{each.key}: {each.before!r} -> {each.after!r}") for each in change.rows)
    return change.name, f"{change.different:,}", *medians, Text("\n".join(rows))
