from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError
from rich.text import Text

from autorun.declare import registry
from autorun.management.subcommands.parsing import (
    FILTER,
    FORMAT,
    RUNNER,
    argument,
    check,
    count,
    flag,
)
from autorun.management.subcommands.subcommand import Subcommand, condition_not_met
from autorun.planning.preview import Group, Preview, preview
from autorun.planning.scope import Scope
from autorun.planning.selection import SELECTIONS
from autorun.state.words import REASONS, counted, duration

#: Arguments that choose rows, and the reasons to plan them.
SCOPE = (
    FILTER,
    argument("--only", choices=tuple(SELECTIONS), help="one reason (default: pending rows)"),
    flag("--force", help="include rows that are up to date"),
    argument("--limit", type=count, metavar="N", help="plan at most N runs"),
)


class Plan(Subcommand):
    """Preview a backfill: count its rows by reason, and change nothing.

    Takes the arguments of `backfill`: without --only and --force it plans pending rows.
    """

    name = "plan"
    summary = "preview a backfill, by reason"
    arguments = (
        RUNNER,
        *SCOPE,
        argument("--sample", type=count, default=0, metavar="N", help="show N keys per reason"),
        FORMAT,
        check("if anything would be planned"),
    )

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        found = preview(
            runner, scope_of(options), limit=options["limit"], samples=options["sample"]
        )
        self.terminal.json(
            {
                "runner": runner.label,
                "planned": found.planned,
                "seconds": found.seconds,
                "groups": [asdict(group) for group in found.groups],
            }
        )
        name = runner.get_model()._meta.verbose_name_plural
        self._show(f"{runner.label}: {runner.get_analysis()} over {name}", found, options)
        if options["check"] and found.planned:
            raise condition_not_met(f"{counted(found.planned, 'run')} to plan for {runner.label}.")

    def _show(self, title: str, found: Preview, options: dict[str, Any]) -> None:
        self.terminal.say((title, "bold"))
        self.terminal.table(
            ("#rows", "reason", "", *(("examples",) if options["sample"] else ())),
            [_row(group, options) for group in found.groups if group.rows],
        )
        if not found.planned:
            self.terminal.say("Nothing to plan.")
            return
        time = "" if found.seconds is None else f", {duration(found.seconds)} of work"
        self.terminal.say((f"{counted(found.planned, 'run')} to plan{time}.", "green"))
        self.terminal.hint(f"Start them: manage.py autorun backfill {_as_typed(options)}")


def scope_of(options: dict[str, Any]) -> Scope:
    """The scope that the arguments SCOPE name. Raises CommandError if they conflict."""
    scope = Scope(filter=options["filter"], only=options["only"], force=options["force"])
    if options["force"] and options["only"] not in (None, "all"):
        raise CommandError("--force plans rows whatever the reason, so leave --only out.")
    return scope


def _row(group: Group, options: dict[str, Any]) -> tuple[str | Text, ...]:
    fate = Text("planned", style="green") if group.is_planned else Text("skipped", style="dim")
    if group.reason == "unprepared":
        fate = Text("recorded as failed", style="red")
    forced = ", forced" if group.reason == "done" and group.is_planned else ""
    row = (f"{group.rows:,}", f"{REASONS[group.reason]}{forced}", fate)
    return (*row, ", ".join(group.samples)) if options["sample"] else row


def _as_typed(options: dict[str, Any]) -> str:
    words = [options["runner"]]
    words += [f"--{name} {options[name]}" for name in ("filter", "only", "limit") if options[name]]
    words += ["--force"] if options["force"] else []
    return " ".join(words)
