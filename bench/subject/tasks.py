"""The same work written by hand, without autorun."""

from __future__ import annotations

import time
from typing import Any

from celery import shared_task
from django.db import transaction

from bench.subject.models import ItemByHand, ResultByHand

MESSAGE_OF = 100


def announce(sender: Any, instance: ItemByHand, **kwargs: Any) -> None:
    """Send a message for every save."""
    pk = instance.pk
    transaction.on_commit(lambda: by_hand.delay(pk))


@shared_task(name="bench.by_hand", ignore_result=True)
def by_hand(pk: int) -> None:
    """Load the row and record one result."""
    began_at = time.time()
    item = ItemByHand.objects.get(pk=pk)
    outputs = {"length": len(item.title) * 2, "began_at": began_at}
    ResultByHand.objects.create(item=item, outputs=outputs)


@shared_task(name="bench.hundred_by_hand", ignore_result=True)
def hundred_by_hand(pks: list[int]) -> None:
    """Load a hundred rows and record only their results."""
    items = ItemByHand.objects.filter(pk__in=pks)
    ResultByHand.objects.bulk_create(
        ResultByHand(item=item, outputs={"length": len(item.title) * 2}) for item in items
    )
