from django.db import migrations, models

import autorun.state.clock
import autorun.state.fields


class Migration(migrations.Migration):
    """Rows that triggers note, and rows of batches that were written."""

    dependencies = [("autorun", "0007_facts")]
    operations = [
        migrations.CreateModel(
            "Written",
            [
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "source",
                    models.CharField(
                        max_length=255, help_text="The model of the table, in lower case."
                    ),
                ),
                (
                    "operation",
                    models.CharField(
                        max_length=1,
                        choices=[
                            ("i", "Insert"),
                            ("u", "Update"),
                            ("d", "Delete"),
                            ("t", "Truncate"),
                        ],
                    ),
                ),
                ("object_id", models.BigIntegerField(db_default=0)),
                (
                    "object_key",
                    autorun.state.fields.ObjectKeyField(max_length=255, blank=True, db_default=""),
                ),
                ("written_at", models.DateTimeField(db_default=autorun.state.clock.DatabaseNow())),
            ],
            options={"base_manager_name": "objects", "verbose_name_plural": "written rows"},
        ),
        migrations.CreateModel(
            "BatchRow",
            [
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "batch_id",
                        "is_deleted",
                        "object_id",
                        "object_key",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("batch_id", models.BigIntegerField()),
                ("is_deleted", models.BooleanField(db_default=False)),
                ("object_id", models.BigIntegerField(db_default=0)),
                (
                    "object_key",
                    autorun.state.fields.ObjectKeyField(max_length=255, blank=True, db_default=""),
                ),
            ],
            options={"base_manager_name": "objects"},
        ),
        migrations.AlterField(
            "batch",
            "trigger",
            models.CharField(
                max_length=16,
                choices=[
                    ("sweep", "Sweep"),
                    ("backfill", "Backfill"),
                    ("code", "Code"),
                    ("related", "Related"),
                    ("write", "Write"),
                ],
            ),
        ),
        migrations.AlterField(
            "chunk",
            "priority",
            models.SmallIntegerField(
                choices=[
                    (0, "Backfill"),
                    (10, "Sweep"),
                    (15, "Related"),
                    (16, "Write"),
                    (20, "Live"),
                ],
                default=0,
            ),
        ),
    ]
