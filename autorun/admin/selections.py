"""Rows that a user chose on a model's own admin page, stored on the server until they are used.

The session stores the selected keys, or the filter of the page. When a backfill starts, the keys of
the filtered rows are taken in the user's own request, because a project's hooks may narrow them by
anything that a request carries, such as a tenant. Only if there are too many does the worker look
for them again, and only through an admin that needs no more than the user: see `ChosenRows.source`.
"""

import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from django.apps import apps
from django.contrib.admin import AdminSite
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.sites import all_sites
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, QueryDict

from autorun.admin.pages import Permission, is_admitted
from autorun.admin.row_access import database_of, is_narrowed, may_view, visible
from autorun.declare.base import Runner
from autorun.declare.hooks import base_queryset
from autorun.exceptions import RowsGone
from autorun.planning.scope import GUARDS, SOURCES
from autorun.state.keys import key_kind

KIND = "admin"
#: The method of a ModelAdmin that returns the rows that a user sees for a changelist's query.
OWN_ROWS = "autorun_rows"
#: Methods that may ask anything of the request that they are given.
_ASKING = (
    *("get_queryset", "get_search_results", "get_changelist", "get_changelist_instance"),
    *("get_list_filter", "has_view_permission", "has_view_or_change_permission"),
)
#: Rows whose keys are taken in the user's own request.
MOST_KEYS = 10_000
EXACT = "_autorun_is_exact"
SESSION_KEY = "autorun_selections"
MOST_KEPT = 20


@dataclass(frozen=True)
class ChosenRows:
    """Rows of one model: those with `keys`, or all that the admin page shows for `query`."""

    model: str
    query: str = ""
    keys: Sequence[str] | None = None

    def get_model(self) -> type[Model]:
        return apps.get_model(self.model)

    def queryset(self, request: HttpRequest, site: AdminSite) -> QuerySet[Any]:
        """The rows, as the model's own admin gives them to this user.

        Raises PermissionDenied if the user may not view the model on this site.
        """
        model = self.get_model()
        if model not in site._registry or not may_view(request, site, model):
            raise PermissionDenied
        model_admin = site._registry[model]
        if self.keys is not None:
            return model_admin.get_queryset(request).filter(pk__in=self.keys)
        asked = copy.copy(request)
        asked.GET = QueryDict(self.query)
        asked.method = "GET"
        return _listing(model_admin, asked).get_queryset(asked)

    def source(
        self, request: HttpRequest, site: AdminSite, runner: Runner, needs: Permission
    ) -> dict[str, Any]:
        """The rows as the source of a scope, from which any process finds them.

        Raises RowsGone if there are too many to keep their keys, and only this request could tell
        which they are.
        """
        source = {**asked_by(request, site, needs), "model": self.model}
        rows = self.queryset(request, site)
        keys = list(rows.order_by().values_list("pk", flat=True)[: MOST_KEYS + 1])
        model_admin = site._registry[self.get_model()]
        if len(keys) <= MOST_KEYS:
            if not _is_known(model_admin.has_view_permission):
                keys = list(visible(request, site, self.get_model(), keys, database_of(runner)))
            return {**source, "words": self._words(len(keys)), "keys": list(map(str, keys))}
        if not _needs_only_the_user(model_admin):
            raise RowsGone(
                f"{type(model_admin).__name__} decides by the request which of more than "
                f"{MOST_KEYS:,} rows it shows, and a worker has none. Narrow the list, or define "
                f"{OWN_ROWS}(self, user, query) there."
            )
        return {**source, "words": self._words(), "query": self.query}

    def _words(self, rows: int | None = None) -> str:
        if self.keys is not None:
            return "of one key" if rows == 1 else f"among {rows:,} chosen rows"
        # Not the filter itself: a search may contain the data of a row.
        names = self.get_model()._meta.verbose_name_plural
        return f"of {names} that the admin shows for {'a' if self.query else 'no'} filter"


def is_exact(request: HttpRequest) -> bool:
    """Whether the rows of a changelist will be processed, so that finding all may take long."""
    return getattr(request, EXACT, False)


def rows_shown(runner: Runner, source: Mapping[str, Any]) -> QuerySet[Any]:
    """The rows of a `source`, as far as the user may still have them processed.

    Raises RowsGone if the admin no longer shows them, or the user has lost a permission.
    """
    site, request = still_allowed(source)
    user: Any = request.user
    chosen = ChosenRows(source["model"], query=source.get("query", ""))
    try:
        model = chosen.get_model()
        if model not in site._registry or not may_view(request, site, model):
            raise RowsGone(f"{user} can no longer view {source['model']} in the admin.")
        if "keys" in source:
            kind = key_kind(model)
            keys = [kind.to_pk(key) for key in source["keys"]]
            return base_queryset(runner).filter(pk__in=keys)
        model_admin = site._registry[model]
        if not _needs_only_the_user(model_admin):
            raise RowsGone(f"{type(model_admin).__name__} asks the request, and a worker has none.")
        if own_rows := getattr(model_admin, OWN_ROWS, None):
            rows: QuerySet[Any] = own_rows(user, QueryDict(chosen.query))
            return rows
        return chosen.queryset(request, site)
    except RowsGone:
        raise
    except (LookupError, IncorrectLookupParameters, DisallowedModelAdminLookup) as error:
        raise RowsGone(
            f"The admin no longer knows the filter {chosen.query!r} of {chosen.model}: {error}"
        ) from error


def asked_by(request: HttpRequest, site: AdminSite, needs: Permission) -> dict[str, Any]:
    """Who asks on a page, and by which permission, for `still_allowed` in another process."""
    user = str(request.user.pk)
    return {"kind": KIND, "site": site.name, "user": user, "needs": needs.value}


def still_allowed(asked: Mapping[str, Any]) -> tuple[AdminSite, HttpRequest]:
    """The site, and a request of the user; RowsGone if the user may no longer ask for it."""
    site = next((each for each in all_sites if each.name == asked["site"]), None)
    user = get_user_model()._default_manager.filter(pk=asked["user"]).first()
    if site is None or user is None:
        raise RowsGone("The admin site, or the user who asked for it, is gone.")
    request = HttpRequest()
    request.method = "GET"
    request.user = user
    needs = Permission(asked.get("needs", Permission.BACKFILL))
    if not (is_admitted(request, site) and user.has_perms((Permission.VIEW, needs))):
        raise RowsGone(f"{user} no longer has the permission {needs}.")
    return site, request


SOURCES[KIND] = rows_shown
GUARDS[KIND] = still_allowed


def _needs_only_the_user(model_admin: Any) -> bool:
    """Whether a worker finds the rows that the changelist shows a user."""
    if hasattr(model_admin, OWN_ROWS):
        return True
    filters = (each[1] if isinstance(each, tuple) else each for each in model_admin.list_filter)
    given = [each for each in filters if not isinstance(each, str)]
    hooks = [getattr(model_admin, name) for name in _ASKING]
    return all(map(_is_known, (*given, *hooks))) and not is_narrowed(model_admin.model)


def _is_known(code: Any) -> bool:
    """Whether a method or a filter asks nothing but the user, as those of Django and autorun do."""
    return bool(code.__module__.startswith(("django.contrib.admin.", "autorun.admin.")))


def _listing(model_admin: Any, request: HttpRequest) -> ChangeList:
    """The model's changelist for the request, without loading a page of results."""
    quiet = copy.copy(model_admin)
    base = model_admin.get_changelist(request)
    # `ChangeList.get_results` counts and fetches.
    listing = type("Listing", (base,), {"get_results": lambda _changelist, _request: None})
    quiet.get_changelist = lambda _request, **_kwargs: listing
    setattr(request, EXACT, True)
    found: ChangeList = quiet.get_changelist_instance(request)
    return found


def keep(request: HttpRequest, chosen: ChosenRows) -> str:
    """Store the chosen rows in the user's session. Return the token that finds them again."""
    token = secrets.token_urlsafe(12)
    kept = dict(request.session.get(SESSION_KEY, {}))
    for oldest in list(kept)[: max(0, len(kept) - MOST_KEPT + 1)]:
        del kept[oldest]
    kept[token] = asdict(chosen)
    request.session[SESSION_KEY] = kept
    return token


def find(request: HttpRequest, token: str) -> ChosenRows | None:
    """The rows that were chosen with that token; None if the session has none."""
    written = request.session.get(SESSION_KEY, {}).get(token)
    return None if written is None else ChosenRows(**written)
