"""Pages of runs: a place in the list, and the runs from there."""

from dataclasses import dataclass
from typing import Self

from autorun.models import Run
from autorun.state.parameters import read_number

#: Columns that lists of runs do not load: a scope holds up to 30,000 keys.
LONG = ("outputs", "chunk__batch__scope")
#: The columns of a run that name its row and its runner.
NAMES = ("pk", "node_id", "chunk_id", "object_id", "object_key")


@dataclass(frozen=True)
class Cursor:
    """A place in the list: runs of older chunks, or older runs of the same one, come after it.

    In a failure group it is the id of a failure: the runs of older ones come after it.
    """

    chunk_id: int
    run_id: int

    def __str__(self) -> str:
        return f"{self.chunk_id}-{self.run_id}"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The cursor in `text`, or None if it is not one."""
        chunk_id, run_id = map(read_number, text.partition("-")[::2])
        return None if chunk_id is None or run_id is None else cls(chunk_id, run_id)

    @classmethod
    def of(cls, run: Run) -> Self:
        return cls(run.chunk_id, run.pk)


@dataclass(frozen=True)
class Page:
    """Some runs, and the place where the next ones begin; None at the end.

    A page that is neither full nor the last one ran out of its bounded number of queries.
    """

    runs: list[Run]
    after: Cursor | None
