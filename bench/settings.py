"""Settings of the benchmarks, with their own database and any broker.

`AUTORUN_BENCH_DATABASE` is sqlite (default), postgres or, for the topic "writing", mariadb;
`AUTORUN_BENCH_BROKER` is memory (default), rabbitmq or redis. With `AUTORUN_BENCH_WITHOUT=1` the
same project without autorun.
"""

import os

from settings import brokers, databases
from settings.base import *  # noqa: F403
from settings.brokers import Broker
from settings.environment import var_directory

NAME = "bench_autorun"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_celery_beat",
    "bench.subject",
]
if os.environ.get("AUTORUN_BENCH_WITHOUT") != "1":
    INSTALLED_APPS.insert(0, "autorun")

if os.environ.get("AUTORUN_BENCH_DATABASE", "sqlite") == "sqlite":
    DATABASES = {"default": databases.sqlite() | {"NAME": str(var_directory() / f"{NAME}.sqlite3")}}
else:
    server = getattr(databases, os.environ["AUTORUN_BENCH_DATABASE"])
    DATABASES = {"default": server() | {"NAME": NAME}}

CELERY_BROKER_URL, CELERY_BROKER_TRANSPORT_OPTIONS = {
    "memory": lambda: Broker("memory://", {}),
    "rabbitmq": brokers.rabbitmq,
    "redis": brokers.redis,
}[os.environ.get("AUTORUN_BENCH_BROKER", "memory")]()
# Named by database, or a worker of another run would take its messages.
CELERY_TASK_DEFAULT_QUEUE = f"bench-autorun-{DATABASES['default']['ENGINE'].rpartition('.')[2]}"

ROOT_URLCONF = "bench.subject.urls"
DEBUG = False
LOGGING_CONFIG = None
