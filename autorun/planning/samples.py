"""The sample of rows that a candidate version runs on: those whose keys have the lowest hashes.

The database computes the hash, so it is the same in every process; of a key it is the same in every
database. For a number of rows, the node keeps the highest hash: rows that come and go leave the
others in the sample, and a saved row is looked up without reading the table.
"""

from typing import Any

from django.db.models import CharField, F, Max, QuerySet, TextField, UUIDField, Value
from django.db.models.functions import MD5, Cast, Replace

from autorun.declare import hooks
from autorun.declare.base import Runner
from autorun.declare.console import SILENT
from autorun.declare.nodes import node_of
from autorun.models import Node
from autorun.state.keys import key_kind

#: Hexadecimal digits of a share. Hashes are compared as texts, of which they are the start.
DIGITS = 8


def in_sample(trial: Runner, rows: QuerySet[Any]) -> QuerySet[Any]:
    """Those of `rows`, a plain queryset, that the candidate version runs on."""
    sample = trial.sample
    if sample is None or sample.share == 1:
        return rows
    hashed: QuerySet[Any] = rows.alias(_autorun_hash=hash_of(trial))
    if sample.share is not None:
        bound = f"{int(sample.share * 16**DIGITS):0{DIGITS}x}"
        return hashed.filter(_autorun_hash__lt=bound)
    bounds = _bounds(trial, sample.rows or 0)
    if not bounds:
        return rows
    highest, _, last = bounds.partition(" ")
    found = hashed.filter(_autorun_hash__lte=highest)
    # Rows that are created later are not part of it, if their keys tell.
    return found.filter(pk__lte=int(last)) if last else found


def top_up(trial: Runner) -> None:
    """Choose the sample again if some of its rows are gone."""
    if trial.sample is None or trial.sample.rows is None:
        return
    passed = hooks.filtered(trial, hooks.base_queryset(trial), log_level=SILENT)
    if in_sample(trial, passed).count() < trial.sample.rows:
        Node.objects.filter(pk=node_of(trial).pk).update(sample="")


def hash_of(runner: Runner) -> Any:
    """The hash of a row's key, which orders the rows to try."""
    kind = key_kind(runner.get_model())
    text: Any = Cast(F("pk"), CharField()) if kind.is_integer else kind.expression()
    if isinstance(kind.field, UUIDField):  # with dashes in some databases only
        text = Replace(text, Value("-"), Value(""), output_field=TextField())
    return MD5(text)


def _bounds(trial: Runner, number: int) -> str:
    """The highest hash and the last key of `number` rows, as the node keeps them; "" for all."""
    # They are stored once there are more rows than that, and chosen again for another number.
    node = Node.objects.filter(pk=node_of(trial).pk)
    known = node.values_list("sample", flat=True).first() or ""
    of, _, bounds = known.partition(" ")
    if of == str(number):
        return bounds
    passed = hooks.filtered(trial, hooks.base_queryset(trial), log_level=SILENT)
    hashes = passed.annotate(_autorun_hash=hash_of(trial)).order_by("_autorun_hash")
    found = list(hashes.values_list("_autorun_hash", flat=True)[number - 1 : number + 1])
    if len(found) < 2:
        return ""
    last = ""
    if key_kind(trial.get_model()).is_integer:
        last = hooks.every_row(trial).aggregate(last=Max("pk"))["last"]
    # Another process may have been quicker.
    node.filter(sample=known).update(sample=f"{number} {found[0]} {last}".rstrip())
    return node.values_list("sample", flat=True)[0].partition(" ")[2]
