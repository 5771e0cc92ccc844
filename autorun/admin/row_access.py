"""The rows of runs, as the admin shows them to one user."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.admin.sites import all_sites
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import Manager, Model, prefetch_related_objects
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from autorun.admin.pages import sees_payload
from autorun.control.interventions import Matching
from autorun.declare import hooks, page_time, registry
from autorun.declare.base import Runner
from autorun.declare.page_time import spent
from autorun.exceptions import AutorunError, RunTimeout, bare_message
from autorun.models import Node, Run
from autorun.observe.explanation import Quotes
from autorun.observe.listing import RunFilter
from autorun.observe.run_states import Cursor
from autorun.planning import batches
from autorun.state.keys import concrete, key_kind
from autorun.state.words import encodable, harmless, in_one_line

#: A ModelAdmin that overrides one of these methods may hide single rows.
_HIDING = ("get_queryset", "has_view_permission")
#: The most runs whose rows one request checks with a ModelAdmin that may hide some.
MOST_NARROWED = 10_000
#: Runs among them that are checked together.
EXAMINED_AT_ONCE = 200
#: The part of the time of an action, one of so many, that is left to act on those runs.
KEPT_PART = 5
#: Where a user's session keeps the place in each filter from which to continue, and of how many.
PLACES, MOST_PLACES = "autorun_places", 20


@dataclass(frozen=True)
class Name:
    """The name of a row, and the address of its admin page; '' if the user may not see that."""

    text: str
    url: str = ""
    is_gone: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Seen:
    """The part of a run's row that a user may see: its name, and its payload if `is_open`.

    The payload is the input, the outputs and the messages. `instance` is the row if the admin shows
    it to the user; it is hidden if the admin shows them only other rows of its model.
    """

    name: Name
    is_open: bool
    is_hidden: bool = False
    instance: Any = None


def instance_of(run: Run, database: str | None = None) -> Any:
    """The row of a run, without regard to permissions, or None."""
    model = run.node.get_model()
    if model is None:
        return None
    keys = _primary_keys(model, [run])
    rows = model._base_manager.using(database or _database_of(model))
    return rows.filter(pk__in=keys.values()).first()


def seen_rows(
    request: HttpRequest,
    site: AdminSite,
    runs: Iterable[Run],
    database: str | None = None,
    *,
    is_named: bool = True,
) -> dict[int, Seen]:
    """The part of each run's row that the user may see, by run id; a query or two a model.

    Rows that the admin does not show are named by their key, and have no payload. Unless
    `is_named`, those that it shows get no name, which may be slow.
    """
    by_model: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        by_model[run.node.content_type_id].append(run)
    seen: dict[int, Seen] = {}
    for of_model in by_model.values():
        model = of_model[0].node.get_model()
        if model is None:
            is_open = _could_view(request, of_model[0].node)
            for run in of_model:
                seen[run.pk] = Seen(Name(run.key_text, is_gone=True), is_open=is_open)
        else:
            found = _seen_of(request, site, model, of_model, database, is_named=is_named)
            seen.update(found)
    return seen


def sees_texts(request: HttpRequest, site: AdminSite, about: Runner | Node | None = None) -> bool:
    """Whether the user may see texts that may quote any row of a runner, of a node, or of all."""
    # They are messages of hooks, and reasons why runs are held up and batches or runners paused.
    if isinstance(about, Node):
        models = [about.get_model()]
    else:
        models = []
        for runner in registry.runners() if about is None else [about]:
            with suppress(AutorunError):  # a system check says what is wrong with it
                models.append(runner.get_model())
    return sees_payload(request) and all(_sees_gone(request, site, each) for each in models)


def quotes_for(
    request: HttpRequest, site: AdminSite, about: Runner | Node, *, is_open: bool = True
) -> Quotes:
    """Which quotes the user may read in the explanation of a row, whose payload `is_open`."""
    return Quotes(is_open and sees_payload(request), sees_texts(request, site, about))


def message_for(
    request: HttpRequest, site: AdminSite, error: Exception, about: Runner | None = None
) -> str:
    """The message of an error; autorun's own part of it for users who may not see such texts."""
    return harmless(str(error) if sees_texts(request, site, about) else bare_message(error))


def open_runs(request: HttpRequest, site: AdminSite, run_ids: Collection[int]) -> set[int]:
    """Those of the runs whose payload the user may see; a query or two a model."""
    if not sees_payload(request):
        return set()
    runs = Run.objects.filter(pk__in=run_ids).select_related("node").defer("outputs")
    seen = seen_rows(request, site, runs, is_named=False)
    return {pk for pk, each in seen.items() if each.is_open}


def visible(
    request: HttpRequest, site: AdminSite, model: type[Model], keys: Collection[Any], database: str
) -> dict[Any, Any]:
    """The rows that the admin shows the user, by primary key; one query.

    The model's own admin decides by `get_queryset`, and by `has_view_permission` of each row.
    Without one, the permission to view the model is enough for the rows of its default manager.
    """
    if not keys or not may_view(request, site, model):
        return {}
    model_admin = _admin_of(site, model)
    if model_admin is None:
        with spent(f"The default manager of {model._meta.label}"):
            rows = model._default_manager.using(database).filter(pk__in=set(keys))
            return {row.pk: row for row in rows}
    with spent(f"{type(model_admin).__name__}.get_queryset(), its query or has_view_permission()"):
        rows = model_admin.get_queryset(request).using(database).order_by()
        shown = rows.filter(pk__in=set(keys))
        return {row.pk: row for row in shown if model_admin.has_view_permission(request, row)}


@dataclass
class Reach:
    """The runs that a user may act on: those of rows that they may see.

    `left_out` is the number of runs that it has kept from them so far. `not_reached` is the number
    of runs for which there was no time, and `slow` the error that says what took it. `is_cut` says
    that the request ended before it had looked at all runs, after `batches.CANCEL_WITHIN` seconds,
    for example; the session knows where the next one continues.
    """

    request: HttpRequest
    site: AdminSite
    left_out: int = 0
    not_reached: int = 0
    slow: RunTimeout | None = None
    examined: int = 0
    asked: int = 0  # runs among those examined whose rows the admin was asked about
    is_late: bool = False

    @property
    def is_cut(self) -> bool:
        return self.slow is not None or self.is_late or self.asked >= MOST_NARROWED

    def among(self, runs: Sequence[Run]) -> list[Run]:
        """Those of the runs that the user may act on; a query or two a model."""
        prefetch_related_objects(runs, "node")
        nodes = {run.node_id: run.node for run in runs}
        whole = {pk for pk, node in nodes.items() if self._is_whole(node.get_model())}
        found: list[Run] = []
        for begin in range(0, len(runs), EXAMINED_AT_ONCE):
            some = runs[begin : begin + EXAMINED_AT_ONCE]
            others = [run for run in some if run.node_id not in whole]
            try:
                with page_time.leaving(page_time.SECONDS / KEPT_PART):
                    seen = seen_rows(self.request, self.site, others, is_named=False)
            except RunTimeout as error:
                self.slow, self.not_reached = error, len(runs) - begin
                break
            allowed = [run for run in some if run.node_id in whole or seen[run.pk].is_open]
            self.examined, self.asked = self.examined + len(some), self.asked + len(others)
            self.left_out += len(some) - len(allowed)
            found += allowed
        return found

    def matching(self, action: str, *chosen: RunFilter) -> Iterator[list[Run]]:
        """The runs that match any of the filters, as `among`; those of a few thousand at a time.

        It ends when it has asked the admin about MOST_NARROWED rows, or its time is spent. The next
        request for the same continues from there, so that hidden rows do not keep it from the
        others for ever.
        """
        places = dict(self.request.session.get(PLACES, {}))
        until = time.monotonic() + batches.CANCEL_WITHIN
        for each in chosen:
            name = f"{action}?{urlencode(each.written())}"
            place = Cursor.read(places.pop(name, ""))
            for runs, end in each.parts(place):
                yield self.among(runs)
                self.is_late = time.monotonic() >= until
                reached = len(runs) - self.not_reached
                if not self.not_reached:
                    place = end
                elif reached and end == Cursor.of(runs[-1]):
                    place = Cursor.of(runs[reached - 1])
                if self.is_cut:
                    places.update({} if place is None else {name: str(place)})
                    break
            if self.is_cut:
                break
        self.request.session[PLACES] = dict(list(places.items())[-MOST_PLACES:])

    def start_over(self) -> None:
        self.left_out, self.not_reached, self.slow = 0, 0, None
        self.examined, self.asked, self.is_late = 0, 0, False

    def narrowing(self, action: str) -> Callable[[Runner, RunFilter], Matching | None]:
        """`matching` for the runs of one runner; None if the user may see all rows of its model."""

        def narrowed(runner: Runner, chosen: RunFilter) -> Matching | None:
            return None if self._is_whole(runner.get_model()) else self.matching(action, chosen)

        return narrowed

    def _is_whole(self, model: type[Model] | None) -> bool:
        return model is not None and sees_all(self.request, self.site, model)


def find_row(request: HttpRequest, site: AdminSite, runner: Runner, key: str) -> Any:
    """The runner's row of that key, which may be any text; None if the user may not see it."""
    model = runner.get_model()
    database = database_of(runner)
    primary_key = key_kind(model).read(key, using=database)
    if primary_key is None or not visible(request, site, model, [primary_key], database):
        return None
    return model._base_manager.using(database).filter(pk=primary_key).first()


def runners_of(model: type[Model]) -> list[Runner]:
    """The registered runners that process rows of `model` or of a proxy of it."""
    found = []
    for runner in registry.runners():
        with suppress(AutorunError):  # a system check says what is wrong with it
            if runner.get_model()._meta.concrete_model is model._meta.concrete_model:
                found.append(runner)
    return found


def database_of(runner: Runner) -> str:
    """The database of the runner's rows; that of its model if a hook of the runner raises."""
    try:
        return hooks.database_of(runner)
    except AutorunError:  # the pages that list its pending rows report it
        return router.db_for_read(runner.get_model())


def name_of(site: AdminSite, instance: Any) -> Name:
    """The name of a row that the user may see."""
    meta, text, url = instance._meta, "", ""
    with suppress(Exception), spent(what := f"{meta.object_name}.__str__()"):
        text = page_time.limited(what, lambda: in_one_line(encodable(str(instance))))
    with suppress(NoReverseMatch):
        page = f"admin:{meta.app_label}_{meta.model_name}_change"
        url = reverse(page, args=[instance.pk], current_app=site.name)
    return Name((text or f"{meta.verbose_name} {instance.pk}")[:200], url)


def may_view(request: HttpRequest, site: AdminSite, model: type[Model]) -> bool:
    """Whether the user may see at least some rows of the model."""
    model_admin = _admin_of(site, model)
    if model_admin is not None:
        return bool(model_admin.has_view_permission(request))
    meta = model._meta
    return bool(request.user.has_perm(f"{meta.app_label}.view_{meta.model_name}"))


def sees_all(request: HttpRequest, site: AdminSite, model: type[Model]) -> bool:
    """Whether the user may see all rows of the model: neither its admin nor a manager hides any."""
    return may_view(request, site, model) and not _hides_rows(site, model)


def _seen_of(
    request: HttpRequest,
    site: AdminSite,
    model: type[Model],
    runs: Collection[Run],
    database: str | None,
    *,
    is_named: bool,
) -> dict[int, Seen]:
    verbose, database = str(model._meta.verbose_name), database or _database_of(model)
    if not may_view(request, site, model):
        return {run.pk: Seen(Name(f"{verbose} {run.key_text}"), is_open=False) for run in runs}
    keys = _primary_keys(model, runs)
    shown = visible(request, site, model, set(keys.values()), database)
    unseen = set(keys.values()) - shown.keys()
    rows = model._base_manager.using(database).filter(pk__in=unseen)
    hidden = set(rows.values_list("pk", flat=True)) if unseen else set()
    shows_gone = _sees_gone(request, site, model)
    seen = {}
    for run in runs:
        key = keys.get(run.pk)
        if key in shown:
            name = name_of(site, shown[key]) if is_named else Name("")
            seen[run.pk] = Seen(name, is_open=True, instance=shown[key])
            continue
        is_hidden = key in hidden
        name = Name(f"{verbose} {run.key_text}", is_gone=not is_hidden)
        seen[run.pk] = Seen(name, is_open=shows_gone and not is_hidden, is_hidden=is_hidden)
    return seen


def _could_view(request: HttpRequest, node: Node) -> bool:
    """Whether the user has the permission to view a model that is gone from the code."""
    content_type = node.get_content_type()
    permission = f"{content_type.app_label}.view_{content_type.model}"
    return bool(request.user.has_perm(permission))


def _sees_gone(request: HttpRequest, site: AdminSite, model: type[Model] | None) -> bool:
    """Whether the user may see texts about rows that no longer exist."""
    # If the model's admin hides rows, nothing tells whether it would have hidden those as well.
    if bool(getattr(request.user, "is_superuser", False)):
        return True
    return model is not None and sees_all(request, site, model)


def is_narrowed(model: type[Model]) -> bool:
    """Whether the default manager may hide rows, and perhaps by what a middleware keeps."""
    return type(model._default_manager).get_queryset is not Manager.get_queryset


def _hides_rows(site: AdminSite, model: type[Model]) -> bool:
    model_admin = _admin_of(site, model) or ModelAdmin
    methods = ((getattr(model_admin, name), getattr(ModelAdmin, name)) for name in _HIDING)
    return is_narrowed(model) or any(getattr(own, "__func__", own) is not at for own, at in methods)


def _admin_of(site: AdminSite, model: type[Model]) -> Any:
    """The admin of the model, else of the table's own model, else of a proxy; or None."""
    # If this site has none, that of another site counts: it hides the same rows.
    own = concrete(model)
    for each_site in (site, *sorted(all_sites, key=lambda each: each.name)):
        known = each_site._registry
        proxies = (each for each in known if each._meta.concrete_model is own)
        for each in (model, own, *proxies):
            if each in known:
                return known[each]
    return None


def _primary_keys(model: type[Model], runs: Iterable[Run]) -> dict[int, Any]:
    """The primary key of each run's row, by run id; without keys that are not valid (any more)."""
    kind = key_kind(model)
    keys: dict[int, Any] = {}
    for run in runs:
        with suppress(ValidationError, ValueError, TypeError):
            keys[run.pk] = kind.to_pk(kind.of(run))
    return keys


def _database_of(model: type[Model]) -> str:
    for runner in runners_of(model):
        with suppress(AutorunError):  # a system check says what is wrong with it
            return hooks.database_of(runner)
    return router.db_for_read(model)
