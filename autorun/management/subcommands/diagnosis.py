from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from autorun.management.subcommands.subcommand import (
    CONDITION_NOT_MET,
    ConditionNotMet,
    Subcommand,
    add_format,
)
from autorun.management.subcommands.terminal import plural
from autorun.observe.doctor import Finding, examine

SIGNS = {"ok": ("✔", "green"), "warning": ("!", "yellow"), "error": ("✘", "red")}


class Doctor(Subcommand):
    """Examine what autorun needs: settings, database, broker, workers, beat; and what got stuck.

    The exit code is 3 where there is an error.
    """

    name = "doctor"
    summary = "whether all that autorun needs is there and at work"
    runs_despite_check_errors = True

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_format(parser)
        parser.add_argument(
            "--strict",
            action="store_true",
            help=f"end with exit code {CONDITION_NOT_MET} where there is a warning, too",
        )

    def handle(self, **options: Any) -> None:
        findings = examine()
        if options["format"] == "json":
            self.terminal.json([asdict(finding) for finding in findings])
        else:
            self._show(findings)
        errors = sum(finding.level == "error" for finding in findings)
        warnings = sum(finding.level == "warning" for finding in findings)
        if errors or (options["strict"] and warnings):
            raise ConditionNotMet(f"{plural(errors, 'error')}, {plural(warnings, 'warning')}.")

    def _show(self, findings: list[Finding]) -> None:
        for finding in findings:
            sign, style = SIGNS[finding.level]
            self.terminal.say(
                (f"{sign} ", style), (finding.subject, "bold"), f": {finding.message}"
            )
            if finding.hint:
                self.terminal.hint(f"  {finding.hint}")
        if all(finding.level == "ok" for finding in findings):
            self.terminal.say(("All is well.", "green"))
