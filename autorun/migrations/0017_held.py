from django.db import migrations, models


class Migration(migrations.Migration):
    """Since when sweeps and saves of a node are held, and by whom."""

    dependencies = [("autorun", "0016_log_tail")]
    operations = [
        migrations.AddField("node", "held_at", models.DateTimeField(blank=True, null=True)),
        migrations.AddField(
            "node",
            "held_by",
            models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Who holds its sweeps and saved rows.",
                max_length=255,
            ),
        ),
    ]
