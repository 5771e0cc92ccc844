from django.db import models


class Specimen(models.Model):
    """A row to process. `does` is what befalls the body: see `tests.faultlab.bodies`."""

    value = models.CharField(max_length=200, blank=True)
    does = models.CharField(max_length=200, blank=True)
    landed = models.CharField(max_length=200, blank=True, help_text="What its body returned.")
