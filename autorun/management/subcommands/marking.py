"""adopt and ignore: change the state of rows without running them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from django.core.management.base import CommandError
from django.db.models import QuerySet

from autorun.control import interventions
from autorun.declare.nodes import node_of
from autorun.declare.runner import Runner
from autorun.management.subcommands import parsing
from autorun.management.subcommands.retry import chosen_runs, has_choice, hint_for_none
from autorun.management.subcommands.subcommand import OnRows
from autorun.planning.looks import adopt, ignore
from autorun.planning.pending import pending
from autorun.planning.scope import Scope
from autorun.state.counts import progress
from autorun.state.words import counted

Rows = QuerySet[Any] | None

ON_ROWS = (parsing.RUNNER, parsing.KEYS, parsing.FILTER)
CONFIRMED = (parsing.flag("--dry", help="only count"), parsing.NO_INPUT, parsing.FORMAT)


@dataclass(frozen=True)
class _Found:
    """`number` rows or runs, called `noun`; `mark` marks them and returns how many it marked."""

    number: int
    noun: str
    mark: Callable[[], int]
    hint: str = ""


class _Marking(OnRows):
    question: ClassVar[str]
    outcome: ClassVar[str]
    mark_pending: ClassVar[staticmethod[[Runner, Rows], int]]

    def handle_rows(self, runner: Runner, **options: Any) -> None:
        scope = Scope(filter=options["filter"], pks=tuple(options["keys"]) or None)
        found = self.find(runner, scope.queryset(runner), options)
        things = counted(found.number, found.noun)
        if options["dry"] or not found.number:
            self._say(runner, f": {things}.", rows=found.number, is_dry=options["dry"])
            if found.hint:
                self.terminal.hint(found.hint)
            return
        if options["interactive"] and not self._is_confirmed(runner, things):
            self._say(runner, ": nothing was changed.", rows=0)
            return
        number = found.mark()
        marked = counted(number, found.noun.removeprefix("pending "))
        self._say(runner, f": {marked} {self.outcome}.", rows=number)

    def find(self, runner: Runner, queryset: Rows, options: dict[str, Any]) -> _Found:
        """Find what to mark among the rows of `queryset`, or of all rows."""
        number = pending(runner, queryset).count()
        return _Found(number, "pending row", partial(self.mark_pending, runner, queryset))

    def _is_confirmed(self, runner: Runner, things: str) -> bool:
        action = self.question.format(things=things)
        if not self.terminal.can_ask:
            raise CommandError(
                f"{runner.label}: to {action} needs confirmation, and standard input is not a "
                "terminal. Add --no-input to skip the question, or --dry to only count."
            )
        return self.terminal.confirm(f"{runner.label}: {action}?")

    def _say(self, runner: Runner, text: str, *, rows: int, is_dry: bool = False) -> None:
        self.terminal.json({"runner": runner.label, "rows": rows, "dry": is_dry})
        self.terminal.say((runner.label, "bold"), text)


class Adopt(_Marking):
    """Record pending rows as up to date without running them."""

    summary = "record pending rows as up to date"
    question = "record {things} as up to date without running them"
    outcome = "recorded as up to date"
    mark_pending = staticmethod(adopt)
    arguments = (*ON_ROWS, *CONFIRMED)


class Ignore(_Marking):
    """Ignore pending rows, or failed rows with no attempts left, until their input changes."""

    summary = "ignore pending or failed rows until their input changes"
    question = "ignore {things} until the input changes"
    outcome = "ignored until the input changes"
    mark_pending = staticmethod(ignore)
    arguments = (
        *ON_ROWS,
        parsing.flag("--failed", help="failed rows with no attempts left instead of pending rows"),
        *parsing.FAILURES,
        *CONFIRMED,
    )

    def find(self, runner: Runner, queryset: Rows, options: dict[str, Any]) -> _Found:
        if not (options["failed"] or has_choice(options)):
            found = super().find(runner, queryset, options)
            if found.number or not progress(node_of(runner)).failed:
                return found
            hint = f"Ignore failed rows: manage.py autorun ignore {runner.label} --failed"
            return replace(found, hint=hint)
        find_runs = partial(chosen_runs, runner, options, queryset=queryset)
        number = sum(map(len, find_runs()))
        hint = "" if number else hint_for_none(runner, options["exception"])
        return _Found(number, "failed run", lambda: interventions.ignore_runs(find_runs()), hint)
