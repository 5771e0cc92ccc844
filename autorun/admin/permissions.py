"""The permissions of autorun's pages, one for each kind of action, all of the model Run."""

from enum import StrEnum


class Permission(StrEnum):
    """The permissions that users and groups get in Django's admin."""

    VIEW = "autorun.view_run"
    START = "autorun.start_run"
    BACKFILL = "autorun.backfill_run"
    RETRY = "autorun.retry_run"
    CANCEL = "autorun.cancel_run"
    PAUSE = "autorun.pause_run"
    SEE_PAYLOAD = "autorun.view_payload"
