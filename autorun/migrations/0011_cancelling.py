from django.db import migrations, models


class Migration(migrations.Migration):
    """Running runs that are to be cancelled, and what a body says of itself."""

    dependencies = [("autorun", "0010_at_rest")]
    operations = [
        migrations.AddField(
            "chunk",
            "cancelling",
            models.JSONField(
                blank=True, help_text="The ids of runs that its worker is to cancel.", null=True
            ),
        ),
        migrations.AddField(
            "chunk",
            "doing",
            models.JSONField(
                blank=True,
                help_text="How far the body that is running has got, as it says.",
                null=True,
            ),
        ),
    ]
