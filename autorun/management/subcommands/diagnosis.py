"""doctor, explain and failures: what is wrong, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.utils import timezone

from autorun.declare import registry
from autorun.declare.hooks import database_of
from autorun.declare.nodes import node_of
from autorun.management.subcommands import parsing
from autorun.management.subcommands.parsing import CONDITION_NOT_MET
from autorun.management.subcommands.subcommand import Subcommand, condition_not_met, primary_key
from autorun.management.subcommands.terminal import SIGNS
from autorun.models import Run
from autorun.observe.doctor import examine
from autorun.observe.explanation import explain, explain_missing, last_failure
from autorun.observe.failures import FailureGroup, group_failures, log_tails, runners_of, runs_in
from autorun.state.words import counted, encodable, in_one_line, moment


class Doctor(Subcommand):
    """Check that what autorun needs is working: settings, database, broker, workers, beat.

    Also reports what got stuck. The exit code is 3 if there is an error.
    """

    runs_despite_check_errors = True
    arguments = (
        parsing.FORMAT,
        parsing.flag("--strict", help=f"exit with code {CONDITION_NOT_MET} for a warning, too"),
    )

    def handle(self, **options: Any) -> None:
        findings = examine()
        columns = ("level", "message", "hint", "subject")
        self.terminal.json([{name: getattr(each, name) for name in columns} for each in findings])
        for finding in findings:
            sign, style = SIGNS[finding.level]
            self.terminal.say(
                (f"{sign} ", style), (finding.subject, "bold"), f": {finding.message}"
            )
            if finding.hint:
                self.terminal.say((f"  {finding.hint}", "dim"))
        levels = Counter(finding.level for finding in findings)
        errors, warnings = levels["error"], levels["warning"]
        if not errors and not warnings:
            self.terminal.say(("No problems found.", "green"))
        if errors or (options["strict"] and warnings):
            raise condition_not_met(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}.")


CODE_STYLES = {"succeeded": "green", "failed": "red", "unprepared": "red", "parked": "magenta"}


class _WithLog(Subcommand):
    def _show_log(self, log_tail: str, heading: str, *, lines: int = 20) -> None:
        if log_tail:
            self.terminal.say(heading)
            self.terminal.hint("\n".join(f"  {line}" for line in log_tail.splitlines()[-lines:]))


class Explain(_WithLog):
    """Explain why one row is pending for a runner, or why it is not."""

    arguments = (
        parsing.RUNNER,
        parsing.argument("pk", metavar="PK", help="the row's primary key"),
        parsing.FORMAT,
        parsing.check("unless the row's current input has succeeded"),
    )

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        model = runner.get_model()
        using = database_of(runner)
        pk = primary_key(runner, options["pk"], using=using)
        instance = model._base_manager.using(using).filter(pk=pk).first()
        found = explain_missing(runner, pk) if instance is None else explain(runner, instance)
        if found is None:
            raise CommandError(f"There is no {model._meta.label} with the key {options['pk']!r}.")
        failure = found.run and last_failure(found.run)
        log_tail = failure.log_tail if failure else ""
        run = found.run and {
            "id": found.run.pk,
            "status": Run.Status(found.run.status).name.lower(),
            "attempts": found.run.attempts,
            "finished_at": found.run.finished_at,
        }
        self.terminal.json(
            {
                "runner": runner.label,
                "model": model._meta.label,
                "pk": str(pk),
                "is_pending": found.is_pending,
                "code": found.code,
                "reason": found.reason,
                "run": run,
                "log_tail": log_tail,
            }
        )
        name = "(deleted)" if instance is None else str(instance)
        key = in_one_line(f"{model._meta.verbose_name} {pk}: ")
        self.terminal.say((key, "bold"), in_one_line(encodable(name)))
        self.terminal.say(
            ("pending, " if found.is_pending else "", "yellow"),
            (found.code, CODE_STYLES.get(found.code, "yellow" if found.is_pending else "cyan")),
            f": {found.reason}",
        )
        self._show_log(log_tail, "Its last failed attempt ended with:")
        if options["check"] and found.code != "succeeded":
            raise condition_not_met(in_one_line(f"{model._meta.label} {pk}: {found.code}."))


class Failures(_WithLog):
    """Show failed runs, grouped by error and message pattern."""

    arguments = (
        parsing.RUNNER_OR_ALL,
        parsing.within("only the last 30m, 24h or 7d"),
        parsing.flag("--all", dest="including_retried", help="include runs that will be retried"),
        parsing.FORMAT,
        parsing.check("if a run of a present version has failed"),
    )

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"]) if options["runner"] else None
        groups = group_failures(
            runner, within=options["within"], including_retried=options["including_retried"]
        )
        labels, former = runners_of(each.node_id for each in groups)
        labels |= {node_of(runner).pk: runner.label} if runner else {}
        logs = log_tails(group.run_id for group in groups)
        self.terminal.json(
            [
                {
                    "runner": labels.get(group.node_id),
                    "cause": group.cause,
                    **asdict(group),
                    "log_tail": logs.get(group.run_id, ""),
                }
                for group in groups
            ]
        )
        self._show(groups, labels, former, logs, is_of_one=runner is not None)
        # No runner has the others' version now, so nothing would ever make them succeed.
        present = [group for group in groups if group.node_id in labels]
        if options["check"] and present:
            raise condition_not_met(f"{counted(runs_in(present), 'run')} failed.")

    def _show(
        self,
        groups: Sequence[FailureGroup],
        labels: Mapping[int, str],
        former: Mapping[int, str],
        logs: Mapping[int, str],
        *,
        is_of_one: bool,
    ) -> None:
        if not groups:
            of_version = " of the present version" * is_of_one
            self.terminal.say((f"No failed runs{of_version}.", "green"))
            return
        zone = f" ({timezone.localtime():%Z})" if settings.USE_TZ else ""
        newest_first = sorted(groups, key=lambda each: each.last_at, reverse=True)
        in_order = sorted(newest_first, key=lambda each: each.node_id not in labels)
        for node_id in dict.fromkeys(each.node_id for each in in_order):
            of_node = [each for each in groups if each.node_id == node_id]
            runs = counted(runs_in(of_node), "failed run")
            label, earlier = labels.get(node_id), former.get(node_id, "")
            title, name = f"{of_node[0].title} v{of_node[0].version}", label or earlier
            self.terminal.say((f"{title} ({name})" if name else title, "bold"), f": {runs}")
            self.terminal.table(
                ("#runs", "error", f"last{zone}", "cause"),
                [
                    (f"{each.runs:,}", _words(each), moment(each.last_at)[5:16], each.cause)
                    for each in of_node
                ],
            )
            for each in of_node if label else ():
                heading = f"The newest run of {each.cause} ended with:"
                self._show_log(logs.get(each.run_id, ""), heading, lines=3)
            retry = f"Retry them: manage.py autorun retry {label}"
            self.terminal.hint(retry if label else _hint(earlier))


def _hint(label: str) -> str:
    """The next step for failures of a version or configuration that the runner has no longer."""
    if registry.find(label) is None:
        return "No runner has this version now, so they cannot be retried."
    return f"{label} no longer has this version. Clear: manage.py autorun ignore {label} --failed"


def _words(group: FailureGroup) -> str:
    """The message that all runs have, or the pattern that their messages share."""
    name, message = group.exception_class, group.heading
    words = f"{name}: {message}" if message else name
    if not group.of_newest:
        return words
    return f"{words} (newest {group.of_newest:,} of {group.of_class:,} examined)"
