"""How far runners have got, for the overview and for `status`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autorun.declare.base import Runner
from autorun.declare.nodes import digest_of
from autorun.exceptions import bare_message
from autorun.models import Node
from autorun.observe.activity import Activity, activity_by_node
from autorun.state.counts import Progress, progress_and_stuck


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far one runner has got; `error` says why nothing more is known."""

    runner: Runner
    digest: str = ""
    node: Node | None = None
    progress: Progress = field(default_factory=Progress)
    activity: Activity = field(default_factory=Activity)
    #: Whether its tasks are in the queue and no worker is processing them.
    is_stuck: bool = False
    error: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the unfinished runs have finished; None while no run is processed."""
        return None if self.is_stuck else self.activity.seconds_left(self.progress.unfinished)

    @property
    def run_seconds(self) -> float | None:
        return None if self.node is None else self.activity.usual_seconds(self.node)


def standings_of(
    runners: Sequence[Runner],
    progresses: Mapping[Node, Progress] | None = None,
    *,
    is_brief: bool = False,
) -> list[Standing]:
    """The standing of each runner, in their order; `progresses` if they have been loaded already.

    Four queries, or two; if it `is_brief`, without activities, two or none.
    """
    digests = [digest_or_problem(runner) for runner in runners]
    if progresses is None:
        known = [digest for digest, _ in digests if digest]
        progresses = progresses_of(Node.objects.filter(digest__in=known))
    nodes = {node.digest: node for node in progresses}
    activities = {} if is_brief else activity_by_node(progresses)
    standings = []
    for runner, (digest, error) in zip(runners, digests, strict=True):
        of_node = {}
        if (node := nodes.get(digest)) is not None:
            of_node = {
                "node": node,
                "progress": progresses[node],
                "activity": activities.get(node.pk, Activity()),
                "is_stuck": node.is_stuck,  # type: ignore[attr-defined]
            }
        standings.append(Standing(runner=runner, digest=digest, error=error, **of_node))
    return standings


def progresses_of(nodes: Iterable[Node], *others: Any) -> dict[Node, Progress]:
    """The progress of each node, in their order, which says whether it `is_stuck`; one query.

    `others` are further arguments of `progress_and_stuck`.
    """
    found = list(nodes)
    progresses, stuck = progress_and_stuck(found, *others)
    for node in found:
        node.is_stuck = node.pk in stuck  # type: ignore[attr-defined]
    return {node: progresses.get(node.pk, Progress()) for node in found}


def digest_or_problem(runner: Runner) -> tuple[str, str]:
    """The digest of the runner's node, or '' and the problem with its declaration."""
    try:
        return digest_of(runner), ""
    except Exception as error:  # noqa: BLE001  any fault of a declaration
        return "", bare_message(error)
