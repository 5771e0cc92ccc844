"""Examines whether code was edited under the version that has made results."""

from collections.abc import Iterator

from autorun.declare import registry
from autorun.observe.doctor.finding import Finding, examination, ok, warning
from autorun.observe.edits import edits


@examination("code")
def examine_code() -> Iterator[Finding]:
    """Current successes that another code of the same version has made."""
    found = [warning(str(each), each.advice) for each in edits(registry.runners())]
    yield from found or [ok("Unchanged since it made the current results.")]
