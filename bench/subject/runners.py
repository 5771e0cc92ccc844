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


class TitleRunner(QuerySetRunner):
    """Runs on the `title` of a row that only start on request."""

    ANALYSIS = "Trivial"
    ANALYSIS_VERSION = "1.0"
    INPUT_KEY = "title"
    INPUT_FIELDS: tuple[Any, ...] = ("title",)
    SCHEDULE = None
    ON_SAVE = False


class WeightRunner(QuerySetRunner):
    """Runs on the `weight` of a row that only start on request."""

    ANALYSIS_VERSION = "1.0"
    INPUT_KEY = "weight"
    INPUT_FIELDS = ("weight",)
    SCHEDULE = None
    ON_SAVE = False


class SleepingRunner(WeightRunner):
    """Runs that take the milliseconds of their row's `weight`."""

    DATA_MODEL = Item
    ANALYSIS = "Sleeping"

    def get_instance_representation(self, instance: Any) -> int:
        return int(instance.weight)


class ShortRunner(SleepingRunner):
    ANALYSIS_CONFIGURATION = {"kind": "short"}


class MiddlingRunner(SleepingRunner):
    ANALYSIS_CONFIGURATION = {"kind": "middling"}


class LongRunner(SleepingRunner):
    ANALYSIS_CONFIGURATION = {"kind": "long"}
