"""Spans around what takes time, for whoever wants them: see `autorun.contrib.otel`.

Nothing is measured, and next to nothing done, while no tracer is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from autorun.state.encoding import ExceptionText


class Span:
    """A stretch of work in a `with` block; this one records nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """What ends the block goes on."""

    def note(self, **attributes: str | int | float) -> None:
        """Say more about the work."""

    def fail(self, failure: ExceptionText) -> None:
        """Say that the work failed, although the block goes on."""


#: Makes the span of that name.
Tracer = Callable[[str], Span]

_SILENT = Span()
_tracer: Tracer | None = None


def install(tracer: Tracer | None) -> None:
    """Have spans made by `tracer` from now on; by none where it is None."""
    global _tracer  # noqa: PLW0603
    _tracer = tracer


def span(name: str) -> Span:
    """A span to open in a `with` statement."""
    return _SILENT if _tracer is None else _tracer(name)
