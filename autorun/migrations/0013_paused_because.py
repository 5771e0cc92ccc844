from django.db import migrations, models


class Migration(migrations.Migration):
    """Why STOP_AFTER has paused a node or a batch."""

    dependencies = [("autorun", "0012_ranges_written")]
    operations = [
        migrations.AddField(
            "node",
            "paused_because",
            models.TextField(
                blank=True, db_default="", default="", help_text="Why STOP_AFTER has paused it."
            ),
        ),
        migrations.AlterField(
            "batch",
            "reason",
            models.TextField(
                blank=True,
                help_text="Why it was cancelled or failed, or STOP_AFTER paused it.",
            ),
        ),
    ]
