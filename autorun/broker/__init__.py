"""A message broker in one SQLite file, as a kombu transport.

import autorun.broker

autorun.broker.register()  # before a Celery app connects to "sqlite:////absolute/path/broker.sqlite3"
"""

from autorun.broker.transport import register

__all__ = ["register"]
