"""Functions that were edited after their version had made results."""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from django.db.models import OuterRef, QuerySet
from django.utils.translation import gettext as _

from autorun.analysis import Analysis
from autorun.declare.base import Runner
from autorun.declare.code_digest import code_digest
from autorun.declare.nodes import digest_of
from autorun.exceptions import AutorunError
from autorun.models import Build, Run
from autorun.state.words import moment


@dataclass(frozen=True)
class Edit:
    """Results of other code are current, although it has the present version."""

    label: str
    analysis: Analysis
    since: dt.datetime

    def __str__(self) -> str:
        return _(
            "%(runner)s: %(function)s, or a function that it uses, was edited under version "
            "%(version)s. Results of the code that was first seen at %(time)s are current."
        ) % {
            "runner": self.label,
            "function": self.analysis.location,
            "version": self.analysis.version,
            "time": moment(self.since),
        }

    @property
    def advice(self) -> str:
        return (
            _(
                "If the edit changes results, give it a new version. To repeat them under this "
                "one: manage.py autorun backfill %s --force"
            )
            % self.label
        )


def other_code(runner: Runner) -> QuerySet[Build]:
    """The builds of the outer query's node by other code than the runner's function has now."""
    present = code_digest(runner.get_analysis().function)
    return Build.objects.filter(node=OuterRef("pk")).exclude(code__in=["", present])


def edits(runners: Iterable[Runner]) -> Iterator[Edit]:
    """The edits of runners that do not rerun rows after an edit."""
    digests = {}
    for runner in runners:
        try:
            if runner.ON_CODE_CHANGE == "warn":
                digests[digest_of(runner)] = runner
        except AutorunError:  # a check says what is wrong
            continue
    builds: dict[str, list[Build]] = defaultdict(list)
    for build in (
        Build.objects.exclude(code="").filter(node__digest__in=digests).select_related("node")
    ):
        builds[build.node.digest].append(build)
    for digest, known in builds.items():
        runner = digests[digest]
        analysis = runner.get_analysis()
        present = code_digest(analysis.function)
        others = [each for each in known if present and each.code != present]
        # No index is by build, so runs are read only if there is another one.
        made = Run.objects.current().succeeded().filter(build__in=others)
        if others and made.of(others[0].node_id).exists():
            yield Edit(runner.label, analysis, max(each.created_at for each in others))
