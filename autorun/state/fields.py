"""Column types whose SQL differs by database."""

import uuid
from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper


class FingerprintField(models.Field):  # type: ignore[type-arg]
    """An MD5 digest: 32 lower-case hex digits; `uuid` on PostgreSQL, char(32) elsewhere.

    MariaDB's own uuid type is not used: `CAST(... AS uuid)` gives NULL for a quarter of digests.
    """

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return "uuid" if connection.vendor == "postgresql" else "char(32)"

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> str | None:
        return value.hex if isinstance(value, uuid.UUID) else value

    def to_python(self, value: Any) -> str | None:
        return value.hex if isinstance(value, uuid.UUID) else value


class RealField(models.FloatField):  # type: ignore[type-arg]
    """A number of four bytes and seven digits."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return "float" if connection.vendor == "mysql" else "real"


class ObjectKeyField(models.CharField):  # type: ignore[type-arg]
    """Text compared byte by byte, so that its order and its equality are the same everywhere."""

    COLLATIONS = {"postgresql": "C", "sqlite": "BINARY"}

    def db_parameters(self, connection: Any) -> dict[str, Any]:
        collation = self.COLLATIONS.get(connection.vendor)
        if connection.vendor == "mysql":
            # Not utf8mb4_bin, to which "a" and "a " are one: a text is filled up with spaces there.
            collation = "utf8mb4_nopad_bin" if connection.mysql_is_mariadb else "utf8mb4_0900_bin"
        return {**super().db_parameters(connection), "collation": collation}
