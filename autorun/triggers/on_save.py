"""Looks at rows as soon as they are saved.

One receiver hears every save, and does next to nothing for a model that no runner is about. The
primary keys of the others travel with the transaction: Django drops them with the savepoint or the
transaction they were saved in, and hands them to the publisher when that commits.

What sends no `post_save` is found by the next sweep: `bulk_create`, `update()` of a queryset, SQL.
So is what this receiver leaves out on purpose: fixtures (`raw`), saves of a data migration, and
rows of a parent model whose child is tied to it by another column than its primary key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Field, Model
from django.db.models.signals import post_save
from django.db.transaction import TransactionManagementError

from autorun.declare import registry
from autorun.exceptions import AutorunError
from autorun.triggers import delivery

logger = logging.getLogger(__name__)

#: How often a transaction registers one set of saved rows. Django takes its hooks from the front of
#: a list, in time that grows as their square: 200,000 of them took three seconds to commit.
MOST_HOOKS = 1_000


class Watch(NamedTuple):
    """What a save of some model means to the runners of a DATA_MODEL.

    `pk_of` gives the primary key of the DATA_MODEL's row from the saved instance.
    """

    model_label: str
    pk_of: Callable[[Any], Any]
    runners: tuple[str, ...]


def connect() -> None:
    """Listen to every save from now on."""
    post_save.connect(note_saved, weak=False, dispatch_uid="autorun.on_save")


def note_saved(
    sender: type[Model],
    instance: Model,
    raw: bool = False,
    using: str = DEFAULT_DB_ALIAS,
    **kwargs: Any,
) -> None:
    """Remember the saved row until its transaction commits. Never raises an Exception."""
    watches = _watches.get(sender)
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


def uncommitted(using: str) -> dict[str, set[Any]]:
    """Primary keys of rows saved in the transaction that is open, by the label of their model."""
    found: dict[str, set[Any]] = {}
    for hook in connections[using].run_on_commit:
        saved = getattr(hook[1], "__self__", None)
        if type(saved) is _Saved:
            for label, pks in saved.pks.items():
                found.setdefault(label, set()).update(pks)
    return found


#: What a save of each model is to lead to, as far as it has been asked for.
_watches: dict[type[Model], tuple[Watch, ...]] = {}


def _forget_watches() -> None:
    # Another dict: whoever is looking up the runners of before writes into the old one.
    global _watches  # noqa: PLW0603
    _watches = {}


registry.on_change(_forget_watches)


@dataclass(slots=True, eq=False)
class _Saved:
    """Rows saved under one savepoint, or under none."""

    pks: dict[str, set[Any]] = field(default_factory=dict)

    def add(self, instance: Model, watches: tuple[Watch, ...]) -> None:
        pks = self.pks
        for label, pk_of, _ in watches:
            if label in pks:
                pks[label].add(pk_of(instance))
            else:
                pks[label] = {pk_of(instance)}

    def flush(self) -> None:
        """Hand over what has gathered; nothing when an earlier call has done so already."""
        pks, self.pks = self.pks, {}
        if not pks:
            return
        try:
            delivery.submit(pks)
        except Exception:
            count = sum(map(len, pks.values()))
            logger.exception(
                "%s: %d saved rows were not handed over. The next sweep finds them.",
                ", ".join(pks),
                count,
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
    # Registered again all the same: `captureOnCommitCallbacks` sees only what was registered
    # inside it.
    if len(hooks) < MOST_HOOKS:
        hooks.append(last)
    return True


def _look_up(model: type[Model]) -> tuple[Watch, ...]:
    if model._meta.apps is not apps:  # a data migration's model, of which there are many
        return ()
    known = _watches
    known[model] = watches = _find_watches(model)
    return watches


def _find_watches(saved: type[Model]) -> tuple[Watch, ...]:
    found: dict[str, Watch] = {}
    for runner in registry.runners():
        if not runner.ON_SAVE:
            continue
        try:
            model = runner.get_model()
        except AutorunError:  # a system check says what is wrong with it
            continue
        field = _shared_key(model, saved)
        if field is not None:
            label = model._meta.label
            known = found[label].runners if label in found else ()
            found[label] = Watch(label, attrgetter(field.attname), (*known, runner.label))
    return tuple(found.values())


def _shared_key(model: type[Model], saved: type[Model]) -> Field[Any, Any] | None:
    """The field of `saved` that holds the primary key of its row of `model`; None without one.

    Proxies are one with their concrete model. A child of multi-table inheritance has a row of each
    of its parents; a parent may have one of each of its children, by the same primary key.
    """
    concrete, saved = _concrete(model), _concrete(saved)
    if len(concrete._meta.pk_fields) != 1:
        return None  # composite: a system check says so
    field: Any = concrete._meta.pk
    if issubclass(saved, concrete):
        return field  # type: ignore[no-any-return]
    if not issubclass(concrete, saved):
        return None
    while field.model is not saved:
        if field.remote_field is None or not field.remote_field.parent_link:
            return None
        field = field.target_field
    return field  # type: ignore[no-any-return]


def _concrete(model: type[Model]) -> type[Model]:
    return model._meta.concrete_model or model


def _runners_about(model: type[Model]) -> str:
    labels = {label for watch in _watches.get(model, ()) for label in watch.runners}
    return ", ".join(sorted(labels)) or "autorun"
