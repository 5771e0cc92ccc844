"""Tasks of the project's own, which share their process with autorun's."""

from celery import shared_task

from tests.faultlab import leftovers


@shared_task
def leave(name: str) -> None:
    leftovers.leave(name)
