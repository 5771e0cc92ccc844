"""Versions that no sweep has planned yet, those that are held, and edits under one version."""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone
from django.utils.translation import gettext as _, ngettext

from autorun.analysis import Analysis
from autorun.declare.base import Runner
from autorun.declare.code_digest import code_digest
from autorun.declare.nodes import digest_of
from autorun.exceptions import AutorunError
from autorun.models import Batch, Build, Chunk, Node, Run
from autorun.state.origins import requester
from autorun.state.words import moment, number


def is_new(label: str | OuterRef) -> Q:
    """The condition on nodes that no sweep has planned them, and that the runner had another."""
    swept = Batch.objects.filter(node=OuterRef("pk"), trigger=Batch.Trigger.SWEEP)
    alike = Node.objects.filter(title=OuterRef("title"), content_type=OuterRef("content_type"))
    earlier = alike.filter(created_at__lt=OuterRef("created_at"), chunks__runner=label)
    return ~Q(Exists(swept.exclude(planned_at=None))) & Q(Exists(earlier))


def used_before(labels: Collection[str]) -> set[tuple[str, str]]:
    """The pairs of a runner, of these labels, and an analysis that it has run some version of."""
    own = Chunk.objects.filter(node=OuterRef("pk"), runner__in=labels).values("runner")[:1]
    nodes = Node.objects.annotate(label=Subquery(own)).exclude(label=None)
    return set(nodes.values_list("label", "title"))


def held(node: Node) -> str:
    """Since when, and by whom, a held node's sweeps and saves are held."""
    phrase = _("sweeps and saves have been held since %(at)s")
    if node.held_by:
        phrase = _("sweeps and saves have been held since %(at)s by %(user)s")
    return phrase % {"at": moment(node.held_at), "user": requester(node.held_by)}


def about_version(
    version: str,
    node: Node | None,
    pending: int | None,
    *,
    is_swept: bool,
    next_sweep: dt.datetime | None = None,
) -> str:
    """The sentence about a version that is new, or held; `is_swept` if sweeps are scheduled."""
    many = 2 if pending is None else pending
    rows = ngettext("%s row", "%s rows", many) % number(pending)
    rows = _("its pending rows") if pending is None else rows
    of = {"version": version, "rows": rows, "held": "", "time": ""}
    if node is not None and node.held_at is not None:
        of["held"] = held(node)
        sentence = ngettext(
            "v%(version)s: %(held)s; %(rows)s stays pending.",
            "v%(version)s: %(held)s; %(rows)s stay pending.",
            many,
        )
    elif not is_swept:
        sentence = ngettext(
            "v%(version)s is new: %(rows)s will not start, as no sweep is scheduled.",
            "v%(version)s is new: %(rows)s will not start, as no sweep is scheduled.",
            many,
        )
    elif next_sweep is not None and next_sweep - timezone.now() < dt.timedelta(days=1):
        of["time"] = f"{timezone.localtime(next_sweep):%H:%M}"
        sentence = ngettext(
            "v%(version)s is new: %(rows)s starts with the %(time)s sweep.",
            "v%(version)s is new: %(rows)s start with the %(time)s sweep.",
            many,
        )
    else:
        sentence = ngettext(
            "v%(version)s is new: %(rows)s starts with the next sweep.",
            "v%(version)s is new: %(rows)s start with the next sweep.",
            many,
        )
    return sentence % of


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
