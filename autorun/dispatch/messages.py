"""The messages that wake workers up: for a chunk, or for the rest of a batch."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from celery import current_app

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.hooks import timeout_of
from autorun.dispatch.publishing import Message, time_limit_after
from autorun.dispatch.sizes import rows_a_call
from autorun.models import Batch, Chunk

EXECUTE = "autorun.execute"
BACKFILL = "autorun.backfill"


def message_for(chunk: Chunk) -> Message:
    runner = registry.find(chunk.runner)
    return Message(
        task=EXECUTE,
        args=(chunk.pk,),
        queue=chunk.queue or None,
        priority=None if runner is None else runner.PRIORITY,
        time_limit=time_limit_after(longest(chunk)),
    )


def message_to_plan_on(batch: Batch, *, expires: float | None = None) -> Message:
    """The message that tells a worker to plan the rest of a batch."""
    return Message(
        task=BACKFILL,
        args=(batch.runner, None, None, None, False, None, None, batch.pk),
        queue=settings.QUEUE,
        expires=expires,
    )


def named_batch(args: Sequence[Any]) -> int | None:
    """The id of the batch in the arguments of a message, if that is one `message_to_plan_on`."""
    *_, batch_id = args if len(args) == 8 else (None,)
    return batch_id


def longest(chunk: Chunk) -> float | None:
    """The seconds after which all runs of `chunk` are over; None without a limit or known runner.

    A worker hands over the rest of a slow chunk, so that it takes about as long as one run, or as
    the calls that halve a batch. With BATCH_SIZE it executes all of them.
    """
    runner = registry.find(chunk.runner)
    timeout = None if runner is None else timeout_of(runner)
    if runner is None or timeout is None:
        return None
    calls = rows_a_call(runner).bit_length() if runner.BATCH_SIZE is None else chunk.size
    return timeout * calls


def queue_of(runner: Runner) -> str:
    """The Celery queue of a runner's chunks; '' if Celery chooses one."""
    return runner.QUEUE or settings.QUEUE or ""


def queue_name(queue: str) -> str:
    """The name of a chunk's queue, which is '' if Celery chooses one."""
    return Message(EXECUTE, queue=queue).queue_name


def queues_in_use() -> set[str]:
    """Names of the queues of runners and of autorun's own tasks."""
    queues = {queue_name(queue_of(runner)) for runner in registry.runners()}
    own = [task for task in current_app.tasks if task.startswith("autorun.") and task != EXECUTE]
    return queues | {Message(task, queue=settings.QUEUE).queue_name for task in own}


def follow_queues(chunks: Iterable[Chunk]) -> None:
    """Move the chunks to their runners' current queues: no worker may listen on a former one."""
    moved: dict[str, list[int]] = defaultdict(list)
    for chunk in chunks:
        runner = registry.find(chunk.runner)
        if runner is not None and chunk.queue != (queue := queue_of(runner)):
            chunk.queue = queue
            moved[queue].append(chunk.pk)
    for queue, ids in moved.items():
        Chunk.objects.filter(pk__in=ids).update(queue=queue)
