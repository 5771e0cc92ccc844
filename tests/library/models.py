"""Models with every kind of primary key and of inheritance that autorun supports."""

import uuid

from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models


class Tag(models.Model):
    name = models.CharField(max_length=50)


class Label(models.Model):
    """Names a row of any model, as a tagged item of django-taggit does."""

    tag = models.ForeignKey(Tag, models.CASCADE)
    # Its table is made by a migration, after those of this app, which has none.
    content_type = models.ForeignKey(ContentType, models.CASCADE, db_constraint=False)
    object_id = models.IntegerField()
    content_object = GenericForeignKey()


class Document(models.Model):
    title = models.CharField(max_length=200)
    body = models.TextField(blank=True)
    state = models.CharField(max_length=20, blank=True)
    updated_at = models.DateTimeField(auto_now=True)
    tags = models.ManyToManyField(Tag, blank=True)


class DraftDocument(Document):
    class Meta:
        proxy = True


class Photo(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    caption = models.CharField(max_length=200, blank=True)


class Country(models.Model):
    code = models.CharField(primary_key=True, max_length=8)
    name = models.CharField(max_length=100, blank=True)


class Report(Document):
    """A child of multi-table inheritance: its primary key is the document's."""

    pages = models.IntegerField(default=1)
    #: Without a constraint, which would keep a test from changing the collation of the keys.
    country = models.ForeignKey(
        Country, models.SET_NULL, null=True, related_name="reports", db_constraint=False
    )


class Stamped(models.Model):
    stamp = models.CharField(max_length=50, blank=True)

    class Meta:
        abstract = True


class Note(Stamped):
    text = models.TextField(blank=True)


class Measurement(models.Model):
    taken_on = models.DateField()
    lasted = models.DurationField()
    value = models.FloatField()


class Meter(models.Model):
    number = models.PositiveBigIntegerField(primary_key=True)
    name = models.CharField(max_length=20)


class Site(models.Model):
    name = models.CharField(max_length=50)


class Patient(models.Model):
    code = models.CharField(max_length=20, unique=True)
    age = models.IntegerField(default=0)
    site = models.ForeignKey(Site, models.SET_NULL, null=True)


class Visit(models.Model):
    patient = models.ForeignKey(Patient, models.CASCADE, related_name="visits", to_field="code")
    label = models.CharField(max_length=50, blank=True)
    readers = models.ManyToManyField(Site, through="Reading", related_name="read")


class Reading(models.Model):
    visit = models.ForeignKey(Visit, models.CASCADE)
    site = models.ForeignKey(Site, models.CASCADE)


class Image(models.Model):
    visit = models.ForeignKey(Visit, models.CASCADE, null=True, related_name="images")
    path = models.CharField(max_length=100)
    modality = models.CharField(max_length=8, default="MR")
    size = models.IntegerField(null=True)


class Consent(models.Model):
    patient = models.OneToOneField(Patient, models.CASCADE)
    text = models.CharField(max_length=50)


class Summary(models.Model):
    """A body's findings in a document, with each type of field that can be landed."""

    document = models.OneToOneField(Document, models.CASCADE)
    label = models.CharField(max_length=20, unique=True, null=True)  # noqa: DJ001
    words = models.IntegerField(null=True)
    ratio = models.FloatField(null=True)
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    read_on = models.DateField(null=True)
    read_at = models.DateTimeField(null=True)
    took = models.DurationField(null=True)
    is_good = models.BooleanField(null=True)
    details = models.JSONField(null=True)
    uid = models.UUIDField(null=True)
    site = models.ForeignKey(Site, models.SET_NULL, null=True)
    changed_at = models.DateTimeField(auto_now=True)
