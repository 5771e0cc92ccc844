"""Django signals about what ended, for code that wants to react to it.

from django.dispatch import receiver
from autorun.declare.runner import Runner
from autorun.signals import run_failed

@receiver(run_failed, sender=ScanPreprocessingRunner)
def tell_somebody(sender, key, failure, **kwargs):
    ...

They are sent by the process that recorded the result, after the transaction that recorded it, and
once at most: a worker that is killed in between sends none. Work that must happen for every row
belongs in a runner with DEPENDS_ON. What a receiver raises is logged and hurts nothing; while a
receiver works, its worker does nothing else. Without receivers nothing is loaded and nothing sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.dispatch import Signal

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.runner import Runner
from autorun.models import Batch
from autorun.state.exception_text import ExceptionText
from autorun.state.keys import Key
from autorun.state.user_code import UserCode

#: One run succeeded. `sender` is the runner's class, or None where it is registered no more;
#: `run_id` the primary key of its Run; `key` that of the row, as autorun keeps it: an int, or the
#: database's text; `runner` the label; `attempts` how many it took; `outputs` what it returned, as
#: JSON holds it. Adopted rows have not run, and send none.
run_succeeded = Signal()

#: One run failed for good: its attempts are used up, or its input could not be prepared, which
#: takes no attempt. `failure` has `exception_class`, `message` and `traceback`, in place of
#: `outputs`; the rest is as with `run_succeeded`.
run_failed = Signal()

#: All that one batch planned has ended. `sender` is the runner's class or None; `batch` the Batch,
#: with its node. Batches that are cancelled, or whose planning broke off, send none.
batch_finished = Signal()


@dataclass(frozen=True)
class Ending:
    """How a run ended; `outputs` is JSON text, and `failure` is there where it failed for good."""

    run_id: int
    key: Key
    attempts: int
    outputs: str | None = None
    failure: ExceptionText | None = None


def are_runs_heard() -> bool:
    """Whether anybody listens to how runs end."""
    return bool(run_succeeded.receivers or run_failed.receivers)


def announce_runs(label: str, endings: Iterable[Ending]) -> None:
    """Send a signal for each run, when the open transaction has committed."""
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
    """Send `batch_finished`, when the open transaction has committed."""
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
