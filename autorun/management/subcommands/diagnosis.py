from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autorun.management.subcommands.parsing import CONDITION_NOT_MET, FORMAT, flag
from autorun.management.subcommands.subcommand import Subcommand, condition_not_met
from autorun.observe.doctor import examine
from autorun.state.words import counted

SIGNS = {"ok": ("✔", "green"), "warning": ("!", "yellow"), "error": ("✘", "red")}


class Doctor(Subcommand):
    """Check that what autorun needs is working: settings, database, broker, workers, beat.

    Also reports what got stuck. The exit code is 3 if there is an error.
    """

    name = "doctor"
    summary = "check that everything autorun needs is working"
    runs_despite_check_errors = True
    arguments = (
        FORMAT,
        flag("--strict", help=f"exit with code {CONDITION_NOT_MET} for a warning, too"),
    )

    def handle(self, **options: Any) -> None:
        findings = examine()
        self.terminal.json([asdict(finding) for finding in findings])
        for finding in findings:
            sign, style = SIGNS[finding.level]
            self.terminal.say(
                (f"{sign} ", style), (finding.subject, "bold"), f": {finding.message}"
            )
            if finding.hint:
                self.terminal.say((f"  {finding.hint}", "dim"))
        if all(finding.level == "ok" for finding in findings):
            self.terminal.say(("No problems found.", "green"))
        errors = sum(finding.level == "error" for finding in findings)
        warnings = sum(finding.level == "warning" for finding in findings)
        if errors or (options["strict"] and warnings):
            raise condition_not_met(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}.")
