"""adopt and ignore: settling rows without running them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.management.base import CommandError

from autorun.commands.subcommand import (
    OnRows,
    add_format,
    add_keys,
    add_no_input,
    add_runner,
)
from autorun.commands.terminal import plural
from autorun.planning.scope import Scope

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from autorun.runner import QuerySetRunner


class _Marking(OnRows):
    question: ClassVar[str]
    outcome: ClassVar[str]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_runner(parser)
        add_keys(parser)
        parser.add_argument("--filter", metavar="NAME", help="a name from the runner's FILTERS")
        parser.add_argument("--dry", action="store_true", help="count only")
        add_no_input(parser)
        add_format(parser)

    def handle_rows(self, runner: QuerySetRunner, **options: Any) -> None:
        scope = Scope(filter=options["filter"], pks=tuple(options["keys"]) or None)
        queryset = scope.queryset(runner)
        pending = runner.pending(queryset).count()
        rows = plural(pending, "pending row")
        is_json = options["format"] == "json"
        if options["dry"] or not pending:
            if is_json:
                self._say_json(runner, rows=pending, is_dry=options["dry"])
            else:
                self.terminal.say((runner.label, "bold"), f": {rows}.")
            return
        if options["interactive"] and not self._is_confirmed(runner, rows):
            if is_json:
                self._say_json(runner, rows=0, is_dry=False)
            else:
                self.terminal.say("Nothing was changed.")
            return
        number = self.mark(runner, queryset)
        if is_json:
            self._say_json(runner, rows=number, is_dry=False)
        else:
            self.terminal.say((runner.label, "bold"), f": {plural(number, 'row')} {self.outcome}.")

    def _is_confirmed(self, runner: QuerySetRunner, rows: str) -> bool:
        """What somebody answers. Raises CommandError where there is nobody to ask."""
        deed = self.question.format(rows=rows)
        if not self.terminal.can_ask:
            raise CommandError(
                f"{runner.label}: to {deed} takes a yes, and standard input is no terminal. Add "
                "--no-input to do it unasked, or --dry to count only."
            )
        return self.terminal.confirm(f"{runner.label}: {deed}?")

    def _say_json(self, runner: QuerySetRunner, *, rows: int, is_dry: bool) -> None:
        self.terminal.json({"runner": runner.label, "rows": rows, "dry": is_dry})

    def mark(self, runner: QuerySetRunner, queryset: QuerySet[Any] | None) -> int:
        raise NotImplementedError


class Adopt(_Marking):
    """Record pending rows as up to date without running them."""

    name = "adopt"
    summary = "record pending rows as up to date"
    question = "record {rows} as up to date without running them"
    outcome = "recorded as up to date"

    def mark(self, runner: QuerySetRunner, queryset: QuerySet[Any] | None) -> int:
        return runner.adopt(queryset)


class Ignore(_Marking):
    """Leave pending rows alone until their input changes."""

    name = "ignore"
    summary = "leave pending rows alone until their input changes"
    question = "leave {rows} alone until they change"
    outcome = "set aside until they change"

    def mark(self, runner: QuerySetRunner, queryset: QuerySet[Any] | None) -> int:
        return runner.ignore(queryset)
