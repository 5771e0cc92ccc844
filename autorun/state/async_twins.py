"""Async twins of methods: the method in a thread, as Django's own `aget()` is `get()`."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

P = ParamSpec("P")
R = TypeVar("R")


def twin(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """`method` for async code, with its arguments; a subclass overrides the method alone."""
    name = method.__name__

    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        current: Callable[P, R] = getattr(self, name)
        return await sync_to_async(current)(*args, **kwargs)

    call.__name__ = f"a{name}"
    call.__qualname__ = method.__qualname__.replace(name, call.__name__)
    call.__doc__ = f"`{name}()` for async code."
    call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return call
