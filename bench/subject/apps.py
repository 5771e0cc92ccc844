from django.apps import AppConfig
from django.db.models.signals import post_save


class SubjectConfig(AppConfig):
    name = "bench.subject"
    label = "subject"

    def ready(self) -> None:
        from bench.subject.models import ItemByHand
        from bench.subject.tasks import announce

        post_save.connect(announce, sender=ItemByHand, weak=False)
