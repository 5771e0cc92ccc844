import json
import os
import time

from django.apps import AppConfig

from tests.crashes import arm_from_environment


class FaultLabConfig(AppConfig):
    name = "tests.faultlab"
    label = "faultlab"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the lab's runner if `AUTORUN_LAB` has its options, as JSON.

        `AUTORUN_LAB_BROKEN` stands for a `runners` module that cannot be imported.
        """
        arm_from_environment()
        if "AUTORUN_LAB_BROKEN" in os.environ:
            raise ImportError("as it was told")
        options = os.environ.get("AUTORUN_LAB")
        if options:
            from autorun import analysis
            from autorun.declare import registry
            from tests.faultlab.runner import declare_all

            for runner_class in declare_all(json.loads(options)):
                analysis._register(runner_class.ANALYSIS)
                registry.register(runner_class)
        if "AUTORUN_LAB_CLOCK" in os.environ:
            _set_clock(float(os.environ["AUTORUN_LAB_CLOCK"]))


def _set_clock(seconds: float) -> None:
    """This process's clock is wrong by so many seconds."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + int(seconds * 1e9)
