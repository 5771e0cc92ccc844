"""The rows that runs are about: their names, and where the admin shows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import Model
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from autorun import registry
from autorun.conf import settings
from autorun.exceptions import AutorunError
from autorun.keys import key_kind
from autorun.models import Node, Run

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite


@dataclass(frozen=True)
class Name:
    """What to call a row, and its page in the admin where the user may see it ('' if not)."""

    text: str
    url: str = ""
    is_gone: bool = False

    def __str__(self) -> str:
        return self.text


def model_of(node: Node) -> type[Model] | None:
    """The model whose rows the node's runs are about; None where it is gone from the code."""
    content_types = ContentType.objects.db_manager(settings.DATABASE)
    return content_types.get_for_id(node.content_type_id).model_class()


def instance_of(run: Run, database: str | None = None) -> Any:
    """The row a run is about, or None."""
    model = model_of(run.node)
    if model is None:
        return None
    return _instances(model, [run], database).get(run.pk)


def instances(model: type[Model], keys: Iterable[str], database: str) -> list[Any]:
    """The rows that have those keys, which may be any text."""
    primary_keys = []
    for key in keys:
        try:
            primary_keys.append(key_kind(model).to_pk(key))
        except (ValidationError, ValueError, TypeError):
            continue
    return list(model._base_manager.using(database).filter(pk__in=primary_keys))


def name_row(request: HttpRequest, site: AdminSite, run: Run, instance: Any) -> Name:
    """What to call the row of one run; `instance` is the row, None where it is gone."""
    model = model_of(run.node)
    if model is None or instance is None:
        return Name(key_text(run), is_gone=True)
    if not may_view(request, site, model):
        return Name(f"{model._meta.verbose_name} {key_text(run)}")
    return name_of(site, instance)


def name_rows(request: HttpRequest, site: AdminSite, runs: Sequence[Run]) -> dict[int, Name]:
    """What to call the row of each run, by run id; one query a model.

    A row's own name is for those who may see the model in the admin; the others get its key.
    """
    by_model: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        by_model[run.node.content_type_id].append(run)
    names: dict[int, Name] = {}
    for of_model in by_model.values():
        model = model_of(of_model[0].node)
        if model is None:
            names.update((run.pk, Name(key_text(run), is_gone=True)) for run in of_model)
            continue
        shows_names = may_view(request, site, model)
        found = _instances(model, of_model, None) if shows_names else {}
        verbose = str(model._meta.verbose_name)
        for run in of_model:
            if not shows_names:
                names[run.pk] = Name(f"{verbose} {key_text(run)}")
            elif run.pk in found:
                names[run.pk] = name_of(site, found[run.pk])
            else:
                names[run.pk] = Name(f"{verbose} {key_text(run)}", is_gone=True)
    return names


def name_of(site: AdminSite, instance: Any) -> Name:
    """What to call a row that the user may see."""
    meta = instance._meta
    try:
        text = str(instance) or f"{meta.verbose_name} {instance.pk}"
    except Exception:  # noqa: BLE001  a project's own __str__
        text = f"{meta.verbose_name} {instance.pk}"
    try:
        url = reverse(
            f"admin:{meta.app_label}_{meta.model_name}_change",
            args=[instance.pk],
            current_app=site.name,
        )
    except NoReverseMatch:
        url = ""
    return Name(text[:200], url)


def key_text(run: Run) -> str:
    """The row's key as people know it."""
    return run.object_key or str(run.object_id)


def may_view(request: HttpRequest, site: AdminSite, model: type[Model]) -> bool:
    model_admin = site._registry.get(model)
    if model_admin is not None:
        return bool(model_admin.has_view_permission(request))
    meta = model._meta
    return bool(request.user.has_perm(f"{meta.app_label}.view_{meta.model_name}"))


def _instances(model: type[Model], runs: Iterable[Run], database: str | None) -> dict[int, Any]:
    """The rows there are, by run id."""
    kind = key_kind(model)
    keys: dict[int, Any] = {}
    for run in runs:
        try:
            keys[run.pk] = kind.to_pk(kind.of(run))
        except (ValidationError, ValueError, TypeError):
            continue
    using = database or _database_of(model)
    found = model._base_manager.using(using).filter(pk__in=set(keys.values()))
    by_pk = {instance.pk: instance for instance in found}
    return {run_id: by_pk[pk] for run_id, pk in keys.items() if pk in by_pk}


def _database_of(model: type[Model]) -> str:
    for runner in registry.runners():
        with suppress(AutorunError):  # a system check says what is wrong with it
            if runner.get_model()._meta.concrete_model is model:
                return runner.get_database()
    return router.db_for_read(model)
