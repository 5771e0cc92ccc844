from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.utils import timezone

from autorun.declare import registry
from autorun.declare.nodes import node_of
from autorun.management.subcommands.parsing import FORMAT, RUNNER_OR_ALL, check, flag, within
from autorun.management.subcommands.subcommand import Subcommand, condition_not_met
from autorun.observe.failures import FailureGroup, group_failures, labels_of, runs_in
from autorun.state.words import counted, moment


class Failures(Subcommand):
    """Show failed runs, grouped by error and message pattern."""

    name = "failures"
    summary = "failed runs, grouped by error and message pattern"
    arguments = (
        RUNNER_OR_ALL,
        within("only the last 30m, 24h or 7d"),
        flag("--all", dest="including_retried", help="include failed runs that will be retried"),
        FORMAT,
        check("if there are any"),
    )

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"]) if options["runner"] else None
        groups = group_failures(
            runner, within=options["within"], including_retried=options["including_retried"]
        )
        labels = labels_of(groups) | ({node_of(runner).pk: runner.label} if runner else {})
        self.terminal.json(
            [{"runner": labels.get(group.node_id), **asdict(group)} for group in groups]
        )
        self._show(groups, labels)
        if options["check"] and groups:
            raise condition_not_met(f"{counted(runs_in(groups), 'run')} failed.")

    def _show(self, groups: Sequence[FailureGroup], labels: Mapping[int, str]) -> None:
        if not groups:
            self.terminal.say(("No failed runs.", "green"))
            return
        zone = f" ({timezone.localtime():%Z})" if settings.USE_TZ else ""
        for node_id in dict.fromkeys(each.node_id for each in groups):
            of_node = [each for each in groups if each.node_id == node_id]
            runs = counted(runs_in(of_node), "failed run")
            label = labels.get(node_id)
            title = f"{of_node[0].title} v{of_node[0].version}"
            self.terminal.say((f"{title} ({label})" if label else title, "bold"), f": {runs}")
            self.terminal.table(
                ("#runs", "error", f"last{zone}"),
                [(f"{each.runs:,}", _words(each), moment(each.last_at)[5:16]) for each in of_node],
            )
            self.terminal.hint(
                f"Retry them: manage.py autorun retry {label}"
                if label
                else "These versions are no longer registered, so they cannot be retried."
            )


def _words(group: FailureGroup) -> str:
    """The message of a single run, or the pattern that the group's messages share."""
    text = group.message if group.runs == 1 else group.shape
    first = text.strip().partition("\n")[0]
    words = f"{group.exception_class}: {first}" if first else group.exception_class
    if not group.of_newest:
        return words
    return f"{words} (newest {group.of_newest:,} of {group.of_class:,} examined)"
