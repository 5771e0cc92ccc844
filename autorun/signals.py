"""Django signals about finished runs and batches.

from django.dispatch import receiver
from autorun.signals import run_failed

@receiver(run_failed, sender=ScanPreprocessingRunner)
def send_message(sender, key, failure, **kwargs):
    ...

The process that recorded the result sends a signal after its commit, at most once: a worker that is
killed in between sends none. Work that must happen for every row belongs in a runner with
DEPENDS_ON. A receiver blocks its worker; exceptions that it raises are only logged.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.dispatch import Signal

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.models import Batch
from autorun.state.exception_text import ExceptionText
from autorun.state.keys import Key
from autorun.state.user_code import UserCode

#: A run succeeded; not sent for adopted rows. `sender` is the runner's class, or None if it is no
#: longer registered, and `runner` its label. `run_id` is the primary key of the Run, `key` that of
#: the row, an int or the database's text. `attempts` is their number, `outputs` the decoded JSON.
run_succeeded = Signal()

#: A run failed, no attempts left, or its input could not be prepared, which takes no attempt. In
#: place of `outputs` there is `failure`, with `exception_class`, `message`, `traceback`
#: and `log_tail`.
run_failed = Signal()

#: All runs of a batch finished; not sent if it was cancelled or its planning failed. `sender` is
#: the runner's class or None, `batch` the Batch with its node.
batch_finished = Signal()


@dataclass(frozen=True)
class Ending:
    """The result of a run: `outputs` as JSON text, or `failure` if no attempts are left."""

    run_id: int
    key: Key
    attempts: int
    outputs: str | None = None
    failure: ExceptionText | None = None


def are_runs_heard() -> bool:
    return bool(run_succeeded.receivers or run_failed.receivers)


def announce_runs(label: str, endings: Iterable[Ending]) -> None:
    """Send a signal for each run when the open transaction has committed."""
    if not are_runs_heard():
        return
    ended = list(endings)
    sender = _runner_class(label)
    if not any(each.has_listeners(sender) for each in (run_succeeded, run_failed)):
        return

    def send_all() -> None:
        receivers = UserCode(f"A receiver of {label}'s signals")
        for ending in ended:
            with receivers:
                _send(ending, sender, label)

    transaction.on_commit(send_all, using=settings.DATABASE, robust=True)


def announce_batch(batch_id: int) -> None:
    """Send `batch_finished` when the open transaction has committed."""
    if not batch_finished.receivers:
        return

    def send() -> None:
        batch = Batch.objects.select_related("node").get(pk=batch_id)
        with UserCode("A receiver of batch_finished"):
            batch_finished.send_robust(_runner_class(batch.runner), batch=batch)

    transaction.on_commit(send, using=settings.DATABASE, robust=True)


def _send(ending: Ending, sender: type[Runner] | None, label: str) -> None:
    named: dict[str, Any] = {
        "run_id": ending.run_id,
        "key": ending.key,
        "runner": label,
        "attempts": ending.attempts,
    }
    if ending.failure is not None:
        run_failed.send_robust(sender, **named, failure=ending.failure)
    elif run_succeeded.has_listeners(sender):
        outputs = None if ending.outputs is None else json.loads(ending.outputs)
        run_succeeded.send_robust(sender, **named, outputs=outputs)


def _runner_class(label: str) -> type[Runner] | None:
    runner = registry.find(label)
    return None if runner is None else type(runner)
