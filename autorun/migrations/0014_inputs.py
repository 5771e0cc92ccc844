from django.db import migrations, models


class Migration(migrations.Migration):
    """The definitions of the input that a node's fingerprints were made with."""

    dependencies = [("autorun", "0013_paused_because")]
    operations = [
        migrations.AddField(
            "node",
            "inputs",
            models.JSONField(
                blank=True,
                help_text="The definitions of the input that its runs have had.",
                null=True,
            ),
        ),
    ]
