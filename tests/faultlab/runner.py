"""The lab's runner, with options that a test or a process chooses."""

import datetime as dt
import os
from typing import Any

from autorun.analysis import Analysis
from autorun.runner import QuerySetRunner
from tests.faultlab import ledger
from tests.faultlab.bodies import befall, exercise, exercise_async, exercise_many
from tests.faultlab.models import Specimen


def declare_all(options: dict[str, Any]) -> list[type[QuerySetRunner]]:
    """`SpecimenRunner`, and with FOLLOWED a runner that waits for it on each row."""
    runner = declare({name: each for name, each in options.items() if name != "FOLLOWED"})
    return [runner, *([declare_follower(runner)] if "FOLLOWED" in options else [])]


def declare(options: dict[str, Any]) -> type[QuerySetRunner]:
    """`SpecimenRunner` with these attributes; VERSION, ASYNC and CALL are the analysis's."""
    options = dict(options)
    version = options.pop("VERSION", "1.0")
    body = exercise_async if options.pop("ASYNC", False) else exercise
    batch = options.pop("CALL", None)
    if "SCHEDULE" in options:  # seconds
        options["SCHEDULE"] = dt.timedelta(seconds=options["SCHEDULE"])
    return type(
        "SpecimenRunner",
        (QuerySetRunner,),
        {
            "DATA_MODEL": Specimen,
            "ANALYSIS": Analysis(
                "Exercise", version, exercise_many if batch else body, batch=batch
            ),
            "INPUT_KEY": "specimen",
            "INPUT_FIELDS": ("value",),
            "RETRY_BACKOFF": 0.1,
            "get_instance_representation": _represent,
            "__module__": __name__,
        }
        | options,
    )


def declare_follower(runner: type[QuerySetRunner]) -> type[QuerySetRunner]:
    class FollowerRunner(QuerySetRunner):
        DATA_MODEL = Specimen
        ANALYSIS = Analysis("Follow", "1.0", lambda value: value)
        INPUT_KEY = "value"
        INPUT_FIELDS = ("value",)
        DEPENDS_ON = (runner,)
        ON_SAVE = False

    return FollowerRunner


def _represent(self: QuerySetRunner, instance: Any) -> dict[str, Any]:
    if instance.does == "unprepared":
        raise ValueError("as it was told")
    # In the lab's processes: the test that looks at it is not to suffer it.
    if instance.does.startswith("represent:") and "AUTORUN_LAB" in os.environ:
        ledger.write("represent", row=instance.pk)
        befall(instance.does.removeprefix("represent:"))
    return {"pk": instance.pk, "value": instance.value, "does": instance.does}
