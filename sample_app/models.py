from pathlib import Path

from django.db import models


class Subject(models.Model):
    """One person or phantom that was scanned."""

    code = models.CharField(max_length=64, unique=True, help_text="DICOM's PatientID.")
    age = models.PositiveSmallIntegerField(null=True, blank=True, help_text="In years.")

    class Meta:
        ordering = ("code",)

    def __str__(self) -> str:
        return self.code


class Scan(models.Model):
    """One file of an imaging session."""

    path = models.CharField(max_length=500, unique=True)
    description = models.CharField(max_length=200, blank=True)
    modality = models.CharField(max_length=16, blank=True, help_text="As DICOM abbreviates it.")
    size = models.PositiveBigIntegerField(help_text="In bytes.")
    checksum = models.CharField(max_length=64, help_text="SHA-256 of the file's content.")
    subject = models.ForeignKey(
        Subject, models.SET_NULL, null=True, blank=True, related_name="scans"
    )
    # Landed by ScanPreprocessingRunner.
    mean = models.FloatField(null=True, blank=True, editable=False)
    deviation = models.FloatField(null=True, blank=True, editable=False)
    thumbnail = models.TextField(blank=True, editable=False, help_text="As a data: address.")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("path",)

    def __str__(self) -> str:
        return Path(self.path).name
