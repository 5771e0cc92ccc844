"""adopt and ignore: settling pending rows without running them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, ClassVar

from autorun import registry
from autorun.commands.subcommand import (
    Subcommand,
    add_keys,
    add_no_input,
    add_runner,
    rows_of,
)
from autorun.commands.terminal import plural
from autorun.planning.scope import Scope

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from autorun.runner import QuerySetRunner


class _Marking(Subcommand):
    question: ClassVar[str]
    outcome: ClassVar[str]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_runner(parser)
        add_keys(parser)
        parser.add_argument("--filter", metavar="NAME", help="a name from the runner's FILTERS")
        parser.add_argument("--dry", action="store_true", help="count only")
        add_no_input(parser)

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        rows_of(runner, options["keys"])  # raises for what is no key
        scope = Scope(filter=options["filter"], pks=tuple(options["keys"]) or None)
        queryset = scope.queryset(runner)
        pending = runner.pending(queryset).count()
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
