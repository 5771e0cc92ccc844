"""The failed runs that `retry` and `ignore` process: all, or those of one exception or time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autorun.declare.hooks import as_plain
from autorun.declare.runner import Runner
from autorun.observe.failures import classes_of, failed_runs
from autorun.state.keys import key_kind

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from autorun.models import Run


def has_choice(options: dict[str, Any]) -> bool:
    """Whether `--exception` or `--within` is given."""
    return options["exception"] is not None or options["within"] is not None


def chosen_runs(
    runner: Runner, options: dict[str, Any], *, queryset: QuerySet[Any] | None
) -> Iterator[list[Run]]:
    """Failed runs that match `--exception` and `--within`, a few thousand at a time.

    Only those on rows of `queryset`, if it is given.
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


def hint_for_none(runner: Runner, exception_class: str | None) -> str:
    """The hint to print if no failed run matched: the exceptions that were raised."""
    raised = classes_of(runner)
    if exception_class is None or exception_class in raised or not raised:
        return f"Show failed runs: manage.py autorun failures {runner.label}"
    return f"No run failed with {exception_class}. Exceptions raised: {', '.join(raised)}."
