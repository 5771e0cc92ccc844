"""Which failed runs `retry` and `ignore` are about: those of one exception, or of late."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autorun.declare.runner import Runner
from autorun.management.subcommands.subcommand import add_within
from autorun.observe.failures import classes_of, failed_runs
from autorun.planning.querysets import as_plain
from autorun.state.keys import key_kind

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from autorun.models import Run


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Which failures."""
    parser.add_argument(
        "--exception", metavar="CLASS", help="what raised this only, as `failures` names it"
    )
    add_within(parser, "what failed within the last 30m, 24h or 7d only")


def is_choice(options: dict[str, Any]) -> bool:
    """Whether the arguments of `add_choice` name some failures rather than all."""
    return options["exception"] is not None or options["within"] is not None


def chosen_runs(
    runner: Runner, options: dict[str, Any], *, queryset: QuerySet[Any] | None
) -> Iterator[list[Run]]:
    """The failed runs that the arguments of `add_choice` name, a few thousand at a time.

    Only those about rows of `queryset`, where there is one.
    """
    found = failed_runs(runner, exception_class=options["exception"], within=options["within"])
    if queryset is None:
        yield from found
        return
    rows = as_plain(runner, queryset)
    kind = key_kind(runner.get_model())
    for runs in found:
        by_pk = {kind.to_pk(kind.of(run)): run for run in runs}
        present = set(rows.filter(pk__in=list(by_pk)).values_list("pk", flat=True))
        yield [run for pk, run in by_pk.items() if pk in present]


def what_else_failed(runner: Runner, exception_class: str | None) -> str:
    """What to say where nothing was found that `exception_class` was raised by: what was raised."""
    raised = classes_of(runner)
    if exception_class is None or exception_class in raised or not raised:
        return f"What failed, and why: manage.py autorun failures {runner.label}"
    return f"No run failed for good with {exception_class}, but with {', '.join(raised)}."
