"""Settings of the checkout: the demo, the tests and the benchmarks run on them."""

from settings.celery import app as celery_app

__all__ = ["celery_app"]
