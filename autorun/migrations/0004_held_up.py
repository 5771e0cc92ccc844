from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("autorun", "0003_spilled_tries")]
    operations = [
        migrations.AddField(
            "spilledtrigger",
            "reason",
            models.TextField(
                blank=True, db_default="", help_text="Why the last try planned none of them."
            ),
        ),
    ]
