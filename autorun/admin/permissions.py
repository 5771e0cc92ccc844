"""The permissions of autorun's pages, one for each kind of action, all of the model Run."""

from enum import StrEnum
from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest


class Permission(StrEnum):
    """The permissions that users and groups get in Django's admin."""

    VIEW = "autorun.view_run"
    START = "autorun.start_run"
    BACKFILL = "autorun.backfill_run"
    RETRY = "autorun.retry_run"
    CANCEL = "autorun.cancel_run"
    PAUSE = "autorun.pause_run"
    SEE_PAYLOAD = "autorun.view_payload"


def is_admitted(request: HttpRequest, site: AdminSite) -> bool:
    """Whether the site admits the user. Django's own needs `is_staff`, if users have that."""
    is_djangos = site.__class__.has_permission is AdminSite.has_permission
    user: Any = request.user
    if is_djangos and not hasattr(user, "is_staff"):
        return bool(user.is_active)
    return bool(site.has_permission(request))


def sees_payload(request: HttpRequest) -> bool:
    """Whether the user may see inputs, outputs, and all that people and a project's code wrote.

    That may contain data of a row: messages of errors, reasons, what a body says of its progress.
    """
    return bool(request.user.has_perm(Permission.SEE_PAYLOAD))
