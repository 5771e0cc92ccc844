from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandError

from autorun.declare import registry
from autorun.declare.hooks import every_row
from autorun.management.subcommands.subcommand import (
    ConditionNotMet,
    Subcommand,
    add_check,
    add_format,
    add_runner,
    primary_key,
)
from autorun.models import Run
from autorun.observe.explanation import Explanation, explain

STYLES = {"succeeded": "green", "failed": "red", "unprepared": "red", "parked": "magenta"}


class Explain(Subcommand):
    """Say why one row is pending for a runner, or why it is not."""

    name = "explain"
    summary = "why a row is pending, or is not"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_runner(parser)
        parser.add_argument("pk", metavar="PK", help="the row's primary key")
        add_format(parser)
        add_check(parser, "unless the row's current input has been processed with success")

    def handle(self, **options: Any) -> None:
        runner = registry.get(options["runner"])
        model = runner.get_model()
        instance = every_row(runner).filter(pk=primary_key(runner, options["pk"])).first()
        if instance is None:
            raise CommandError(f"There is no {model._meta.label} with the key {options['pk']!r}.")
        explanation = explain(runner, instance)
        if options["format"] == "json":
            self.terminal.json(
                {
                    "runner": runner.label,
                    "model": model._meta.label,
                    "pk": str(instance.pk),
                    "is_pending": explanation.is_pending,
                    "code": explanation.code,
                    "reason": explanation.reason,
                    "run": _run_as_json(explanation),
                }
            )
        else:
            self.terminal.say(
                (f"{model._meta.verbose_name} {instance.pk}: ", "bold"), str(instance)
            )
            style = STYLES.get(explanation.code, "yellow" if explanation.is_pending else "cyan")
            self.terminal.say(
                ("pending, " if explanation.is_pending else "", "yellow"),
                (explanation.code, style),
                f": {explanation.reason}",
            )
        if options["check"] and explanation.code != "succeeded":
            raise ConditionNotMet(f"{model._meta.label} {instance.pk}: {explanation.code}.")


def _run_as_json(explanation: Explanation) -> dict[str, Any] | None:
    run = explanation.run
    if run is None:
        return None
    return {
        "id": run.pk,
        "status": Run.Status(run.status).name.lower(),
        "attempts": run.attempts,
        "finished_at": run.finished_at,
    }
