from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("autorun", "0002_storage")]
    operations = [
        migrations.AddField(
            "spilledtrigger",
            "tries",
            models.PositiveSmallIntegerField(
                db_default=0,
                help_text="How many processes have started to plan them and did not finish.",
            ),
        ),
        migrations.AddField(
            "spilledtrigger",
            "expires_at",
            models.DateTimeField(
                null=True, blank=True, help_text="When another process may plan them."
            ),
        ),
    ]
