"""MariaDB and RabbitMQ."""

from settings import brokers, databases
from settings.base import *  # noqa: F403

DATABASES = {"default": databases.mariadb()}
CELERY_BROKER_URL, CELERY_BROKER_TRANSPORT_OPTIONS = brokers.rabbitmq()
