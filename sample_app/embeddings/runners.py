"""Runners that make scans findable by the meaning of their descriptions."""

from django.db.models import Q

from autorun.runner import QuerySetRunner
from sample_app.models import Scan


class DescriptionRunner(QuerySetRunner):
    """Every scan with a description, 32 in one call."""

    DATA_MODEL = Scan
    ANALYSIS = "Embed Text"
    ANALYSIS_VERSION = "1.0"
    INPUT_KEY = "texts"
    INPUT_FIELDS = ("description", "modality")
    BASE_QUERY = ~Q(description="")

    def get_instance_representation(self, instance: Scan) -> str:
        return f"{instance.description} ({instance.modality})"


class DescriptionByRowRunner(DescriptionRunner):
    """The same, one scan in a call."""

    ANALYSIS = "Embed Text by Row"
    INPUT_KEY = "text"
