"""The time from one save until its body starts."""

from __future__ import annotations

import time
from typing import Any

from autorun.models import Run
from bench import stage
from bench.subject.models import Item, ResultByHand


def wait_for_one(model: Any) -> float:
    """Save an Item or an ItemByHand; return the seconds until its body starts."""
    instance = model(title="A title of usual length", weight=1)
    began_at = time.time()
    instance.save()

    def outputs() -> Any:
        if model is Item:
            runs = Run.objects.filter(object_id=instance.pk, status=Run.Status.SUCCEEDED)
            return runs.values_list("outputs", flat=True).first()
        results = ResultByHand.objects.filter(item=instance)
        return results.values_list("outputs", flat=True).first()

    stage.wait_until(lambda: outputs() is not None, seconds=60, every=0.005)
    return float(outputs()["began_at"]) - began_at
