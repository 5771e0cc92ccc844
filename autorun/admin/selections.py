"""Rows that somebody chose on a model's own admin page, kept on the server until they are used.

What is kept is the ticked keys, or the filter of the page; never the keys of all it matches.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.http import HttpRequest, QueryDict

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite
    from django.db.models import Model, QuerySet

SESSION_KEY = "autorun_selections"
MOST_KEPT = 20


@dataclass(frozen=True)
class Selection:
    """Rows of one model: those with `keys`, or all that the admin page shows for `query`."""

    model: str
    query: str = ""
    keys: Sequence[str] | None = None

    def get_model(self) -> type[Model]:
        return apps.get_model(self.model)

    @property
    def is_everything(self) -> bool:
        return self.keys is None

    def queryset(self, request: HttpRequest, site: AdminSite) -> QuerySet[Any]:
        """The rows, as the model's own admin gives them to this user."""
        model_admin = site._registry[self.get_model()]
        if self.keys is not None:
            return model_admin.get_queryset(request).filter(pk__in=self.keys)
        asked = copy.copy(request)
        asked.GET = QueryDict(self.query)
        asked.method = "GET"
        return model_admin.get_changelist_instance(asked).get_queryset(asked)


def keep(request: HttpRequest, selection: Selection) -> str:
    """Keep the selection in the user's session; the token that finds it again."""
    token = secrets.token_urlsafe(12)
    kept = dict(request.session.get(SESSION_KEY, {}))
    for oldest in list(kept)[: max(0, len(kept) - MOST_KEPT + 1)]:
        del kept[oldest]
    kept[token] = asdict(selection)
    request.session[SESSION_KEY] = kept
    return token


def find(request: HttpRequest, token: str) -> Selection | None:
    """The selection of that token; None where the session has none."""
    written = request.session.get(SESSION_KEY, {}).get(token)
    return None if written is None else Selection(**written)
