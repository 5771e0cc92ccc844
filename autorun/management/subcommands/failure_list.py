from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.utils import timezone

from autorun.declare import registry
from autorun.declare.nodes import node_of
from autorun.management.subcommands.subcommand import (
    ConditionNotMet,
    Subcommand,
    add_check,
    add_format,
    add_within,
)
from autorun.management.subcommands.terminal import moment, plural
from autorun.observe.failures import FailureGroup, group_failures, labels_of, runs_in


class Failures(Subcommand):
    """Show failed runs, grouped by exception and by the shape of its message."""

    name = "failures"
    summary = "failed runs, grouped by what went wrong"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("runner", metavar="RUNNER", nargs="?", help="its label; else all")
        add_within(parser, "the last 30m, 24h or 7d only")
        parser.add_argument(
            "--all",
            action="store_true",
            dest="including_retried",
            help="also runs that failed and are to be tried again",
        )
        add_format(parser)
        add_check(parser, "where there is any")

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"]) if options["runner"] else None
        groups = group_failures(
            runner, within=options["within"], including_retried=options["including_retried"]
        )
        labels = labels_of(groups) | ({node_of(runner).pk: runner.label} if runner else {})
        if options["format"] == "json":
            self.terminal.json(
                [{"runner": labels.get(group.node_id), **asdict(group)} for group in groups]
            )
        else:
            self._show(groups, labels)
        runs = runs_in(groups)
        if options["check"] and groups:
            raise ConditionNotMet(f"{plural(runs, 'run')} failed.")

    def _show(self, groups: Sequence[FailureGroup], labels: Mapping[int, str]) -> None:
        if not groups:
            self.terminal.say(("No failed runs.", "green"))
            return
        for node_id in dict.fromkeys(each.node_id for each in groups):
            of_node = [each for each in groups if each.node_id == node_id]
            runs = plural(runs_in(of_node), "failed run")
            label = labels.get(node_id)
            title = f"{of_node[0].title} v{of_node[0].version}"
            self.terminal.say((f"{title} ({label})" if label else title, "bold"), f": {runs}")
            self.terminal.table(
                ("#runs", "what went wrong", f"last{_zone()}"),
                [(f"{each.runs:,}", _words(each), moment(each.last_at)[5:16]) for each in of_node],
            )
            if label:
                self.terminal.hint(f"Run them again: manage.py autorun retry {label}")
            else:
                self.terminal.hint("No registered runner has them, so none runs them again.")


def _words(group: FailureGroup) -> str:
    """The message itself where the group has one run only, else what its messages share."""
    text = group.message if group.runs == 1 else group.shape
    first = text.strip().partition("\n")[0]
    words = f"{group.exception_class}: {first}" if first else group.exception_class
    if not group.of_newest:
        return words
    return f"{words} (of the newest {group.of_newest:,} of {group.of_class:,})"


def _zone() -> str:
    """The zone of the times in a table, for its heading."""
    return f" ({timezone.localtime():%Z})" if settings.USE_TZ else ""
