from typing import Any

from autorun.runner import QuerySetRunner
from bench.subject.models import Item


class TrivialRunner(QuerySetRunner):
    DATA_MODEL = Item
    ANALYSIS = "Trivial"
    ANALYSIS_VERSION = "1.0"
    ANALYSIS_CONFIGURATION = {"factor": 2}
    INPUT_KEY = "title"
    INPUT_FIELDS = ("title", "weight")
    SCHEDULE = None

    def get_instance_representation(self, instance: Any) -> str:
        return str(instance.title)
