"""Rows that a user chose on a model's own admin page, stored on the server until they are used.

The ticked keys are stored, or the filter of the page, but never the keys of all rows that match it.
A batch of filtered rows stores the filter, too: the worker that plans it asks the model's own admin
on behalf of the same user.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import unquote_plus

from django.apps import apps
from django.contrib.admin import AdminSite
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.sites import all_sites
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.db.models import Model, QuerySet
from django.http import HttpRequest, QueryDict

from autorun.admin.row_access import may_view
from autorun.declare.runner import Runner
from autorun.exceptions import RowsGone
from autorun.planning.scope import SOURCES

KIND = "admin"
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
        """The rows, as the model's own admin gives them to this user."""
        model_admin = site._registry[self.get_model()]
        if self.keys is not None:
            return model_admin.get_queryset(request).filter(pk__in=self.keys)
        asked = copy.copy(request)
        asked.GET = QueryDict(self.query)
        asked.method = "GET"
        return _listing(model_admin, asked).get_queryset(asked)

    def source(self, request: HttpRequest, site: AdminSite) -> dict[str, Any]:
        """The filtered rows as the source of a scope, from which any process finds them."""
        names = self.get_model()._meta.verbose_name_plural
        shown = unquote_plus(self.query) or "no filter"
        return {
            "kind": KIND,
            "words": f"of {names} that the admin shows for {shown}",
            "site": site.name,
            "user": str(request.user.pk),
            "model": self.model,
            "query": self.query,
        }


def is_exact(request: HttpRequest) -> bool:
    """Whether the rows of a changelist will be processed, so that finding all may take long."""
    return getattr(request, EXACT, False)


def rows_shown(_runner: Runner, source: Mapping[str, Any]) -> QuerySet[Any]:
    """The rows that the model's admin now shows the user for the filter.

    Raises RowsGone if it no longer shows them.
    """
    site = next((each for each in all_sites if each.name == source["site"]), None)
    user = get_user_model()._default_manager.filter(pk=source["user"]).first()
    if site is None or user is None or not getattr(user, "is_active", True):
        raise RowsGone("The admin site, or the user whose filter it was, is gone.")
    request = HttpRequest()
    request.method = "GET"
    request.user = user
    chosen = ChosenRows(source["model"], query=source["query"])
    try:
        model = chosen.get_model()
        if model not in site._registry or not may_view(request, site, model):
            raise RowsGone(f"{user} can no longer view {source['model']} in the admin.")
        return chosen.queryset(request, site)
    except (LookupError, IncorrectLookupParameters, DisallowedModelAdminLookup) as error:
        raise RowsGone(
            f"The admin no longer knows the filter {source['query']!r}: {error}"
        ) from error


SOURCES[KIND] = rows_shown


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
    """Store the chosen rows in the user's session; returns the token that finds them again."""
    token = secrets.token_urlsafe(12)
    kept = dict(request.session.get(SESSION_KEY, {}))
    for oldest in list(kept)[: max(0, len(kept) - MOST_KEPT + 1)]:
        del kept[oldest]
    kept[token] = asdict(chosen)
    request.session[SESSION_KEY] = kept
    return token


def find(request: HttpRequest, token: str) -> ChosenRows | None:
    """The chosen rows of that token; None if the session has none."""
    written = request.session.get(SESSION_KEY, {}).get(token)
    return None if written is None else ChosenRows(**written)
