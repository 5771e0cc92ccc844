"""The subcommands of `manage.py autorun`, in the order its help lists them."""

from __future__ import annotations

from autorun.management.subcommands.backfill import Backfill
from autorun.management.subcommands.batch_list import Batches
from autorun.management.subcommands.diagnosis import Doctor
from autorun.management.subcommands.explain import Explain
from autorun.management.subcommands.failure_list import Failures
from autorun.management.subcommands.holding import Cancel, Pause, Resume
from autorun.management.subcommands.marking import Adopt, Ignore
from autorun.management.subcommands.plan import Plan
from autorun.management.subcommands.prune import Prune
from autorun.management.subcommands.retry import Retry
from autorun.management.subcommands.run import RunPending
from autorun.management.subcommands.status import Status
from autorun.management.subcommands.subcommand import Subcommand
from autorun.management.subcommands.sweep import Sweep
from autorun.management.subcommands.sync import Sync

SUBCOMMANDS: tuple[type[Subcommand], ...] = (
    Status,
    Explain,
    Failures,
    Batches,
    Doctor,
    Plan,
    RunPending,
    Sweep,
    Backfill,
    Retry,
    Pause,
    Resume,
    Cancel,
    Adopt,
    Ignore,
    Sync,
    Prune,
)
