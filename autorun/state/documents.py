"""JSON documents: the value that a path of keys leads to, and one text for equal documents.

Also, on SQLite, one text for sets of equal rows, and whether a text can be read.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from django.db.backends.signals import connection_created

#: A function of SQL on SQLite: the text of what a JSON list of keys leads to in a document.
NORMALIZED = "AUTORUN_JSON"
#: An aggregate of SQL on SQLite: the number of texts, and the sum of 64 bits of a digest of each.
SET_TEXT = "AUTORUN_SET"
#: A function of SQL on SQLite: whether bytes are a text that Python can read.
READABLE = "AUTORUN_READABLE"


def connect() -> None:
    """Give each connection to SQLite the functions NORMALIZED, SET_TEXT and READABLE."""
    connection_created.connect(_add_function, dispatch_uid=__name__)


def found_at(keys: Iterable[str], document: Any) -> Any:
    """The value that `keys` lead to, a number being an index of a list; None without one."""
    for key in keys:
        is_list = isinstance(document, list)
        try:
            document = document[int(key)] if is_list else dict.__getitem__(document, key)
        except (LookupError, TypeError, ValueError):
            return None
    return document


def _add_function(connection: Any, **kwargs: Any) -> None:
    if connection.vendor == "sqlite":
        connection.connection.create_function(NORMALIZED, 2, _normalized, deterministic=True)
        connection.connection.create_aggregate(SET_TEXT, 1, _SetText)
        connection.connection.create_function(READABLE, 1, _is_readable, deterministic=True)


class _SetText:
    def __init__(self) -> None:
        self.number = self.total = 0

    def step(self, text: str) -> None:
        self.number += 1
        digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
        self.total += int.from_bytes(digest[:8], "big")

    def finalize(self) -> str:
        return f"{self.number}:{self.total}."


def _normalized(text: str | None, keys: str) -> str | None:
    if text is None:
        return None
    found = found_at(json.loads(keys), json.loads(text))
    # Without keys a null is a document; SQL's NULL is the lack of one.
    return None if found is None and keys != "[]" else json.dumps(found, sort_keys=True)


def _is_readable(text: bytes | None) -> bool:
    try:
        (text or b"").decode()  # SQLite also asks about what a column is compared with
    except UnicodeDecodeError:
        return False
    return True
