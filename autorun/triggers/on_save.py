"""Collects rows as soon as they are saved.

One receiver hears every save, and keeps the primary keys for models that runners process, or read
as related rows. Django drops them with the savepoint or the transaction they were saved in, and
hands them to the delivery when that commits.

The next sweep finds what sends no `post_save` (`bulk_create`, `update()` of a queryset, SQL) and
what is left out on purpose: fixtures (`raw`), saves of a data migration, and rows of a parent model
whose child is tied to it by another column than its primary key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Field, Model
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.db.transaction import TransactionManagementError

from autorun.declare import registry
from autorun.declare.sets import PK, Related
from autorun.state.keys import concrete
from autorun.state.logs import get_logger
from autorun.triggers import delivery

logger = get_logger(__name__)

#: How often a transaction registers one set of saved rows. Django takes its hooks from the front of
#: a list, in time that grows as their square: 200,000 of them took three seconds to commit.
MOST_HOOKS = 1_000


def connect() -> None:
    """Listen to every save, and to deletions of what runners process, from now on."""
    post_save.connect(note_saved, weak=False, dispatch_uid="autorun.on_save")
    listen_to_deletions()
    registry.on_change(listen_to_deletions)


def note_saved(
    sender: type[Model],
    instance: Model,
    raw: bool = False,
    using: str = DEFAULT_DB_ALIAS,
    watches: tuple[Watch, ...] | None = None,
    **kwargs: Any,
) -> None:
    """Remember the saved row until its transaction commits. Never raises an Exception."""
    watches = _watches.get(sender) if watches is None else watches
    if raw or watches == ():
        return
    try:
        if watches is None:
            watches = _look_up(sender)
        if watches and not _joined(instance, watches, connections[using]):
            saved = _Saved()
            saved.add(instance, watches)
            connections[using].on_commit(saved.flush, robust=True)
    except TransactionManagementError:
        # Without autocommit and outside atomic() Django cannot say when the commit is.
        logger.warning(
            "%s: a row was saved in a transaction that Django does not manage. "
            "The next sweep finds it.",
            sender._meta.label,
        )
    except Exception:
        logger.exception(
            "%s: a saved %s was not noted. The next sweep finds it.",
            _runners_about(sender),
            sender._meta.label,
        )


def note_deleted(
    sender: type[Model], instance: Model, using: str = DEFAULT_DB_ALIAS, **kwargs: Any
) -> None:
    """Remember the deleted row as `note_saved` does a saved one."""
    note_saved(sender, instance, using=using, watches=of_deleted(sender, using))


def note_linked(
    sender: type[Model],
    instance: Model,
    action: str,
    reverse: bool,
    pk_set: set[Any] | None,
    using: str,
    **kwargs: Any,
) -> None:
    """Remember the rows of a many-to-many relation whose links were added or removed."""
    if not action.startswith("post_"):
        return
    owner: Any = sender._meta.auto_created
    fields = owner._meta.local_many_to_many
    field: Any = next(each for each in fields if each.remote_field.through is sender)
    source: Any = sender._meta.get_field(field.m2m_field_name())
    for label, attname in of_links(sender):
        keys = {instance.pk}
        if field.remote_field.symmetrical:
            keys |= pk_set or set()
        elif reverse is (attname == source.attname):
            keys = pk_set or set()
        for key in keys:
            note_saved(sender, key, using=using, watches=(Watch(label, lambda key: key),))


def listen_to_deletions() -> None:
    """Listen to deletions and links in the models that tell of runners' rows, and in no others."""
    # If a model has a receiver, Django loads the rows that a queryset deletes.
    global _heard
    before, _heard = _heard, models_with_deletions()
    for model in before ^ _heard:
        is_link = bool(model._meta.auto_created)
        signal = m2m_changed if is_link else post_delete
        listen = signal.connect if model in _heard else signal.disconnect
        note = note_linked if is_link else note_deleted
        listen(note, sender=model, dispatch_uid="autorun.on_save")


#: The models whose deletions or links are listened to.
_heard: set[type[Model]] = set()


def uncommitted(using: str) -> dict[str, set[Any]]:
    """Primary keys of rows saved in the transaction that is open, by the label of their model."""
    found: dict[str, set[Any]] = {}
    for hook in connections[using].run_on_commit:
        saved = getattr(hook[1], "__self__", None)
        if type(saved) is _Saved:
            for label, pks in saved.pks.items():
                found.setdefault(label, set()).update(pks)
    return found


#: The watches of each model that was saved.
_watches: dict[type[Model], tuple[Watch, ...]] = {}


def _forget_watches() -> None:
    # Another dict: a thread that is looking up the former runners writes into the old one.
    global _watches  # noqa: PLW0603
    _watches = {}


registry.on_change(_forget_watches)


@dataclass(slots=True, eq=False)
class _Saved:
    """Rows saved under one savepoint, or under none."""

    pks: dict[str, set[Any]] = field(default_factory=dict)

    def add(self, instance: Model, watches: tuple[Watch, ...]) -> None:
        pks = self.pks
        for label, pk_of in watches:
            pk = pk_of(instance)
            if pk is None:  # a row that refers to none
                continue
            if label in pks:
                pks[label].add(pk)
            else:
                pks[label] = {pk}

    def flush(self) -> None:
        """Hand over the rows, unless an earlier call has."""
        pks, self.pks = self.pks, {}
        if not pks:
            return
        try:
            delivery.submit(pks)
        except Exception:
            logger.exception(
                "%s: %d saved rows were not handed over. The next sweep finds them.",
                ", ".join(pks),
                sum(map(len, pks.values())),
            )


def _joined(instance: Model, watches: tuple[Watch, ...], connection: BaseDatabaseWrapper) -> bool:
    """Add the row to the set of the save before it, if that was under the same savepoint."""
    hooks = connection.run_on_commit
    if not hooks:
        return False
    last = hooks[-1]
    saved = getattr(last[1], "__self__", None)
    if type(saved) is not _Saved or last[0] != set(connection.savepoint_ids):
        return False
    saved.add(instance, watches)
    # Registered again: `captureOnCommitCallbacks` sees only hooks registered inside it.
    if len(hooks) < MOST_HOOKS:
        hooks.append(last)
    return True


def _look_up(saved: type[Model]) -> tuple[Watch, ...]:
    known = _watches
    watches = of_saved(saved)
    if saved._meta.apps is apps:
        known[saved] = watches
    return watches


def _runners_about(model: type[Model]) -> str:
    watched = [watch.label for watch in _watches.get(model, ())]
    labels = {each.label for label in watched for each in delivery.subscriptions().get(label, [])}
    return ", ".join(sorted(labels)) or "autorun"


class Watch(NamedTuple):
    """A label under which rows are delivered; `pk_of` the saved instance is the key of one.

    It is None if the instance refers to no row.
    """

    label: str
    pk_of: Callable[[Any], Any]


def of_saved(model: type[Model]) -> tuple[Watch, ...]:
    """Return the watches that a save of a row of `model` concerns."""
    if model._meta.apps is not apps:  # a data migration's model, of which there are many
        return ()
    fields = {
        label: shared_key(runners[0].get_model(), model)
        for label, runners in delivery.subscriptions().items()
    }
    own = (Watch(label, attrgetter(field.attname)) for label, field in fields.items() if field)
    return (*own, *_of_related(model, is_deleted=False))


def of_deleted(model: type[Model], using: str) -> tuple[Watch, ...]:
    """Return the watches that the deletion of a row of `model` in that database concerns."""
    own = (
        Watch(delivery.label_of_deleted(label, using), attrgetter(PK))
        for label, runners in delivery.subscriptions().items()
        if runners[0].get_model()._meta.concrete_model is model._meta.concrete_model
    )
    return (*own, *_of_related(model, is_deleted=True))


def of_links(through: type[Model]) -> Iterator[tuple[str, str]]:
    """Labels with the attribute of a row of a many-to-many table that names the row concerned."""
    for label, known in delivery.dependents().items():
        for source in known.sources:
            if source.model is through and through._meta.auto_created:
                yield label, source.attname


def models_with_deletions() -> set[type[Model]]:
    """The models whose deletions are of interest: those processed, and those that refer to them."""
    found = {runners[0].get_model() for runners in delivery.subscriptions().values()}
    for known in delivery.dependents().values():
        found.update(each.model for each in known.sources if each.attname != PK)
    return {each for model in found for each in _with_proxies(concrete(model))}


def _with_proxies(model: type[Model]) -> Iterator[type[Model]]:
    yield model
    for child in model.__subclasses__():
        if child._meta.proxy:
            yield from _with_proxies(child)


def _of_related(model: type[Model], *, is_deleted: bool) -> Iterator[Watch]:
    for label, known in delivery.dependents().items():
        for source in known.sources:
            # A deleted row is no longer referred to.
            if not (is_deleted and source.attname == PK):
                attname = _attribute(source, model)
                if attname:
                    yield Watch(label, _loaded(attname))


def _attribute(source: Related, model: type[Model]) -> str | None:
    if source.attname == PK:
        field = shared_key(source.model, model)
        return field.attname if field else None
    is_child = issubclass(concrete(model), concrete(source.model))
    return source.attname if is_child else None


def _loaded(attname: str) -> Callable[[Any], Any]:
    """A getter of an attribute, None if it is deferred: a save must not query."""
    return lambda instance: vars(instance).get(attname)


def shared_key(model: type[Model], saved: type[Model]) -> Field[Any, Any] | None:
    """The field of `saved` that holds the primary key of its row of `model`; None without one."""
    # A child of multi-table inheritance has a row of each of its parents; a parent may have one of
    # each of its children, by the same primary key.
    concrete_model, saved = concrete(model), concrete(saved)
    if len(concrete_model._meta.pk_fields) != 1:
        return None  # composite: a system check says so
    field: Any = concrete_model._meta.pk
    if issubclass(saved, concrete_model):
        return field  # type: ignore[no-any-return]
    if not issubclass(concrete_model, saved):
        return None
    while field.model is not saved:
        if field.remote_field is None or not field.remote_field.parent_link:
            return None
        field = field.target_field
    return field  # type: ignore[no-any-return]
