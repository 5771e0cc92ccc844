"""Autorun's pages in Django's admin, and a mixin for the admin of the models it processes."""

from autorun.admin.batch_pages import BatchAdmin
from autorun.admin.failure_pages import FailureAdmin
from autorun.admin.health_pages import Health, HealthAdmin
from autorun.admin.mixin import AutorunAdminMixin
from autorun.admin.overview_pages import NodeAdmin
from autorun.admin.run_pages import RunAdmin

__all__ = (
    "AutorunAdminMixin",
    "BatchAdmin",
    "FailureAdmin",
    "Health",
    "HealthAdmin",
    "NodeAdmin",
    "RunAdmin",
)
