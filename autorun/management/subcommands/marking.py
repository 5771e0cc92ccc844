"""adopt and ignore: settling rows without running them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.management.base import CommandError

from autorun.control import interventions
from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.management.subcommands.choosing import (
    add_choice,
    chosen_runs,
    is_choice,
    what_else_failed,
)
from autorun.management.subcommands.subcommand import (
    OnRows,
    add_format,
    add_keys,
    add_no_input,
    add_runner,
)
from autorun.management.subcommands.terminal import plural
from autorun.planning.looks import adopt, ignore
from autorun.planning.pending import pending
from autorun.planning.scope import Scope
from autorun.state.counts import progress

if TYPE_CHECKING:
    from django.db.models import QuerySet


@dataclass(frozen=True)
class _Found:
    """So many of what `noun` names would be settled by `settle`, which says how many it did."""

    number: int
    noun: str
    settle: Callable[[], int]
    hint: str = ""


class _Marking(OnRows):
    question: ClassVar[str]
    outcome: ClassVar[str]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_runner(parser)
        add_keys(parser)
        parser.add_argument("--filter", metavar="NAME", help="a name from the runner's FILTERS")
        cls.add_choice(parser)
        parser.add_argument("--dry", action="store_true", help="count only")
        add_no_input(parser)
        add_format(parser)

    @classmethod
    def add_choice(cls, parser: argparse.ArgumentParser) -> None:
        """Declare what else there is to choose; by default nothing."""

    def handle_rows(self, runner: Runner, **options: Any) -> None:
        scope = Scope(filter=options["filter"], pks=tuple(options["keys"]) or None)
        found = self.find(runner, scope.queryset(runner), options)
        is_json = options["format"] == "json"
        what = plural(found.number, found.noun)
        if options["dry"] or not found.number:
            if is_json:
                self._say_json(runner, rows=found.number, is_dry=options["dry"])
            else:
                self.terminal.say((runner.label, "bold"), f": {what}.")
                if found.hint:
                    self.terminal.hint(found.hint)
            return
        if options["interactive"] and not self._is_confirmed(runner, what):
            if is_json:
                self._say_json(runner, rows=0, is_dry=False)
            else:
                self.terminal.say("Nothing was changed.")
            return
        number = found.settle()
        if is_json:
            self._say_json(runner, rows=number, is_dry=False)
        else:
            what = plural(number, found.noun.removeprefix("pending "))
            self.terminal.say((runner.label, "bold"), f": {what} {self.outcome}.")

    def find(
        self, runner: Runner, queryset: QuerySet[Any] | None, options: dict[str, Any]
    ) -> _Found:
        """What there is to settle among the rows of `queryset`, or of all."""
        number = pending(runner, queryset).count()
        return _Found(number, "pending row", lambda: self.mark(runner, queryset))

    def mark(self, runner: Runner, queryset: QuerySet[Any] | None) -> int:
        """Settle pending rows; how many."""
        raise NotImplementedError

    def _is_confirmed(self, runner: Runner, what: str) -> bool:
        """What somebody answers. Raises CommandError where there is nobody to ask."""
        deed = self.question.format(what=what)
        if not self.terminal.can_ask:
            raise CommandError(
                f"{runner.label}: to {deed} takes a yes, and standard input is no terminal. Add "
                "--no-input to do it unasked, or --dry to count only."
            )
        return self.terminal.confirm(f"{runner.label}: {deed}?")

    def _say_json(self, runner: Runner, *, rows: int, is_dry: bool) -> None:
        self.terminal.json({"runner": runner.label, "rows": rows, "dry": is_dry})


class Adopt(_Marking):
    """Record pending rows as up to date without running them."""

    name = "adopt"
    summary = "record pending rows as up to date"
    question = "record {what} as up to date without running them"
    outcome = "recorded as up to date"

    def mark(self, runner: Runner, queryset: QuerySet[Any] | None) -> int:
        return adopt(runner, queryset)


class Ignore(_Marking):
    """Leave pending rows alone until their input changes, or rows whose run failed for good."""

    name = "ignore"
    summary = "leave pending or failed rows alone until they change"
    question = "leave {what} alone until the input changes"
    outcome = "set aside until the input changes"

    @classmethod
    def add_choice(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--failed", action="store_true", help="what failed for good, not what is pending"
        )
        add_choice(parser)

    def find(
        self, runner: Runner, queryset: QuerySet[Any] | None, options: dict[str, Any]
    ) -> _Found:
        if not (options["failed"] or is_choice(options)):
            return self._find_pending(runner, queryset, options)
        number = sum(map(len, chosen_runs(runner, options, queryset=queryset)))

        def settle() -> int:
            return interventions.ignore(chosen_runs(runner, options, queryset=queryset))

        hint = "" if number else what_else_failed(runner, options["exception"])
        return _Found(number, "failed run", settle, hint)

    def mark(self, runner: Runner, queryset: QuerySet[Any] | None) -> int:
        return ignore(runner, queryset)

    def _find_pending(
        self, runner: Runner, queryset: QuerySet[Any] | None, options: dict[str, Any]
    ) -> _Found:
        found = super().find(runner, queryset, options)
        if found.number or not progress(node_of(runner)).failed:
            return found
        return replace(
            found,
            hint=f"What failed for good: manage.py autorun ignore {runner.label} --failed, and "
            f"manage.py autorun failures {runner.label}",
        )
