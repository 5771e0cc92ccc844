"""Spans around the steps that take time; see `autorun.contrib.otel`.

Without an installed tracer they measure nothing and cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from autorun.state.exception_text import ExceptionText


class Span:
    """A step of work in a `with` block; this one records nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the span; an exception propagates."""

    def note(self, **attributes: str | int | float) -> None:
        """Add attributes to the span."""

    def fail(self, failure: ExceptionText) -> None:
        """Mark the span as failed, although nothing is raised."""


#: Makes the span of that name.
Tracer = Callable[[str], Span]

_SILENT = Span()
_tracer: Tracer | None = None


def install(tracer: Tracer | None) -> None:
    """Have `tracer` make the spans from now on; None turns tracing off."""
    global _tracer  # noqa: PLW0603
    _tracer = tracer


def span(name: str) -> Span:
    """A span to open in a `with` statement."""
    return _SILENT if _tracer is None else _tracer(name)
