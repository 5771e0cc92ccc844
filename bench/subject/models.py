"""Rows to process, and the results of a receiver and a task written by hand."""

from django.db import models


class Item(models.Model):
    """A row that a runner processes."""

    title = models.CharField(max_length=100)
    weight = models.IntegerField(default=0)


class LongText(models.Model):
    """A row of half a megabyte."""

    text = models.TextField()


class ItemByHand(models.Model):
    """The same row for a receiver written by hand."""

    title = models.CharField(max_length=100)
    weight = models.IntegerField(default=0)


class PlainItem(models.Model):
    """The same row without a receiver."""

    title = models.CharField(max_length=100)
    weight = models.IntegerField(default=0)


class Owner(models.Model):
    """A row whose input is a set of others."""


class Member(models.Model):
    """A row of such a set."""

    owner = models.ForeignKey(Owner, on_delete=models.CASCADE, related_name="members")
    title = models.CharField(max_length=100)


class ResultByHand(models.Model):
    """The result of a task written by hand."""

    item = models.ForeignKey(ItemByHand, on_delete=models.CASCADE)
    outputs = models.JSONField()
    finished_at = models.DateTimeField(auto_now_add=True)
