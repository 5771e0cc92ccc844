"""The subcommands of `manage.py autorun`, in the order its help lists them."""

from __future__ import annotations

from autorun.commands.backfill import Backfill
from autorun.commands.batches import Batches
from autorun.commands.doctor import Doctor
from autorun.commands.explain import Explain
from autorun.commands.failures import Failures
from autorun.commands.holding import Cancel, Pause, Resume
from autorun.commands.marking import Adopt, Ignore
from autorun.commands.plan import Plan
from autorun.commands.prune import Prune
from autorun.commands.retry import Retry
from autorun.commands.run import Run
from autorun.commands.status import Status
from autorun.commands.subcommand import Subcommand
from autorun.commands.sweep import Sweep
from autorun.commands.sync import Sync

SUBCOMMANDS: tuple[type[Subcommand], ...] = (
    Status,
    Explain,
    Failures,
    Batches,
    Doctor,
    Plan,
    Run,
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
