"""The Node of a runner: found or made, and remembered by the process."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.core.signals import setting_changed
from django.db import DatabaseError, IntegrityError, connections, transaction
from django.db.models import Exists, Model, OuterRef, Q, QuerySet

from autorun.conf import settings
from autorun.declare import hooks, registry
from autorun.declare.base import Runner
from autorun.exceptions import AutorunError
from autorun.models import Chunk, Node
from autorun.state import pulses
from autorun.state.encoding import digest, encode_configuration
from autorun.state.keys import concrete
from autorun.state.logs import get_logger
from autorun.state.sql import Fragment

logger = get_logger(__name__)

#: Seconds before another try at a configuration that could not be created.
TRY_AGAIN_AFTER = 10.0
#: A node's id is the start of its digest, in hex: as many digits as JavaScript reads exactly.
ID_DIGITS = 13
#: Definitions of the input that a node keeps, the latest first.
MOST_DEFINITIONS = 10

_known: dict[tuple[str, str], Node] = {}
#: The ids of nodes by digest, those that they will have included.
_ids: dict[str, int] = {}
#: The digest of each runner, or the error in its place and when to try again.
_digests: dict[type[Runner], str | tuple[Exception, float]] = {}
#: By database and node, the number of the build that this process executes it with.
builds: dict[tuple[str, int], int] = {}
#: Set once every registered runner could be asked.
_runners_by_node: "RunnersByNode | None" = None


@dataclass(frozen=True)
class RunnersByNode:
    """By a node's digest, the labels of its runners and the runners that wait for its successes."""

    labels: Mapping[str, list[str]]
    dependents: Mapping[str, list[Runner]]


def node_of(runner: Runner) -> Node:
    """The Node of `runner`'s analysis, version, configuration and model; made on first use."""
    kept = _digests.get(type(runner))
    node_digest = kept if isinstance(kept, str) else digest_of(runner)
    known = _known.get((settings.DATABASE, node_digest))
    return known if known is not None else find_node(runner)


def is_tried(runner: Runner, node_id: int) -> bool:
    """Whether the node is that of the runner's candidate version."""
    trial = None if runner.CANDIDATE is None else registry.trial_of(runner)
    return trial is not None and node_id_of(trial) == node_id


def node_id_of(runner: Runner) -> int:
    """Return the id that the runner's node has or will have, without creating the node."""
    known = known_node_of(runner)
    return int(digest_of(runner)[:ID_DIGITS], 16) if known is None else known.pk


def known_node_of(runner: Runner) -> Node | None:
    """Return the runner's node, or None if it has not been created."""
    node_digest = digest_of(runner)
    return _known.get((settings.DATABASE, node_digest)) or _find(runner, node_digest)


def find_node(runner: Runner) -> Node:
    """`node_of` as the database has it now: it may have forgotten a node that the process knows.

    Notes the definition of the runner's input if it is new.
    """
    node_digest = digest_of(runner)
    found = _find(runner, node_digest)
    if found is None:
        return _remembered(runner, _create(runner, node_digest))
    if not _has_noted(found, runner) and not connections[settings.DATABASE].in_atomic_block:
        with transaction.atomic(using=settings.DATABASE):
            found = Node.objects.select_for_update().get(pk=found.pk)
            others = [each for each in found.inputs or () if each != runner.input_definition]
            found.inputs = [runner.input_definition, *others][:MOST_DEFINITIONS]
            found.save(update_fields=["inputs"], using=settings.DATABASE)
        _remembered(runner, found)
    return found


def restore(runner: Runner, node_id: int) -> None:
    """Make the runner's node again, under the id in use, if the database has forgotten it."""
    if not Node.objects.filter(pk=node_id).exists():
        forget_nodes()
        _create(runner, digest_of(runner), pk=node_id)


def nodes_of(runner: Runner) -> list[int]:
    """The ids of the nodes of the runner's analysis that it has planned runs for, its own first."""
    node = node_of(runner)
    planned = Chunk.objects.filter(node=OuterRef("pk"), runner=runner.label)
    alike = Node.objects.filter(title=node.title, content_type=node.content_type_id)
    earlier = alike.filter(Exists(planned)).exclude(pk=node.pk).order_by("-created_at")
    return [node.pk, *earlier.values_list("pk", flat=True)]


def nodes_over(model: type[Model]) -> QuerySet[Node]:
    """The nodes over a model, or over the one it is a proxy of."""
    meta = concrete(model)._meta
    return Node.objects.filter(
        content_type__app_label=meta.app_label, content_type__model=meta.model_name
    )


def digest_of(runner: Runner) -> str:
    """SHA-256, in hex, of what two runners have in common that share their runs.

    Computed once for a registered runner, until the registry or the settings change. Raises an
    AutorunError, and nothing else, if the runner is declared wrongly, so that a loop over all
    runners can continue with the others.
    """
    known = _digests.get(type(runner))
    if isinstance(known, str):
        return known
    if known is not None and time.monotonic() < known[1]:
        raise known[0].with_traceback(None)
    is_kept = registry.is_registered(runner)
    try:
        analysis = hooks.call(runner, "get_analysis")
        configuration = configuration_of(runner)
        found = digest(analysis.title, analysis.version, configuration, _label(runner))
    except AutorunError as error:
        if is_kept:
            _digests[type(runner)] = (error, time.monotonic() + TRY_AGAIN_AFTER)
        raise
    if is_kept:
        _digests[type(runner)] = found
    return found


def configuration_of(runner: Runner) -> dict[str, Any]:
    """`create_configuration()` as plain JSON. Raises ConfigurationError or ImproperRunner."""
    return encode_configuration(hooks.call(runner, "create_configuration"))


def lock(node_id: int) -> None:
    """Hold the node's lock until the transaction ends."""
    # It is not the node itself: on MariaDB every insert of a chunk would wait for that.
    pulses.hold(_lock_name(node_id))


def to_lock_free(node_id: int) -> Fragment | None:
    """A statement that finds and holds the node's lock if it is free; None if none is needed."""
    return pulses.to_hold_free(_lock_name(node_id))


def lock_free(node_ids: Collection[int], *, has_tried: bool = False) -> list[int]:
    """Hold the locks of those nodes whose lock is free; the ids of these nodes, in order.

    The caller `has_tried` to, in vain: then only a lock that is new can be held.
    """
    names = [_lock_name(node_id) for node_id in node_ids]
    held = pulses.hold_free(names, has_tried=has_tried)
    return sorted(node_id for node_id in node_ids if _lock_name(node_id) in held)


def dependents(node: Node) -> list[Runner]:
    """The runners that wait for successes of the node."""
    return (_runners_by_node or runners_by_node()).dependents.get(node.digest, [])


def runners_by_node() -> RunnersByNode:
    """The registered runners, in the order of their labels, without those declared wrongly."""
    global _runners_by_node  # noqa: PLW0603
    if _runners_by_node is not None:
        return _runners_by_node
    labels: dict[str, list[str]] = {}
    dependents: dict[str, list[Runner]] = {}
    is_complete = True
    for runner in registry.runners():
        try:
            labels.setdefault(digest_of(runner), []).append(runner.label)
            if (trial := registry.trial_of(runner)) is not None:
                labels.setdefault(digest_of(trial), []).append(runner.label)
            of_sets = [upstream for _, upstream in registry.sets_before(runner)]
            for upstream in (*registry.dependencies_of(runner), *of_sets):
                known = dependents.setdefault(digest_of(upstream), [])
                if runner not in known:
                    known.append(runner)
        except (AutorunError, DatabaseError) as error:
            logger.warning("%s: its node or a dependency is unknown: %s", runner.label, error)
            is_complete = False
    found = RunnersByNode(labels, dependents)
    if is_complete:
        _runners_by_node = found
    return found


def labels_by_id() -> dict[int, list[str]]:
    """The labels of the registered runners by the id of their node, which may not exist yet."""
    labels = runners_by_node().labels
    if not labels.keys() <= _ids.keys():
        ids = {int(each[:ID_DIGITS], 16): each for each in labels}
        found = Node.objects.filter(Q(pk__in=ids) | Q(digest__in=list(labels)))
        ids |= found.values_list("pk", "digest")  # a node of a renamed model may have such an id
        _ids.update({each: pk for pk, each in ids.items()})
    return {_ids[each]: of for each, of in labels.items() if each in _ids}


def forget_nodes(**_: Any) -> None:
    """Drop what the process remembers: the tables may be empty now, or a replica's."""
    for each in (_known, _ids, builds):
        each.clear()


def _lock_name(node_id: int) -> str:
    return f"node:{node_id}"


def _find(runner: Runner, node_digest: str) -> Node | None:
    node = Node.objects.filter(digest=node_digest).first()
    return None if node is None else _remembered(runner, node)


def _remembered(runner: Runner, node: Node) -> Node:
    # An open transaction may still be rolled back; `find_node` notes a new definition.
    if _has_noted(node, runner) and not connections[settings.DATABASE].in_atomic_block:
        _known[settings.DATABASE, node.digest] = node
    return node


def _has_noted(node: Node, runner: Runner) -> bool:
    return runner.input_definition in (node.inputs or ())


def _label(runner: Runner) -> str:
    return concrete(runner.get_model())._meta.label_lower


def _create(runner: Runner, node_digest: str, *, pk: int | None = None) -> Node:
    analysis = hooks.call(runner, "get_analysis")
    content_type = _content_type(runner, analysis.title)
    configuration = configuration_of(runner)  # the project's code, so outside the transaction
    of_model = Node.objects.filter(content_type=content_type)
    alike = of_model.filter(title=analysis.title, version=analysis.version)
    label = _label(runner)
    try:
        with transaction.atomic(using=settings.DATABASE):
            for node in alike:
                # The same but for the model's name: Django's migrations rename the content type.
                if digest(node.title, node.version, node.configuration, label) == node_digest:
                    node.digest = node_digest
                    node.save(update_fields=["digest"], using=settings.DATABASE)
                    return node
            return Node.objects.create(
                # Processes keep the id. A sequence would give it to another node after a failover
                # or a backup had lost this one.
                pk=pk or _free_id(node_digest),
                title=analysis.title,
                version=analysis.version,
                configuration=configuration,
                inputs=[runner.input_definition],
                content_type=content_type,
                digest=node_digest,
            )
    except IntegrityError:  # another process made it meanwhile
        return Node.objects.get(digest=node_digest)


def _content_type(runner: Runner, title: str) -> ContentType:
    """The content type of the runner's model, made if it is missing.

    Raises DatabaseError before and during `migrate`, which may be about to rename another one: a
    new one would keep that from its name, and its nodes with it.
    """
    app_label, name = _label(runner).split(".")
    types = ContentType.objects.db_manager(settings.DATABASE)
    of_app = types.filter(app_label=app_label)
    if not of_app.filter(model=name).exists():
        hooks.every_row(runner).exists()  # the table is renamed first
        alike = of_app.filter(pk__in=Node.objects.filter(title=title).values("content_type"))
        if any(each.model_class() is None for each in alike):
            raise DatabaseError(f"{_label(runner)} has no content type: run `manage.py migrate`.")
    return types.get_for_model(runner.get_model())


def _free_id(node_digest: str) -> int:
    """The start of the digest, or its next digits if a node of a renamed model has that id."""
    first, second = (int(node_digest[begin:][:ID_DIGITS], 16) for begin in (0, ID_DIGITS))
    return second if Node.objects.filter(pk=first).exists() else first


def _forget_runners(**_: Any) -> None:
    global _runners_by_node  # noqa: PLW0603
    _runners_by_node = None
    _digests.clear()
    _ids.clear()


registry.on_change(_forget_runners)
setting_changed.connect(_forget_runners, dispatch_uid="autorun.declare.nodes")
