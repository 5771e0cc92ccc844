from django.db import migrations, models


class Migration(migrations.Migration):
    """One note for many rows that one statement has written."""

    dependencies = [("autorun", "0011_cancelling")]
    operations = [
        migrations.AddField(
            "written",
            "last_id",
            models.BigIntegerField(
                blank=True, help_text="The last of the keys from object_id on, if many.", null=True
            ),
        ),
    ]
