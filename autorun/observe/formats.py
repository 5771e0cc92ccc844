"""Records in the formats that other programs read: CSV, JSON Lines and Parquet."""

import csv
import datetime as dt
import json
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from importlib import import_module
from itertools import islice
from typing import Any

from autorun.observe.records import Records
from autorun.state.keys import key_kind

#: The formats that are text, with their media types.
TEXTS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson; charset=utf-8"}
#: What a spreadsheet reads as the start of a formula, or skips before one; the last are full-width.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
#: A number is no formula, such as the text of a negative Decimal.
_NUMBER = re.compile(r"[+-][0-9.]+(?:[eE][+-]?[0-9]+)?\Z")
_RECORDS_AT_ONCE = 500
#: Digits of a Decimal in Parquet.
_MOST_DIGITS = 38


def as_text(records: Records, form: str) -> Iterator[str]:
    """The records in a format of TEXTS, some lines at a time."""
    if form == "csv":
        columns = list(records.columns())
        yield _csv([columns])
        rows = ([each.get(name) for name in columns] for each in records)
        while some := list(islice(rows, _RECORDS_AT_ONCE)):
            yield _csv(some)
    else:
        lines = (_json(each) + "\n" for each in records)
        while several := list(islice(lines, _RECORDS_AT_ONCE)):
            yield "".join(several)


def write_parquet(records: Records, path: str) -> None:
    """Write a file of Parquet. Raises ImportError, which says what to install, without pyarrow."""
    pyarrow = required("pyarrow")
    parquet = import_module("pyarrow.parquet")
    is_integer = key_kind(records.runner.get_model()).is_integer
    types = {name: _type(pyarrow, kinds) for name, kinds in records.columns().items()} | {
        "key": pyarrow.int64() if is_integer else pyarrow.string(),
        "finished_at": pyarrow.timestamp("us", tz="UTC"),
        "seconds": pyarrow.float64(),
    }
    rows = (
        {name: _in_column(pyarrow, each.get(name), kind) for name, kind in types.items()}
        for each in records
    )
    schema = pyarrow.schema(types)
    with parquet.ParquetWriter(path, schema) as writer:
        while some := list(islice(rows, _RECORDS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))


def required(package: str, extra: str = "") -> Any:
    """The module of a package that autorun does not depend on. Raises ImportError without it."""
    try:
        return import_module(package)
    except ImportError as error:
        named = f"django-autorun[{extra}]" if extra else package
        raise ImportError(f"{package} is not installed. Install it: pip install {named}") from error


class _Lines(list[str]):
    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    lines = _Lines()
    # A text with a character of the terminator is quoted. With "\n", one with a carriage return was
    # not before Python 3.13, and what followed it was a row of its own.
    csv.writer(lines, lineterminator="\r\n").writerows(
        [_cell(each) for each in row] for row in rows
    )
    return "".join(lines)


def _cell(value: Any) -> Any:
    """A value for CSV; a text that a spreadsheet would compute gets an apostrophe before it."""
    if isinstance(value, str):
        is_computed = value.startswith(_FORMULA) and not _NUMBER.match(value)
        return f"'{value}" if is_computed else value
    if isinstance(value, (bool, list, dict)):
        return _json(value)
    return value.isoformat() if isinstance(value, dt.datetime) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda each: each.isoformat())


def _type(pyarrow: Any, kinds: set[Any]) -> Any:
    """The type of a column with values of these types; a text for those that differ."""
    # Decimals have one number of places, unless they have more digits then than Parquet stores.
    kinds = kinds - {type(None)}
    if kinds and all(isinstance(each, tuple) for each in kinds):
        before, after = map(max, zip(*kinds, strict=True))
        is_short = before + after <= _MOST_DIGITS
        return pyarrow.decimal128(_MOST_DIGITS, after) if is_short else pyarrow.string()
    if kinds == {bool}:
        return pyarrow.bool_()
    if kinds == {int}:
        return pyarrow.int64()
    return pyarrow.float64() if kinds in ({float}, {int, float}) else pyarrow.string()


def _in_column(pyarrow: Any, value: Any, kind: Any) -> Any:
    if pyarrow.types.is_decimal(kind) and value is not None:
        return Decimal(value)
    is_text = kind == pyarrow.string() and not isinstance(value, str)
    return _json(value) if is_text and value is not None else value
