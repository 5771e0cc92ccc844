from django.db import migrations, models


class Migration(migrations.Migration):
    """Until when the successes of a node were not landed, because another version was in use."""

    dependencies = [("autorun", "0018_chunk_by_batch")]
    operations = [
        migrations.AddField(
            "node",
            "unlanded_at",
            models.DateTimeField(
                blank=True,
                help_text="Until when its successes are not landed: another version was in use.",
                null=True,
            ),
        ),
    ]
