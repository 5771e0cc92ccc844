"""SQLite and the embedded broker: nothing to install. The default."""

from settings import brokers, databases
from settings.base import *  # noqa: F403

DATABASES = {"default": databases.sqlite()}
CELERY_BROKER_URL, CELERY_BROKER_TRANSPORT_OPTIONS = brokers.embedded()
