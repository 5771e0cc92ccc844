"""All settings except the database and the broker."""

import os

from settings.environment import var_directory

SECRET_KEY = os.environ.get("AUTORUN_SECRET_KEY", "for-looking-around-on-one-machine-only")
DEBUG = os.environ.get("AUTORUN_DEBUG", "1") == "1"
ALLOWED_HOSTS = os.environ.get("AUTORUN_ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]").split(",")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "autorun",
    "sample_app",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

ROOT_URLCONF = "settings.urls"
WSGI_APPLICATION = "settings.wsgi.application"
ASGI_APPLICATION = "settings.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
STATIC_ROOT = var_directory() / "static"
USE_TZ = True
TIME_ZONE = os.environ.get("AUTORUN_TIME_ZONE", "UTC")

CELERY_TIMEZONE = TIME_ZONE
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_TASK_IGNORE_RESULT = True
# Celery closes the database connection after every task, whatever CONN_MAX_AGE says, unless this
# is set. settings/celery.py closes stale connections instead.
CELERY_DB_REUSE_MAX = 10_000
CELERY_BROKER_CONNECTION_TIMEOUT = 2
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 4
# With REMAP_SIGTERM=SIGQUIT in a worker's environment: finish within this time, then requeue.
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 5
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
# Beat fires a missed crontab as soon as it starts, unless it is this late, and again on time.
CELERY_BEAT_CRON_STARTING_DEADLINE = 300
# After a kill, beat repeats the tasks it sent since it last saved.
CELERY_BEAT_SYNC_EVERY = 1
