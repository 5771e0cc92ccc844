"""Rows to process, and where a receiver and a task written by hand keep what they did."""

from django.db import models


class Item(models.Model):
    """A row that a runner is about."""

    title = models.CharField(max_length=100)
    weight = models.IntegerField(default=0)


class ItemByHand(models.Model):
    """The same row for a receiver written by hand."""

    title = models.CharField(max_length=100)
    weight = models.IntegerField(default=0)


class PlainItem(models.Model):
    """The same row that nobody listens to."""

    title = models.CharField(max_length=100)
    weight = models.IntegerField(default=0)


class ResultByHand(models.Model):
    """What a task written by hand records."""

    item = models.ForeignKey(ItemByHand, on_delete=models.CASCADE)
    outputs = models.JSONField()
    finished_at = models.DateTimeField(auto_now_add=True)
