"""OpenTelemetry spans for autorun. Needs `pip install django-autorun[otel]`.

    from autorun.contrib import otel

    otel.enable()

Call it once per process, for example in `AppConfig.ready()`. Until then nothing is traced, at no
cost. There are three kinds of spans. Their attributes all start with "autorun.":

- autorun.plan, a planning pass: runner, batch and trigger (if it has a batch), candidates, planned.
- autorun.chunk, a worker's processing of one message: runner, chunk, batch (0 for none), size,
  succeeded, failed.
- autorun.run, one run, inside its chunk's span: run, key, attempt, status.

Spans contain neither inputs nor outputs, and only the class of an exception unless `messages` is
given, because messages of exceptions often contain data. If keys of rows are personal data, too,
have your exporter leave out `autorun.key`: `autorun.run` leads to the row as well. Characters that
act on a terminal are replaced, as in the log.
"""

from typing import Any, Self

from autorun import __version__
from autorun.state import probes
from autorun.state.exception_text import ExceptionText
from autorun.state.words import harmless, in_one_line

try:
    from opentelemetry import trace
    from opentelemetry.trace import Status, StatusCode
except ImportError as missing:
    raise ImportError(
        "autorun.contrib.otel needs OpenTelemetry: pip install 'django-autorun[otel]'."
    ) from missing


def enable(tracer_provider: Any = None, *, messages: bool = False) -> None:
    """Create spans from now on, with the given tracer provider or the global one.

    With `messages`, a failed run's span also contains the exception's message and traceback.
    """
    tracer = trace.get_tracer("autorun", __version__, tracer_provider)
    probes.install(lambda name: _Span(tracer, name, messages=messages))


def disable() -> None:
    """Create no more spans."""
    probes.install(None)


class _Span(probes.Span):
    def __init__(self, tracer: Any, name: str, *, messages: bool) -> None:
        # `__exit__` records an exception that leaves the block, without its message.
        self._context = tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        )
        self._messages = messages

    def __enter__(self) -> Self:
        self._span: Any = self._context.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is not None:
            self._span.set_status(Status(StatusCode.ERROR, kind.__qualname__))
        self._context.__exit__(kind, *error)

    def note(self, **attributes: str | int | float) -> None:
        self._span.set_attributes(
            {f"autorun.{name}": _shown(each) for name, each in attributes.items()}
        )

    def fail(self, failure: ExceptionText) -> None:
        # These names are OpenTelemetry's semantic conventions for exceptions.
        described = {"exception.type": failure.exception_class}
        if self._messages:
            described["exception.message"] = harmless(failure.message)
            described["exception.stacktrace"] = harmless(failure.traceback)
        self._span.add_event("exception", described)
        self._span.set_status(Status(StatusCode.ERROR, failure.exception_class))


def _shown(value: str | int | float) -> str | int | float:
    return in_one_line(value) if isinstance(value, str) else value
