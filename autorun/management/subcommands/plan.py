from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError
from rich.text import Text

from autorun.declare import registry
from autorun.management.subcommands.subcommand import (
    ConditionNotMet,
    Subcommand,
    add_check,
    add_format,
    positive,
)
from autorun.management.subcommands.subcommand import add_runner as add_runner_argument
from autorun.management.subcommands.terminal import plural, seconds
from autorun.planning.preview import Group, Preview, preview
from autorun.planning.scope import Scope
from autorun.planning.selection import SELECTIONS

#: What each reason means, where its rows are planned and where they are not.
MEANINGS = {
    "missing": "never ran",
    "changed": "changed since they ran",
    "preparable": "failed without an input, which can be prepared now",
    "failed": "failed for good",
    "done": "up to date",
    "under_way": "on their way already",
    "unprepared": "input cannot be prepared",
    "filtered": "left out by the filter, or waiting for another runner",
}


class Plan(Subcommand):
    """Show what a backfill would do, by reason, and do nothing.

    Takes what `backfill` takes: without --only and --force, what is pending is planned.
    """

    name = "plan"
    summary = "what a backfill would do, by reason"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_runner_argument(parser)
        add_scope(parser)
        parser.add_argument(
            "--sample", type=positive, default=0, metavar="N", help="show N keys a reason"
        )
        add_format(parser)
        add_check(parser, "where anything would be planned")

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        found = preview(
            runner, scope_of(options), limit=options["limit"], samples=options["sample"]
        )
        if options["format"] == "json":
            self.terminal.json(
                {
                    "runner": runner.label,
                    "planned": found.planned,
                    "seconds": found.seconds,
                    "groups": [asdict(group) for group in found.groups],
                }
            )
        else:
            name = runner.get_model()._meta.verbose_name_plural
            self._show(f"{runner.label}: {runner.get_analysis()} over {name}", found, options)
        if options["check"] and found.planned:
            raise ConditionNotMet(f"{plural(found.planned, 'run')} to plan for {runner.label}.")

    def _show(self, title: str, found: Preview, options: dict[str, Any]) -> None:
        self.terminal.say((title, "bold"))
        groups = [group for group in found.groups if group.rows]
        self.terminal.table(
            ("#rows", "reason", "", *(("for example",) if options["sample"] else ())),
            [_row(group, options) for group in groups],
        )
        if not found.planned:
            self.terminal.say("Nothing to plan.")
            return
        time = "" if found.seconds is None else f", {seconds(found.seconds)} of work"
        self.terminal.say((f"{plural(found.planned, 'run')} to plan{time}.", "green"))
        self.terminal.hint(f"Start them: manage.py autorun backfill {_as_typed(options)}")


def add_scope(parser: argparse.ArgumentParser) -> None:
    """Which rows, and for which reasons."""
    parser.add_argument("--filter", metavar="NAME", help="a name from the runner's FILTERS")
    parser.add_argument(
        "--only", choices=tuple(SELECTIONS), help="one reason; else what is pending"
    )
    parser.add_argument("--force", action="store_true", help="also rows that are up to date")
    parser.add_argument("--limit", type=positive, metavar="N", help="plan at most N runs")


def scope_of(options: dict[str, Any]) -> Scope:
    """The scope that the arguments of `add_scope` name. Raises CommandError where they conflict."""
    scope = Scope(filter=options["filter"], only=options["only"], force=options["force"])
    if options["force"] and options["only"] not in (None, "all"):
        raise CommandError("--force takes rows whatever the reason, so leave --only out.")
    return scope


def _row(group: Group, options: dict[str, Any]) -> tuple[str | Text, ...]:
    fate = Text("planned", style="green") if group.is_planned else Text("left alone", style="dim")
    if group.reason == "unprepared":
        fate = Text("recorded as failed", style="red")
    forced = ", forced" if group.reason == "done" and group.is_planned else ""
    row = (f"{group.rows:,}", f"{MEANINGS[group.reason]}{forced}", fate)
    return (*row, ", ".join(group.samples)) if options["sample"] else row


def _as_typed(options: dict[str, Any]) -> str:
    words = [options["runner"]]
    words += [f"--{name} {options[name]}" for name in ("filter", "only", "limit") if options[name]]
    words += ["--force"] if options["force"] else []
    return " ".join(words)
