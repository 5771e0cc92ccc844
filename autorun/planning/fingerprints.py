"""Fingerprints of rows' inputs, 32 hex digits: a row whose fingerprint differs has changed.

If the database can compute it (INPUT_FIELDS, or no input at all), it is one expression that both
planning and the worker evaluate there, so Python and SQL never have to agree on it. Otherwise it is
a hash of the value of `get_instance_representation()`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from django.db import models
from django.db.models import Exists, Expression, Func, OuterRef, Subquery
from django.db.models.fields.json import KeyTransform

from autorun.declare.nodes import node_id_of
from autorun.declare.registry import dependencies_of
from autorun.declare.runner import Runner
from autorun.exceptions import InputError
from autorun.models import UNCHANGING, Run
from autorun.state.column_texts import text_of
from autorun.state.encoding import JSON, Encoder, Unencodable, checked_text, in_words
from autorun.state.fields import FingerprintField
from autorun.state.keys import key_kind


def expression(
    runner: Runner, *, upstream: bool = True, output_field: models.Field[Any, Any] | None = None
) -> Expression:
    """The fingerprint of a row of `runner`'s model, for `annotate()`.

    `upstream=False` leaves out dependencies' successes, for databases without autorun's tables.
    """
    sources = [each.source for each in runner.inputs]
    if upstream and runner.DEPENDS_ON:
        sources += [Subquery(runs.values("pk")) for runs in upstream_successes(runner)]
    return Fingerprint(*sources, output_field=output_field or FingerprintField())


def upstream_successes(runner: Runner) -> list[models.QuerySet[Run]]:
    """For each runner in DEPENDS_ON, the current success on the outer query's row."""
    kind = key_kind(runner.get_model())
    successes = Run.objects.current().succeeded().of_row(kind, kind.expression(OuterRef))
    return [successes.of(node_id_of(upstream)) for upstream in dependencies_of(runner)]


def with_dependencies(runner: Runner, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
    """The rows of `queryset` on which all DEPENDS_ON runners have succeeded."""
    for runs in upstream_successes(runner):
        queryset = queryset.filter(Exists(runs))
    return queryset


def combined(fingerprint: str, upstream: Sequence[int]) -> str:
    """`fingerprint` combined with the ids of the upstream runs, for fingerprints made in Python."""
    if not upstream:
        return fingerprint
    text = ":".join([fingerprint, *map(str, upstream)])
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def fingerprint_of(representation: object) -> str:
    """Return 32 hexadecimal digits: the MD5 of the JSON of an input's representation.

    100 equals 100.0, and the order of keys does not matter. Raises `InputError`, naming the key,
    for values JSON cannot hold.
    """
    # Most representations are a text, such as a path.
    is_text = type(representation) is str
    encode: Callable[[Any], JSON] = checked_text if is_text else _FingerprintEncoder().encode
    try:
        plain = encode(representation)
    except Unencodable as error:
        raise in_words(error, "representation", InputError) from error.__cause__
    # Not RFC 8785: only autorun compares it, and Python's own encoder takes a tenth of the time.
    text = _FINGERPRINT_JSON.encode(plain)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


_FINGERPRINT_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class _FingerprintEncoder(Encoder):
    def encode_float(self, value: float) -> JSON:
        return int(value) if value.is_integer() else super().encode_float(value)


class Fingerprint(Func):
    """MD5 over netstrings of the source expressions: `N` for NULL, else `length:text`.

    A bare concatenation would equate NULL with '', and ('ab', 'c') with ('a', 'bc'). Without
    sources it is a constant, and nothing makes a row pending again.
    """

    output_field = FingerprintField()

    def as_sql(  # type: ignore[override]
        self, compiler: Any, connection: Any, **extra: Any
    ) -> tuple[str, list[Any]]:
        is_fingerprint = isinstance(self.output_field, FingerprintField)
        cast = "::uuid" if is_fingerprint and connection.vendor == "postgresql" else ""
        if not self.source_expressions:
            return f"%s{cast}", [UNCHANGING]
        parts: list[str] = []
        params: list[Any] = []
        for source in self.get_source_expressions():
            part, part_params = _netstring(source, compiler, connection)
            parts.append(part)
            params += part_params
        if connection.vendor == "mysql":
            whole = f"MD5(CONCAT({', '.join(parts)}))"
            if len(parts) == 1:
                return whole, params
            # A text longer than max_allowed_packet is NULL there, though each part may be shorter.
            digests = ", ".join(f"MD5({part})" for part in parts)
            return f"COALESCE({whole}, MD5(CONCAT({digests})))", params * 2
        return f"MD5({' || '.join(parts)}){cast}", params


def _netstring(source: Any, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
    text = text_of(source.output_field, connection.alias)
    if connection.vendor == "sqlite" and isinstance(source.output_field, models.JSONField):
        # Django's own SQL of a key has one text for 1 and "1".
        keys: list[str] = []
        while isinstance(source, KeyTransform):
            keys.insert(0, source.key_name)
            source = source.lhs
        written = json.dumps(keys).replace("$", "\\u0024")  # which stands for the value
        text = text.replace("[]", written.replace("'", "''").replace("%", "%%"))
    sql, params = compiler.compile(source)
    whole = f"COALESCE(LENGTH({text}) || ':' || {text}, 'N')"
    if connection.vendor == "mysql":
        whole = f"COALESCE(CONCAT(CHAR_LENGTH({text}), ':', {text}), 'N')"
    return whole.replace("$", sql), [*params] * whole.count("$")
