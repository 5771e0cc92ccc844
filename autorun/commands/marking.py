"""adopt and ignore: settling pending rows without running them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, ClassVar

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
        is_json = options["format"] == "json"
        scope = Scope(filter=options["filter"], pks=tuple(options["keys"]) or None)
        queryset = scope.queryset(runner)
        if is_json and not options["dry"]:
            self._say_json(runner, rows=self.mark(runner, queryset), is_dry=False)
            return
        pending = runner.pending(queryset).count()
        if is_json:
            self._say_json(runner, rows=pending, is_dry=True)
            return
        rows = plural(pending, "pending row")
        if options["dry"] or not pending:
            self.terminal.say((runner.label, "bold"), f": {rows}.")
            return
        question = f"{runner.label}: {self.question.format(rows=rows)}?"
        if options["interactive"] and not self.terminal.confirm(question):
            self.terminal.say("Nothing was changed.")
            return
        number = self.mark(runner, queryset)
        self.terminal.say((runner.label, "bold"), f": {plural(number, 'row')} {self.outcome}.")

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

    def _say_json(self, runner: QuerySetRunner, *, rows: int, is_dry: bool) -> None:
        self.terminal.json({"runner": runner.label, "rows": rows, "dry": is_dry})

    def mark(self, runner: QuerySetRunner, queryset: QuerySet[Any] | None) -> int:
        return runner.adopt(queryset)


class Ignore(_Marking):
    """Leave pending rows alone until their input changes."""

    name = "ignore"
    summary = "leave pending rows alone until their input changes"
    question = "leave {rows} alone until they change"
    outcome = "set aside until they change"

    def _say_json(self, runner: QuerySetRunner, *, rows: int, is_dry: bool) -> None:
        self.terminal.json({"runner": runner.label, "rows": rows, "dry": is_dry})

    def mark(self, runner: QuerySetRunner, queryset: QuerySet[Any] | None) -> int:
        return runner.ignore(queryset)
