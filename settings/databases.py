"""One function per database, which returns an entry of Django's `DATABASES`."""

import os
from typing import Any

from settings.environment import var_directory

# Celery opens a connection for every task unless connections persist, and a persistent connection
# survives a restart of the server only if it is checked before use.
PERSISTENT = {"CONN_MAX_AGE": 600, "CONN_HEALTH_CHECKS": True}


def sqlite() -> dict[str, Any]:
    """A file shared by the web process, the workers and beat."""
    return PERSISTENT | {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("AUTORUN_DATABASE_NAME", str(var_directory() / "autorun.sqlite3")),
        "OPTIONS": {
            # WAL is not enough: a transaction that reads first and writes later fails at once
            # with "database is locked" if another one wrote in between, whatever the timeout.
            "transaction_mode": "IMMEDIATE",
            "timeout": 30,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }


def postgres() -> dict[str, Any]:
    return _server(
        "django.db.backends.postgresql", "AUTORUN_POSTGRES", port="5432", user="postgres"
    ) | {
        # A server whose machine vanishes is given up after 25 seconds. The kernel alone would wait
        # for a quarter of an hour, or for two hours if nothing was being sent.
        "OPTIONS": {
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 25_000,  # milliseconds
        },
    }


def mariadb() -> dict[str, Any]:
    """A MariaDB server, through PyMySQL, which needs no compiler."""
    import pymysql

    pymysql.install_as_MySQLdb()
    return _server("django.db.backends.mysql", "AUTORUN_MARIADB", port="3306", user="root") | {
        "OPTIONS": {
            "charset": "utf8mb4",
            "connect_timeout": 5,
            "init_command": "SET sql_mode='STRICT_TRANS_TABLES'",
            # The default, repeatable read, takes gap locks that make planners wait.
            "isolation_level": "read committed",
        },
    }


def _server(engine: str, prefix: str, *, port: str, user: str) -> dict[str, Any]:
    return PERSISTENT | {
        "ENGINE": engine,
        "NAME": os.environ.get("AUTORUN_DATABASE_NAME", "autorun"),
        "HOST": os.environ.get(f"{prefix}_HOST", "127.0.0.1"),
        "PORT": os.environ.get(f"{prefix}_PORT", port),
        "USER": os.environ.get(f"{prefix}_USER", user),
        "PASSWORD": os.environ.get(f"{prefix}_PASSWORD", ""),
    }
