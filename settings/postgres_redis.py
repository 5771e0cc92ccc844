"""PostgreSQL and Redis."""

from settings import brokers, databases
from settings.base import *  # noqa: F403

DATABASES = {"default": databases.postgres()}
CELERY_BROKER_URL, CELERY_BROKER_TRANSPORT_OPTIONS = brokers.redis()
