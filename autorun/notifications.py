"""Reports of failed runs that have no attempts left.

AUTORUN = {
    "ON_FAILURE": "autorun.notifications.mail_admins",
    "ON_FAILURE_EVERY": datetime.timedelta(hours=1),
}

`ON_FAILURE` is a function that takes a `FailureReport`, or its dotted path. It is called at most
once per runner and interval. If it raises, it is called again after some minutes, with all failures
that have not been reported.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from django.core import mail

from autorun.observe.failures import FailureGroup, runs_in
from autorun.state.words import counted, harmless, moment

#: Groups that a message lists; the rest are counted.
MOST_GROUPS = 20


@dataclass(frozen=True)
class FailureReport:
    """Runs of one runner that failed with no attempts left since the time `since`.

    `runner` is its label, `analysis` the title and version of its analysis. `groups` are groups of
    similar failures, the largest first: each has an `exception_class`, the number of `runs`, and
    the `message` and `run_id` of one of them. `paused` says why STOP_AFTER has paused the runner or
    batches of it.
    """

    runner: str
    analysis: str
    since: dt.datetime
    groups: Sequence[FailureGroup]
    paused: str = ""

    @property
    def runs(self) -> int:
        return runs_in(self.groups)

    @property
    def subject(self) -> str:
        return f"{self.runner}: {counted(self.runs, 'run')} failed{', paused' * bool(self.paused)}"

    def __str__(self) -> str:
        lines = [f"{self.analysis}, since {moment(self.since)}:", ""]
        if self.paused:
            lines += [f"Paused: {self.paused}", ""]
        for group in self.groups[:MOST_GROUPS]:
            first = group.message.strip().partition("\n")[0]
            some = f" (newest {group.of_newest:,} examined)" if group.of_newest else ""
            lines.append(f"{group.runs} x {group.exception_class}{some}: {first}")
            lines.append(f"    run {group.run_id}")
        if rest := self.groups[MOST_GROUPS:]:
            more = self.runs - sum(group.runs for group in self.groups[:MOST_GROUPS])
            lines.append(f"{more} more, of {len(rest)} other kinds")
        lines += ["", f"Show them: `manage.py autorun failures {self.runner}`"]
        lines += [f"Retry them: `manage.py autorun retry {self.runner}`"]
        return harmless("\n".join(lines))


def mail_admins(report: FailureReport) -> None:
    """Send the report to ADMINS. It contains messages of exceptions, which may contain data."""
    mail.mail_admins(report.subject, str(report))
