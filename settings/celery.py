"""The Celery app of the checkout: `celery -A settings worker`."""

import logging
import os
from typing import Any

from celery import Celery
from celery.signals import after_setup_logger, task_prerun
from django.db import close_old_connections

from autorun import broker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings.sqlite")

# Makes `sqlite:///` a broker URL.
broker.register()

app = Celery("settings")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@after_setup_logger.connect
def show_log_of_autorun(**kwargs: Any) -> None:
    """Show autorun's own lines under `--loglevel WARNING`, without Celery's two per task."""
    logging.getLogger("autorun").setLevel(min(logging.INFO, logging.getLogger().level))


@task_prerun.connect
def close_stale_connections(**kwargs: Any) -> None:
    """Close connections that expired or broke while the worker was idle."""
    close_old_connections()
