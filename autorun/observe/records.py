"""Outputs of rows, outside of querysets."""

from typing import Any

from django.db.models import F

from autorun.declare.hooks import every_row, is_of
from autorun.declare.nodes import node_id_of
from autorun.declare.runner import Runner
from autorun.models import Run
from autorun.state.keys import key_kind


def outputs_of(runner: Runner, instance: Any, *, stale: bool = False) -> Any:
    """The outputs of the row's current success, or with `stale` of its last one; None without.

    Raises TypeError for an instance of another model.
    """
    model = runner.get_model()
    if not is_of(type(instance)._default_manager.all(), model):
        raise TypeError(
            f"{runner.label} has outputs of {model._meta.label}, not of {instance._meta.label}."
        )
    kind = key_kind(model)
    keys = kind.values(every_row(runner).filter(pk=instance.pk))
    runs = Run.objects.of(node_id_of(runner)).succeeded()
    runs = runs.of_rows(kind, [instance.pk] if kind.is_integer else list(keys))
    runs = runs.unretired().order_by(*LAST_FIRST) if stale else runs.current()
    return next(iter(runs.values_list("outputs", flat=True)[:1]), None)


#: The order of a row's successes: the current one, and then the newest.
LAST_FIRST = (F("is_current").desc(nulls_last=True), "-pk")
