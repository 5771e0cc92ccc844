"""The permissions of autorun's pages, one for each kind of action, all of the model Run."""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class Permission(StrEnum):
    """The permissions that users and groups get in Django's admin."""

    VIEW = "autorun.view_run"
    START = "autorun.start_run"
    BACKFILL = "autorun.backfill_run"
    RETRY = "autorun.retry_run"
    CANCEL = "autorun.cancel_run"
    PAUSE = "autorun.pause_run"
    SEE_PAYLOAD = "autorun.view_payload"


class Allowed:
    """The permissions of a user, for templates: `{% if can.retry %}`."""

    def __init__(self, user: Any) -> None:
        self._user = user

    def __getitem__(self, name: str) -> bool:
        return self.to(Permission[name.upper()])

    def to(self, permission: Permission) -> bool:
        """Whether the user has the permission."""
        allowed: bool = self._user.has_perm(permission.value)
        return allowed
