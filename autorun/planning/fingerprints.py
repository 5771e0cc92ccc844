"""Fingerprints of rows' inputs, 32 hex digits: a row whose fingerprint differs has changed.

If the database can compute it (INPUT_FIELDS, or no input at all), it is one expression that both
planning and the worker evaluate there, so Python and SQL never have to agree on it. Otherwise it is
a hash of the value of `get_instance_representation()`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from django.db import models
from django.db.models import Exists, Expression, F, Func, OuterRef, Subquery, Value
from django.db.models.fields.json import KeyTransform
from django.utils import timezone

from autorun.declare.base import Runner
from autorun.declare.code_digest import code_digest
from autorun.declare.nodes import node_id_of
from autorun.declare.registry import dependencies_of, inputs_from, sets_before
from autorun.declare.sets import OWNER, Each, MembersInput, rows_in
from autorun.exceptions import InputError
from autorun.models import UNCHANGING, Run
from autorun.state.documents import SET_TEXT, text_of
from autorun.state.encoding import JSON, Encoder, Unencodable, checked_float, checked_text, in_words
from autorun.state.fields import FingerprintField
from autorun.state.keys import key_kind


def expression(
    runner: Runner, *, upstream: bool = True, output_field: models.Field[Any, Any] | None = None
) -> Expression:
    """The fingerprint of a row of `runner`'s model, for `annotate()`.

    `upstream=False` leaves out dependencies' successes, for databases without autorun's tables.
    """
    sources: list[Any] = []
    for each in runner.inputs:
        if isinstance(each, MembersInput):
            rows = each.rows.filter(**{OWNER: OuterRef("pk")})
            sources.append(_SetText.of(rows, *[member.source for member in each.inputs]))
        else:
            sources.append(each.source)
    if runner.ON_CODE_CHANGE != "warn":
        sources.append(Value(code_mark(runner)))
    if upstream and runner.depends_on:
        read = {each.label for each in inputs_from(runner).values()}
        for label, runs in upstream_successes(runner).items():
            is_read = label in read
            sources.append(
                _SetText.of(runs, F("outputs")) if is_read else Subquery(runs.values("pk"))
            )
        sources += [_set_of_successes(runner, *each) for each in sets_before(runner)]
    return Fingerprint(*sources, output_field=output_field or FingerprintField())


def code_mark(runner: Runner) -> str:
    """The digest of the function's code, an edit of which is to run all rows again."""
    return code_digest(runner.get_analysis().function)


def has_subqueries(runner: Runner) -> bool:
    """Whether the fingerprint of a row depends on other rows."""
    return bool(runner.depends_on) or any(isinstance(each, MembersInput) for each in runner.inputs)


def _set_of_successes(runner: Runner, each: Each, upstream: Runner) -> _SetText:
    rows = rows_in(runner.get_model(), each).filter(**{OWNER: OuterRef(OuterRef("pk"))})
    kind = key_kind(rows.model)
    successes = Run.objects.current().succeeded().of(node_id_of(upstream))
    return _SetText.of(successes.of_rows(kind, kind.values(rows)), F("pk"))


def lacking(runner: Runner, each: Each, upstream: Runner) -> models.QuerySet[Any]:
    """The rows of the outer query's set on which `upstream` has no current success."""
    rows = rows_in(runner.get_model(), each).filter(**{OWNER: OuterRef("pk")})
    kind = key_kind(rows.model)
    successes = Run.objects.current().succeeded().of(node_id_of(upstream))
    return rows.filter(~Exists(successes.of_row(kind, kind.expression(OuterRef))))


def upstream_successes(runner: Runner) -> dict[str, models.QuerySet[Run]]:
    """The current success on the outer query's row, by the label of each runner before this one."""
    kind = key_kind(runner.get_model())
    successes = Run.objects.current().succeeded().of_row(kind, kind.expression(OuterRef))
    return {each.label: successes.of(node_id_of(each)) for each in dependencies_of(runner)}


def with_dependencies(runner: Runner, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
    """The rows of `queryset` on which all runners before this one have succeeded."""
    for runs in upstream_successes(runner).values():
        queryset = queryset.filter(Exists(runs))
    for each in sets_before(runner):
        queryset = queryset.filter(~Exists(lacking(runner, *each)))
    return queryset


def combined(fingerprint: str, marks: Sequence[int | str]) -> str:
    """`fingerprint` combined with digests, or with the ids of upstream runs."""
    if not marks:
        return fingerprint
    text = ":".join([fingerprint, *map(str, marks)])
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


def _number(value: float) -> JSON:
    return int(value) if value.is_integer() else checked_float(value)


class _FingerprintEncoder(Encoder):
    scalars: ClassVar = {**Encoder.scalars, float: _number}


class Fingerprint(Func):
    """MD5 over netstrings of the source expressions: `N` for NULL, else `length:text`.

    A bare concatenation would equate NULL with '', and ('ab', 'c') with ('a', 'bc'). Without
    sources it is a constant, so a row never becomes pending again.
    """

    output_field = FingerprintField()

    def as_sql(  # type: ignore[override]
        self, compiler: Any, connection: Any, **extra: Any
    ) -> tuple[str, list[Any]]:
        is_fingerprint = isinstance(self.output_field, FingerprintField)
        cast = "::uuid" if is_fingerprint and connection.vendor == "postgresql" else ""
        if not self.source_expressions:
            return f"%s{cast}", [UNCHANGING]
        parts, params = self.netstrings(compiler, connection)
        if connection.vendor == "mysql":
            whole = f"MD5(CONCAT({', '.join(parts)}))"
            if len(parts) == 1:
                return whole, params
            # A text longer than max_allowed_packet is NULL there, though each part may be shorter.
            digests = ", ".join(f"MD5({part})" for part in parts)
            return f"COALESCE({whole}, MD5(CONCAT({digests})))", params * 2
        return f"MD5({' || '.join(parts)}){cast}", params

    def netstrings(self, compiler: Any, connection: Any) -> tuple[list[str], list[Any]]:
        parts: list[str] = []
        params: list[Any] = []
        # A day or an hour of a time is in the project's time zone, whatever is active.
        with timezone.override(timezone.get_default_timezone()):
            for source in self.get_source_expressions():
                part, part_params = _netstring(source, compiler, connection)
                parts.append(part)
                params += part_params
        return parts, params


class _SetText(Subquery):
    """A text for a set of rows, whatever their order: their number and the sum of their digests.

    It ends with a semicolon, so that it can follow netstrings.
    """

    @classmethod
    def of(cls, rows: models.QuerySet[Any], *sources: Any) -> _SetText:
        """The text for `rows` by the values of `sources`."""
        # Without an aggregate of Django's there is no GROUP BY, so an empty set has a text, too.
        return cls(rows.annotate(_autorun_set=_SumOfDigests(*sources)).values("_autorun_set"))


class _SumOfDigests(Fingerprint):
    """The number of rows, and the sum of 64 bits of a digest of each.

    A sum counts equal members, where XOR would cancel two of them out; it needs neither an order
    nor a text as long as the set, which GROUP_CONCAT cuts off. Two states of one set have the same
    sum by chance once in 2^64 changes. The worst that follows is a change that goes unnoticed;
    anyone who could forge one may write the row's runs anyway.
    """

    output_field = models.TextField()  # type: ignore[assignment]

    def as_sql(  # type: ignore[override]
        self, compiler: Any, connection: Any, **extra: Any
    ) -> tuple[str, list[Any]]:
        if connection.vendor == "mysql":
            digest, params = super().as_sql(compiler, connection, **extra)
            number = f"CAST(CONV(LEFT({digest}, 16), 16, 10) AS UNSIGNED)"
            return f"CONCAT(COUNT(*), ':', COALESCE(SUM({number}), 0), '.')", params
        parts, params = self.netstrings(compiler, connection)
        text = " || ".join(parts)
        if connection.vendor == "sqlite":  # where an aggregate of no rows is NULL
            return f"COALESCE({SET_TEXT}({text}), '0:0.')", params
        # A third of the time of MD5. Partitions by hash rely on it, so versions do not change it.
        number = f'HASHTEXTEXTENDED(({text}) COLLATE "C", 0)'
        return f"COUNT(*) || ':' || COALESCE(SUM({number}), 0) || '.'", params


def _netstring(source: Any, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
    if isinstance(source, _SetText):
        sql, params = compiler.compile(source)
        return sql, [*params]
    text = text_of(source.output_field, connection.alias)
    if isinstance(source.output_field, models.JSONField):
        text = f"NULLIF({text}, 'null')"  # a body gets None for either
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
