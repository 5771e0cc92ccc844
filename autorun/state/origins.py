"""The sources of runs: one line for each, with its word, its priority and its sentence."""

from collections.abc import Mapping
from dataclasses import dataclass

from django.db.models import Q
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation.trans_null import gettext_noop  # the usual one reads the settings

from autorun.models import Batch, Chunk


@dataclass(frozen=True)
class Origin:
    """One source of runs.

    `word` names it, and `sentence` tells why a run exists, with the placeholders {batch}, {rows},
    {upstream} and {related}. `chunks` holds for its chunks. Chunks of a higher `priority` go first.
    """

    word: str
    priority: int
    sentence: str
    chunks: Q


#: The priorities of rows that were written alone, by origin: their chunks have no other note of it.
WRITTEN = {"write": int(Chunk.Priority.WRITE), "related_write": 17, "added": 18, "removed": 19}

_SAVED = Q(batch=None, priority=Chunk.Priority.LIVE)
_RELATED = Q(batch=None, priority=Chunk.Priority.RELATED)
_DEPENDENT = Q(batch=None, priority__lt=Chunk.Priority.RELATED)
#: Runs that were adopted or ignored were never sent.
_SENT = ~Q(state=Chunk.State.FINISHED) | Q(published_at__isnull=False)


_BY_PRIORITY: Mapping[int, str] = {
    Chunk.Priority.LIVE: "save",
    Chunk.Priority.RELATED: "related",
    **{priority: name for name, priority in WRITTEN.items()},
}


#: Stored words that pages translate: who requested a batch, and why it was cancelled.
COMMAND_LINE, CANCELLED = gettext_noop("command line"), gettext_noop("Cancelled by %s.")


def _written(name: str) -> Q:
    return Q(batch=None, priority=WRITTEN[name])


class _Origins(dict[str, Origin]):
    """Origins by name; a batch of a newer version may have another."""

    def __missing__(self, name: str) -> Origin:
        rows = Q(batch__trigger=name)
        return Origin(
            name, Chunk.Priority.BACKFILL, gettext_noop("Started by {batch} ({rows})."), rows
        )


#: By the name that addresses use; for a batch it is its trigger.
ORIGINS: Mapping[str, Origin] = _Origins(
    {
        "save": Origin("save", Chunk.Priority.LIVE, gettext_noop("The row was saved."), _SAVED),
        "write": Origin(
            "write",
            Chunk.Priority.RELATED,  # of a batch: rows that are written alone go first
            gettext_noop("The row was written in the database."),
            Q(batch__trigger=Batch.Trigger.WRITE) | _written("write"),
        ),
        "related_write": Origin(
            "related write",
            WRITTEN["related_write"],
            gettext_noop("A related row that the runner reads ({related}) was written."),
            _written("related_write"),
        ),
        "added": Origin(
            "row added",
            WRITTEN["added"],
            gettext_noop("A row was added to a relation that the runner reads ({related})."),
            _written("added"),
        ),
        "removed": Origin(
            "row removed",
            WRITTEN["removed"],
            gettext_noop("A row was removed from a relation that the runner reads ({related})."),
            _written("removed"),
        ),
        "sweep": Origin(
            "sweep",
            Chunk.Priority.SWEEP,
            gettext_noop("Sweep {batch} found the row pending."),
            Q(batch__trigger=Batch.Trigger.SWEEP),
        ),
        "backfill": Origin(
            "backfill",
            Chunk.Priority.BACKFILL,
            gettext_noop("Started by backfill {batch} ({rows})."),
            Q(batch__trigger=Batch.Trigger.BACKFILL),
        ),
        "code": Origin(
            "run()",
            Chunk.Priority.SWEEP,
            gettext_noop("A run() call found the row pending."),
            Q(batch__trigger=Batch.Trigger.CODE),
        ),
        "related": Origin(
            "related row",
            Chunk.Priority.RELATED,
            gettext_noop("A related row that the runner reads ({related}) was saved."),
            _RELATED | Q(batch__trigger=Batch.Trigger.RELATED),
        ),
        "dependency": Origin(
            "dependency",
            Chunk.Priority.BACKFILL,
            gettext_noop("The runner depends on {upstream}, which had a new success on the row."),
            _DEPENDENT & _SENT,
        ),
    }
)


def origin_of(chunk: Chunk) -> str:
    """The name of the origin of the chunk's runs; '' if they were recorded without being sent.

    Its batch should have been loaded with it.
    """
    if chunk.batch is not None:
        return chunk.batch.trigger
    if chunk.priority in _BY_PRIORITY:
        return _BY_PRIORITY[chunk.priority]
    is_sent = chunk.state != Chunk.State.FINISHED or chunk.published_at is not None
    return "dependency" if is_sent else ""


def title_of_batch(batch: Batch) -> str:
    """The batch by what it does: "Backfill 5: failed rows"."""
    name = capfirst(name_of_batch(batch))
    if not batch.description:
        return name
    return _("%(batch)s: %(rows)s") % {"batch": name, "rows": _(batch.description)}


def name_of_batch(batch: Batch) -> str:
    return f"{_(ORIGINS[batch.trigger].word)} {batch.pk}"


def requester(name: str) -> str:
    """The stored name of the user who requested a batch, in the active language."""
    return name.replace(COMMAND_LINE, _(COMMAND_LINE))


def reason_in_words(reason: str) -> str:
    """Why a batch was cancelled, in the active language; any other reason as it is stored."""
    before, after = CANCELLED.split("%s")
    if not reason.startswith(before):
        return reason
    return _(CANCELLED) % requester(reason.removeprefix(before).removesuffix(after))
