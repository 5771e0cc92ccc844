"""What people are told when runs have failed for good.

AUTORUN = {
    "ON_FAILURE": "autorun.notifications.mail_admins",
    "ON_FAILURE_EVERY": datetime.timedelta(hours=1),
}

`ON_FAILURE` is a function, or the dotted path of one, that takes a `FailureReport`. It is called
once per runner and interval at most, whatever the number of workers and of failures; where it
raises, again after some minutes, with all that nobody has been told of.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.core import mail

if TYPE_CHECKING:
    from autorun.observe.failures import FailureGroup

#: Groups that a message names; the rest is counted.
MOST_GROUPS = 20
_VERBS = ("failures", "retry")


@dataclass(frozen=True)
class FailureReport:
    """Runs of one runner that have failed for good `since` the last report, or of late.

    `runner` is its label and `analysis` the title and version of what it runs. The `groups` of
    failures that are alike, the largest first, each have an `exception_class`, the number of
    `runs`, and the `message` and `run_id` of one of them.
    """

    runner: str
    analysis: str
    since: dt.datetime
    groups: Sequence[FailureGroup]

    @property
    def runs(self) -> int:
        """How many runs failed."""
        classes = {(group.node_id, group.exception_class): group.of_class for group in self.groups}
        return sum(classes.values())

    @property
    def subject(self) -> str:
        """The report in one line."""
        return f"{self.runner}: {self.runs} run{'s' * (self.runs != 1)} failed"

    def __str__(self) -> str:
        """The report as the text of a message."""
        lines = [f"{self.analysis}, since {self.since:%Y-%m-%d %H:%M %Z}:", ""]
        for group in self.groups[:MOST_GROUPS]:
            first = group.message.strip().partition("\n")[0]
            some = f", of the newest {group.of_newest}" if group.of_newest else ""
            number = f"{group.runs} x {group.exception_class}{some}"
            lines += [f"{number}: {first}", f"    run {group.run_id}"]
        if len(self.groups) > MOST_GROUPS:
            rest = self.groups[MOST_GROUPS:]
            more = self.runs - sum(group.runs for group in self.groups[:MOST_GROUPS])
            lines.append(f"{more} more, of {len(rest)} other kinds")
        shown, retried = (f"`manage.py autorun {verb} {self.runner}`" for verb in _VERBS)
        lines += ["", f"{shown} shows them, and {retried} runs them again."]
        return "\n".join(lines)


def mail_admins(report: FailureReport) -> None:
    """Send the report to ADMINS. It has messages of exceptions in it, and so maybe data."""
    mail.mail_admins(report.subject, str(report))
