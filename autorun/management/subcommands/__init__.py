"""The subcommands of `manage.py autorun`, in the order its help lists them."""

from autorun.management.subcommands.batch_list import Batches, Cancel, Hold, Pause, Resume
from autorun.management.subcommands.completion import Completion
from autorun.management.subcommands.diagnosis import Doctor, Explain, Failures
from autorun.management.subcommands.maintenance import Prune, Sync, Triggers
from autorun.management.subcommands.marking import Adopt, Ignore, Retry
from autorun.management.subcommands.plan import Backfill, Plan
from autorun.management.subcommands.reporting import Compare, Export, Outputs, Runs, Workers
from autorun.management.subcommands.run import RunPending, Sweep, Touch
from autorun.management.subcommands.status import Status
from autorun.management.subcommands.subcommand import Subcommand

SUBCOMMANDS: tuple[type[Subcommand], ...] = (
    *(Status, Explain, Failures, Runs, Outputs, Batches, Workers, Export, Compare, Doctor),
    *(Plan, RunPending, Sweep, Backfill, Touch),
    *(Retry, Pause, Hold, Resume, Cancel, Adopt, Ignore),
    *(Sync, Triggers, Prune, Completion),
)
Completion.subcommands = SUBCOMMANDS
