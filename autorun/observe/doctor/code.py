"""Examines whether code was edited under the version that has made results."""

from collections import defaultdict
from collections.abc import Iterator

from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.code_digest import code_digest
from autorun.declare.nodes import digest_of
from autorun.exceptions import AutorunError
from autorun.models import Build, Run
from autorun.observe.doctor.finding import Finding, examination, ok, warning
from autorun.state.words import moment


@examination("code")
def examine_code() -> Iterator[Finding]:
    """Current successes that another code of the same version has made."""
    builds: dict[str, list[Build]] = defaultdict(list)
    for build in Build.objects.exclude(code="").select_related("node"):
        builds[build.node.digest].append(build)
    edited = [found for runner in registry.runners() for found in _edited(runner, builds)]
    yield from edited or [ok("As it was when it made the results.")]


def _edited(runner: Runner, builds: dict[str, list[Build]]) -> Iterator[Finding]:
    try:
        analysis, known = runner.get_analysis(), builds.get(digest_of(runner), [])
    except AutorunError:  # a check says what is wrong
        return
    present = code_digest(analysis.function)
    others = [each for each in known if present and each.code != present]
    # No index is by build, so runs are read only if there is another one.
    made = Run.objects.current().succeeded().filter(build__in=others)
    if others and made.of(others[0].node_id).exists():
        since = moment(max(each.created_at for each in others))
        yield warning(
            f"{runner.label}: {analysis.location}, or a function that it uses, was edited under "
            f"version {analysis.version}. Results of the code that was first seen at {since} are "
            "current.",
            "If the edit changes results, give it a new version. To repeat them under this one: "
            f"manage.py autorun backfill {runner.label} --force",
        )
