"""Reports of failed runs that have no attempts left, and of their end.

AUTORUN = {
    "ON_FAILURE": "autorun.notifications.mail_admins",
    "ON_FAILURE_EVERY": datetime.timedelta(hours=1),
}

`ON_FAILURE` is a function that takes a `FailureReport`, or its dotted path. It is called a minute
after a failure, at most once per runner and interval, and once when runs succeed again. If it
raises, it is called again after some minutes, with all failures that have not been reported.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from django.core import mail
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext as _, ngettext

from autorun.observe.failures import FailureGroup, runs_in
from autorun.state.words import harmless, in_one_line, moment, number, some_of

#: Groups that a message lists, and those that its subject names; the rest are counted.
MOST_GROUPS = 20
MOST_CAUSES = 3
#: Characters of a cause in the subject.
LONGEST_CAUSE = 60
GROUP = "<tr><td>{}</td><td>{}<br><small>{}</small></td></tr>"


@dataclass(frozen=True)
class FailureReport:
    """Runs of one runner that failed with no attempts left since the time `since`.

    `runner` is its label, `analysis` the title and version of its analysis. `groups` are groups of
    similar failures, the largest first: each has an `exception_class`, the number of `runs`, and
    the `message` and `run_id` of one of them. Without groups, runs succeed again after a report.

    `paused` says why STOP_AFTER has paused the runner or batches of it. `failed` and `finished`
    count all current runs. `new_version` is the version if no run of it failed before `since`, and
    an earlier one exists. `rows` has names of rows by run id. `url` is that of the page of the
    failures, or "".
    """

    runner: str
    analysis: str
    since: dt.datetime
    groups: Sequence[FailureGroup]
    paused: str = ""
    failed: int = 0
    finished: int = 0
    new_version: str = ""
    rows: Mapping[int, str] = field(default_factory=dict)
    url: str = ""

    @property
    def runs(self) -> int:
        return runs_in(self.groups)

    @property
    def subject(self) -> str:
        return in_one_line(f"{self.runner}: {self.summary}")

    @property
    def summary(self) -> str:
        """`121 of 213 runs failed since v1.1: 81 no pixel data, 30 missing decoder, 10 others`."""
        if not self.groups:
            still = ", " + _("%s still failed") % number(self.failed) if self.failed else ""
            return _("runs succeed again") + still
        if self.runs < self.failed:
            text = ngettext("%s more run failed", "%s more runs failed", self.runs)
            in_all = _("%s in all") % some_of(self.failed, self.finished)
            text = f"{text % number(self.runs)}, {in_all}"
        elif self.finished:
            text = ngettext("%s run failed", "%s runs failed", self.finished)
            text %= some_of(self.runs, self.finished)
        else:
            text = ngettext("%s run failed", "%s runs failed", self.runs) % number(self.runs)
        since = " " + _("since v%s") % self.new_version if self.new_version else ""
        paused = ", " + _("paused") if self.paused else ""
        return f"{text}{since}{paused}: {self._causes()}"

    def __str__(self) -> str:
        """The body of a message, as plain text."""
        lines = [f"{in_one_line(self.summary)}.", "", self._about, ""]
        if self.paused:
            lines += [f"{_('Paused:')} {in_one_line(self.paused)}", ""]
        for group in self.groups[:MOST_GROUPS]:
            lines.append(f"{group.runs} x {_text_of(group)}")
            lines += [f"    {example}" for example in self._examples(group)]
        lines += [*self._rest(), ""] if self.groups else []
        lines += [f"{_('Show them')}: {self.url}"] if self.url else []
        lines += [f"{what}: `{command}`" for what, command in self._commands()]
        return harmless("\n".join(lines))

    @property
    def html(self) -> str:
        """The body of a message, as HTML."""
        groups = format_html_join(
            "",
            GROUP,
            (
                (f"{group.runs:,}", _text_of(group), "; ".join(self._examples(group)))
                for group in self.groups[:MOST_GROUPS]
            ),
        )
        return harmless(
            format_html(
                "<p><strong>{}.</strong></p><p>{}{}</p>{}<p>{}</p>{}{}",
                self.summary,
                self._about,
                f". {_('Paused:')} {self.paused}" if self.paused else "",
                format_html("<table>{}</table>", groups) if self.groups else "",
                "".join(self._rest()),
                format_html('<p><a href="{}">{}</a></p>', self.url, _("Show them"))
                if self.url
                else "",
                format_html_join("", "<p>{}: <code>{}</code></p>", self._commands()),
            )
        )

    @property
    def _about(self) -> str:
        of = {"analysis": self.analysis, "time": moment(self.since)}
        return _("%(analysis)s, since %(time)s") % of

    def _causes(self) -> str:
        """The largest groups, in the few words of a subject."""
        largest = self.groups[:MOST_CAUSES]
        causes = [f"{each.runs:,} {_cause_of(each)}" for each in largest]
        others = self.runs - sum(each.runs for each in largest)
        if others > 0:
            causes.append(ngettext("%s other", "%s others", others) % number(others))
        return ", ".join(causes)

    def _examples(self, group: FailureGroup) -> list[str]:
        names = self.rows
        runs = {pk: _("run %s") % pk for pk in group.run_ids}
        return [f"{run}: {names[pk]}" if pk in names else run for pk, run in runs.items()]

    def _rest(self) -> list[str]:
        rest = self.groups[MOST_GROUPS:]
        more = self.runs - sum(group.runs for group in self.groups[:MOST_GROUPS])
        of = {"more": number(more), "kinds": number(len(rest))}
        return [_("%(more)s more, of %(kinds)s other kinds") % of] if rest else []

    def _commands(self) -> list[tuple[str, str]]:
        if not self.groups and not self.failed:
            return []
        return [
            (_("Show them"), f"manage.py autorun failures {self.runner}"),
            (_("Retry them"), f"manage.py autorun retry {self.runner}"),
        ]


def mail_admins(report: FailureReport) -> None:
    """Mail the report to ADMINS, as text and HTML.

    It has messages of exceptions and names of rows, which may contain personal data.
    """
    mail.mail_admins(report.subject, str(report), html_message=report.html)


def _text_of(group: FailureGroup) -> str:
    some = " " + _("(newest %s examined)") % number(group.of_newest) if group.of_newest else ""
    first = group.message.strip().partition("\n")[0]
    return in_one_line(f"{group.exception_class}{some}: {first}")


def _cause_of(group: FailureGroup) -> str:
    is_telling = any(map(str.isalpha, group.shape))  # that of a KeyError is "'...'"
    words = group.shape if is_telling else group.exception_class.rpartition(".")[2]
    return words if len(words) <= LONGEST_CAUSE else f"{words[: LONGEST_CAUSE - 1].rstrip()}…"
