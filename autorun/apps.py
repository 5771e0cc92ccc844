"""Autorun's place in a Django project."""

from django.apps import AppConfig
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate


class AutorunConfig(AppConfig):
    name = "autorun"
    verbose_name = "Autorun"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Imported here, after the models and Celery's app have been loaded.
        from autorun import broker, tasks
        from autorun.declare import nodes, registry
        from autorun.observe import checks
        from autorun.state import documents, user_code, waits
        from autorun.triggers import delivery, migrating, on_save, on_schedule
        from autorun.upkeep import workers

        checks.connect()
        documents.connect()
        waits.connect()
        user_code.connect()
        broker.register()
        registry.autodiscover()
        on_save.connect()
        delivery.connect()
        on_schedule.connect()
        migrating.connect()
        workers.connect(tasks.make_round)
        for signal in (post_migrate, connection_created):
            signal.connect(nodes.forget_nodes, dispatch_uid="autorun.declare.nodes")
