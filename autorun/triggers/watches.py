"""Watches: which saved and deleted rows, of which models, tell of rows that runners process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from django.apps import apps
from django.db.models import Field, Model

from autorun.declare.sets import PK, Related
from autorun.state.keys import concrete
from autorun.triggers import delivery


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
