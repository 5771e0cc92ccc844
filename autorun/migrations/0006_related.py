from django.db import migrations, models


class Migration(migrations.Migration):
    """Runs of rows whose related rows changed."""

    dependencies = [("autorun", "0005_unlocked_parents")]
    operations = [
        migrations.AlterField(
            "batch",
            "trigger",
            models.CharField(
                choices=[
                    ("sweep", "Sweep"),
                    ("backfill", "Backfill"),
                    ("code", "Code"),
                    ("related", "Related"),
                ],
                max_length=16,
            ),
        ),
        migrations.AlterField(
            "chunk",
            "priority",
            models.SmallIntegerField(
                choices=[(0, "Backfill"), (10, "Sweep"), (15, "Related"), (20, "Live")], default=0
            ),
        ),
    ]
