"""What is at rest costs upkeep nothing: indexes of what is to be folded and of superseded runs.

PostgreSQL and SQLite have an index of superseded runs alone, since 0002. MariaDB has no partial
indexes, so it gets one in which they are next to each other, in the order of their ids.
"""

from django.db import migrations, models

SUPERSEDED = "CREATE INDEX autorun_run_superseded ON autorun_run (is_current)"


def index_superseded(apps, schema_editor):
    if schema_editor.connection.vendor == "mysql":
        schema_editor.execute(SUPERSEDED)


def drop_index(apps, schema_editor):
    if schema_editor.connection.vendor == "mysql":
        schema_editor.execute("DROP INDEX autorun_run_superseded ON autorun_run")


class Migration(migrations.Migration):
    dependencies = [("autorun", "0009_not_applicable")]
    operations = [
        migrations.RemoveIndex("chunk", "autorun_chunk_folded"),
        migrations.AddIndex(
            "chunk",
            models.Index(
                fields=["node", "is_folded", "state", "failed"], name="autorun_chunk_folded"
            ),
        ),
        migrations.RunPython(index_superseded, drop_index, atomic=False),
    ]
