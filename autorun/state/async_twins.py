"""Async twins of methods: the method in a thread, as Django's own `aget()` is `get()`."""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
#: Items of an iterator that one visit to a thread fetches.
STEPS = 100


def twin(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """`method` for async code, with its arguments; a subclass overrides the method alone."""
    name = method.__name__

    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        current: Callable[P, R] = getattr(self, name)
        return await sync_to_async(current)(*args, **kwargs)

    return _named(call, method)


def iterator_twin(
    method: Callable[Concatenate[Any, P], Iterator[R]],
) -> Callable[Concatenate[Any, P], AsyncIterator[R]]:
    """`method` for `async for`: each step of its iterator in a thread."""
    name = method.__name__

    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        current: Callable[P, Iterator[R]] = getattr(self, name)
        found = await sync_to_async(current)(*args, **kwargs)
        while some := await sync_to_async(lambda: list(islice(found, STEPS)))():
            for each in some:
                yield each

    return _named(call, method)


def _named(call: T, method: Callable[..., Any]) -> T:
    twin: Any = call
    twin.__name__ = f"a{method.__name__}"
    twin.__qualname__ = method.__qualname__.replace(method.__name__, twin.__name__)
    twin.__doc__ = f"`{method.__name__}()` for async code."
    twin.__signature__ = inspect.signature(method)
    return call
