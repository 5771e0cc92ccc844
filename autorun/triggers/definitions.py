"""The SQL of the triggers that note written rows, for each database.

On PostgreSQL inserted and deleted rows are noted by statement, from a transition table, and updated
rows one by one: for a statement that changes other columns, a trigger by row costs nothing. A row
whose key changes is noted as deleted under the old key, and as inserted under the new one. Many
rows with consecutive keys are one note: a note for each would double the time of their INSERT.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.models import Written
from autorun.state.keys import kind_of
from autorun.state.parameters import MOST
from autorun.triggers.on_write import Table

#: Begins the names of triggers and of their functions; a digest of the definition follows.
PREFIX = "autorun_write_"
EVENTS = {"i": "INSERT", "u": "UPDATE", "d": "DELETE"}
#: Fewer rows of a statement have a note each.
MANY = 100


@dataclass(frozen=True)
class Definition:
    """The triggers of one table: the statements that create them, and the triggers' names."""

    table: Table
    statements: tuple[str, ...]
    names: tuple[str, ...]
    sql_table: str
    sql_key: str


def definition(
    table: Table, connection: BaseDatabaseWrapper, *, schema: str = "", is_partitioned: bool = False
) -> Definition:
    """The triggers of `table`; on PostgreSQL `schema` is that of autorun's tables, quoted."""
    write = {"postgresql": _on_postgresql, "mysql": _on_mariadb, "sqlite": _on_sqlite}
    events = [*EVENTS, "t"] if connection.vendor == "postgresql" else [*EVENTS]
    words = _Words(table, connection, schema, is_partitioned)
    sql = write[connection.vendor](words)
    text = "\n".join(sql.values())
    name = PREFIX + hashlib.sha256(text.encode()).hexdigest()[:12]
    named = tuple(each.replace("$NAME", name) for each in sql.values())
    names = tuple(f"{name}_{event}" for event in events)
    return Definition(table, named, names, words.table, words.key)


class _Words:
    """The words of a table's triggers: names, conditions and notes."""

    def __init__(
        self, table: Table, connection: BaseDatabaseWrapper, schema: str, is_partitioned: bool
    ) -> None:
        self.is_partitioned = is_partitioned
        self.quote = connection.ops.quote_name
        self.vendor = connection.vendor
        self.table = self.quote(table.model._meta.db_table)
        self.schema = f"{schema}." if schema else ""
        self.notes = self.schema + self.quote(Written._meta.db_table)
        self.source = table.source.replace("'", "''")
        self.key = self.quote(str(table.key.column))
        self.is_integer = (kind := kind_of(table.key)).is_integer
        self.is_bigint = kind.is_bigint or self.vendor != "mysql"
        self.is_unique = table.key.primary_key
        self.may_be_null = table.key.null
        columns = table.columns()
        self.columns = None if columns is None else sorted(map(self.quote, columns))
        fields = table.model._meta.local_concrete_fields
        self.has_generated = any(
            each.generated and each.column in (columns or ()) for each in fields
        )

    @property
    def of_columns(self) -> str:
        return "" if self.columns is None else f" OF {', '.join(self.columns)}"

    def note(self, operation: str, row: str, *, rows: str = "", only: str = "") -> str:
        """A statement that notes the key of `row`: NEW, OLD or an alias of the table `rows`."""
        key = f"{row}.{self.key}"
        types = {"postgresql": "text", "mysql": "CHAR", "sqlite": "text"}
        text = f"CAST({key} AS {types[self.vendor]})"
        keys = f"{key}, ''" if self.is_integer else f"0, {text}"
        conditions = [only] * bool(only) + [f"{key} IS NOT NULL"] * self.may_be_null
        if self.is_integer and not self.is_bigint:
            conditions.append(f"{key} <= {MOST}")
        rows = f" FROM {rows} AS {row}" if rows else ""
        if conditions and not rows and self.vendor == "mysql":
            rows = " FROM DUAL"
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return (
            f"INSERT INTO {self.notes} (source, operation, object_id, object_key) "
            f"SELECT '{self.source}', '{operation}', {keys}{rows}{where}"
        )

    def note_all(self, operation: str, rows: str) -> str:
        """Statements that note the keys of `rows`, consecutive integers as one range.

        A single key is noted without reading `rows` again: that takes as long as the note itself.
        """
        each = self.note(operation, "r", rows=rows)
        if not (self.is_integer and self.is_unique):
            return f"{each};"
        return f"""
    SELECT min(r.{self.key}), max(r.{self.key}), count(*) INTO low, high, number FROM {rows} AS r;
    IF number = 1 OR number > {MANY} AND high - low = number - 1 THEN
      INSERT INTO {self.notes} (source, operation, object_id, object_key, last_id)
      VALUES ('{self.source}', '{operation}', low, '', NULLIF(high, low));
    ELSE
      {each};
    END IF;"""

    def changed(self, differs: str) -> str:
        """Whether one of the columns has changed; `differs` compares `{column}`."""
        return f"({' OR '.join(differs.format(column=each) for each in self.columns or ())})"


def _on_postgresql(words: _Words) -> Mapping[str, str]:
    function = f'{words.schema}"$NAME"'
    call = f"EXECUTE FUNCTION {function}()"
    # As bytes: by their own equality some types take different values for one.
    is_changed = "OLD.* OPERATOR(pg_catalog.*<>) NEW.*"
    if words.columns is not None:
        old, new = (", ".join(f"{row}.{each}" for each in words.columns) for row in ("OLD", "NEW"))
        is_changed = f"pg_catalog.record_image_ne(ROW({old}), ROW({new}))"
    create = 'CREATE OR REPLACE TRIGGER "$NAME_{event}" {when} ON ' + words.table
    by_statement = f"FOR EACH STATEMENT {call}"
    inserted = f"REFERENCING NEW TABLE AS new_rows {by_statement}"
    if words.is_partitioned:
        # Only by row are those inserted that an UPDATE moves here, or that name their partition.
        inserted = f"FOR EACH ROW {call}"
    return {
        "function": _function_on_postgresql(words, function),
        "i": f"{create.format(event='i', when='AFTER INSERT')} {inserted}",
        "u": f"{create.format(event='u', when='AFTER UPDATE' + words.of_columns)} "
        f"FOR EACH ROW WHEN ({is_changed}) {call}",
        "d": f"{create.format(event='d', when='AFTER DELETE')} "
        f"REFERENCING OLD TABLE AS old_rows {by_statement}",
        # Before, so that Django's `flush`, which truncates the notes as well, leaves none.
        "t": f"{create.format(event='t', when='BEFORE TRUNCATE')} {by_statement}",
    }


def _function_on_postgresql(words: _Words, function: str) -> str:
    truncated = f"VALUES ('{words.source}', 't', 0, '')"
    inserted = words.note_all("i", "new_rows")
    if words.is_partitioned:
        inserted = f"{words.note('i', 'NEW')};"
    return f"""
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET jit = off AS $autorun$
DECLARE low bigint; high bigint; number bigint;
BEGIN
  IF TG_OP = 'INSERT' THEN
    {inserted}
  ELSIF TG_OP = 'DELETE' THEN
    {words.note_all("d", "old_rows")}
  ELSIF TG_OP = 'TRUNCATE' THEN
    INSERT INTO {words.notes} (source, operation, object_id, object_key) {truncated};
  ELSE
    IF OLD.{words.key} IS DISTINCT FROM NEW.{words.key} THEN
      {words.note("d", "OLD")}; {words.note("i", "NEW")};
    ELSE
      {words.note("u", "NEW")};
    END IF;
  END IF;
  RETURN NULL;
END $autorun$""".strip()


def _on_mariadb(words: _Words) -> Mapping[str, str]:
    moved = f"{words.note('d', 'OLD')}; {words.note('i', 'NEW')};"
    updated = f"IF OLD.{words.key} <=> NEW.{words.key} THEN {words.note('u', 'NEW')}; "
    updated += f"ELSE {moved} END IF;"
    if words.columns is not None:
        # As bytes: most collations take "a", "A" and "a " for one.
        differs = "NOT (CAST(OLD.{column} AS BINARY) <=> CAST(NEW.{column} AS BINARY))"
        updated = f"IF {words.changed(differs)} THEN {updated} END IF;"
    notes = {"i": f"{words.note('i', 'NEW')};", "u": updated, "d": f"{words.note('d', 'OLD')};"}
    return {
        event: f"CREATE OR REPLACE TRIGGER `$NAME_{event}` AFTER {EVENTS[event]} ON {words.table} "
        f"FOR EACH ROW BEGIN {note} END"
        for event, note in notes.items()
    }


def _on_sqlite(words: _Words) -> Mapping[str, str]:
    is_same = f"OLD.{words.key} IS NEW.{words.key}"
    moved = [
        words.note(event, row, only=f"NOT {is_same}") for event, row in (("d", "OLD"), ("i", "NEW"))
    ]
    changed = "; ".join([*moved, words.note("u", "NEW", only=is_same)])
    # SQLite does not take a generated column for updated if those change that it is made of.
    updated = f"UPDATE{words.of_columns * (not words.has_generated)} ON {words.table}"
    if words.columns is not None:
        differs = "OLD.{column} COLLATE BINARY IS NOT NEW.{column} COLLATE BINARY"
        updated += f" WHEN {words.changed(differs)}"
    notes = {
        f"INSERT ON {words.table}": ("i", words.note("i", "NEW")),
        updated: ("u", changed),
        f"DELETE ON {words.table}": ("d", words.note("d", "OLD")),
    }
    return {
        event: f'CREATE TRIGGER "$NAME_{event}" AFTER {when} BEGIN {note}; END'
        for when, (event, note) in notes.items()
    }
