"""Settings of the test suite: any database with any broker.

`AUTORUN_TEST_DATABASE` is sqlite (default), postgres or mariadb; `AUTORUN_TEST_BROKER` is embedded
(default), rabbitmq or redis. Names belong to one run of the suite, so two runs on one machine do
not interfere; processes that a test starts inherit the names from the environment.
"""

import atexit
import json
import os
import shutil
import tempfile

if "AUTORUN_TEST_RUN" not in os.environ:
    os.environ["AUTORUN_TEST_RUN"] = str(os.getpid())
    os.environ["AUTORUN_VAR"] = tempfile.mkdtemp(prefix="autorun-tests-")
    atexit.register(shutil.rmtree, os.environ["AUTORUN_VAR"], ignore_errors=True)
# Each pytest-xdist worker has its own names, too.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and not os.environ["AUTORUN_TEST_RUN"].endswith(WORKER):
    os.environ["AUTORUN_TEST_RUN"] += WORKER
    os.environ["AUTORUN_VAR"] += f"/{WORKER}"
RUN = os.environ["AUTORUN_TEST_RUN"]

from autorun.limits import Limit  # noqa: E402
from settings import brokers, databases  # noqa: E402
from settings.base import *  # noqa: E402, F403
from settings.environment import var_directory  # noqa: E402

BACKENDS = {
    "sqlite": databases.sqlite,
    "postgres": databases.postgres,
    "mariadb": databases.mariadb,
}
BROKERS = {
    "embedded": brokers.embedded,
    "rabbitmq": brokers.rabbitmq,
    "redis": brokers.redis,
}

INSTALLED_APPS += ["tests.library", "tests.faultlab"]  # noqa: F405

database = BACKENDS[os.environ.get("AUTORUN_TEST_DATABASE", "sqlite")]()
if "AUTORUN_DATABASE_NAME" not in os.environ:
    database["NAME"] = (
        str(var_directory() / "test.sqlite3")
        if database["ENGINE"].endswith("sqlite3")
        else f"test_autorun_{RUN}"
    )
# Tests use the same name, so that a process started by a test finds the test's database.
archive = databases.sqlite() | {"NAME": str(var_directory() / "archive.sqlite3")}
DATABASES = {
    "default": database | {"TEST": {"NAME": database["NAME"]}},
    # For rows in another database than autorun's tables.
    "archive": archive | {"TEST": {"NAME": archive["NAME"]}},
}

CELERY_BROKER_URL, CELERY_BROKER_TRANSPORT_OPTIONS = BROKERS[
    os.environ.get("AUTORUN_TEST_BROKER", "embedded")
]()
if "AUTORUN_TEST_VISIBILITY" in os.environ:  # seconds
    CELERY_BROKER_TRANSPORT_OPTIONS["visibility_timeout"] = int(
        os.environ["AUTORUN_TEST_VISIBILITY"]
    )
CELERY_TASK_DEFAULT_QUEUE = f"autorun-tests-{RUN}"

# Settings such as short leases, for processes that a test starts.
AUTORUN = json.loads(os.environ.get("AUTORUN_TEST_SETTINGS", "{}"))
if "LIMITS" in AUTORUN:
    AUTORUN["LIMITS"] = {name: Limit(**values) for name, values in AUTORUN["LIMITS"].items()}

DEBUG = False
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
