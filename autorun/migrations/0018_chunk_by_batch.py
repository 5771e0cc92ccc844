from django.db import migrations, models


class Migration(migrations.Migration):
    """A release passes over the chunks of a paused batch."""

    dependencies = [("autorun", "0017_held")]
    operations = [
        migrations.AddIndex(
            "chunk",
            models.Index(
                fields=["node", "state", "batch", "-priority", "id"], name="autorun_chunk_by_batch"
            ),
        ),
        migrations.AlterField(
            "chunk",
            "postponed_by",
            models.TextField(
                blank=True,
                db_default="",
                default="",
                help_text="Why its runs wait until then: a RetryLater, or damping.",
            ),
        ),
    ]
