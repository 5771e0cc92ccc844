"""Autorun's pages in Django's admin, and a mixin for the admin of the models it processes."""

from __future__ import annotations

from autorun.admin.batches import BatchAdmin
from autorun.admin.failures import FailureAdmin
from autorun.admin.mixin import AutorunAdminMixin
from autorun.admin.runners import NodeAdmin
from autorun.admin.runs import RunAdmin

__all__ = ("AutorunAdminMixin", "BatchAdmin", "FailureAdmin", "NodeAdmin", "RunAdmin")
