import time

from autorun.analysis import analysis


@analysis("Trivial", version="1.0")
def trivial(title: str, *, factor: int) -> dict[str, float]:
    """Return the time it started, and do nothing else."""
    return {"length": len(title) * factor, "began_at": time.time()}


@analysis("Sleeping", version="1.0")
def sleep(weight: int, *, kind: str = "") -> dict[str, float]:
    """Take `weight` milliseconds."""
    began_at = time.time()
    time.sleep(weight / 1000)
    return {"began_at": began_at}
