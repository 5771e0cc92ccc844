"""What makes the hot table fast and has no word in Django's models.

On PostgreSQL the index of current runs also holds the fingerprint, so that planning reads nothing
but the index. And there is room in every page of runs for the results of all the runs in it: every
run is updated once, most of them a whole chunk at a time, and within one transaction no dead version
makes room for a live one. Measured on PostgreSQL 15 with 20,000 runs in chunks of 250, by fillfactor:
75: 24 % of the updates HOT, 9.3 MB with indexes, 17-20 MB of WAL; 40: 90 %, 7.5 MB, 12.5-13 MB.

Superseded runs have an index of their own, because pruning looks for few among many.
"""

from django.db import migrations

CURRENT = "UNIQUE (node_id, object_id, object_key, is_current) INCLUDE (fingerprint)"
POSTGRESQL = [
    "ALTER TABLE autorun_run DROP CONSTRAINT autorun_run_one_current",
    f"ALTER TABLE autorun_run ADD CONSTRAINT autorun_run_one_current {CURRENT}",
    "ALTER TABLE autorun_run SET (fillfactor = 35)",
    "ALTER TABLE autorun_chunk SET (fillfactor = 50)",
]
SUPERSEDED = "CREATE INDEX autorun_run_superseded ON autorun_run (id) WHERE is_current IS NULL"


def set_storage(apps, schema_editor):
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql":
        for statement in POSTGRESQL:
            schema_editor.execute(statement)
    if vendor != "mysql":
        schema_editor.execute(SUPERSEDED)


def keep_storage(apps, schema_editor):
    """Nothing to undo that dropping the tables does not."""


class Migration(migrations.Migration):
    dependencies = [("autorun", "0001_initial")]
    operations = [migrations.RunPython(set_storage, keep_storage, elidable=False)]
