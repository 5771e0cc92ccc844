"""A function's arguments: the names it accepts, and values converted to its annotations."""

import copy
import inspect
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter
from types import SimpleNamespace
from typing import Any

from autorun.declare.conversion import Mismatch, convert
from autorun.exceptions import ConfigurationError
from autorun.state.words import suggestion


@dataclass(frozen=True)
class Problem:
    """One reason why a configuration does not fit an analysis, and how to correct it."""

    message: str
    hint: str


@dataclass(frozen=True)
class Arguments:
    """The arguments of `function`; messages name its `owner` and its `location`."""

    function: Callable[..., Any]
    owner: str
    location: str

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.function)

    @cached_property
    def type_hints(self) -> Mapping[str, Any]:
        """Annotations by argument; those that cannot be resolved are left out."""
        with suppress(Exception):
            return typing.get_type_hints(self.function)
        # A name imported for type checkers only must not hide the other annotations.
        module = sys.modules.get(self.function.__module__)
        hints: dict[str, Any] = {}
        for argument, annotation in inspect.get_annotations(self.function).items():
            alone = SimpleNamespace(__annotations__={argument: annotation})
            with suppress(Exception):
                hints |= typing.get_type_hints(alone, vars(module) if module else {})
        return hints

    @cached_property
    def returned(self) -> Any:
        """The function's return annotation; Any without one."""
        return self.type_hints.get("return", Any)

    def check(self, configuration: object, *receivers: str) -> list[Problem]:
        """List the reasons why the function cannot take `configuration` and these arguments."""
        if isinstance(configuration, Mapping):
            names = self._name_problems(configuration, receivers)
            return [*names, *self._type_problems(configuration)]
        kind = type(configuration).__name__
        return [Problem(f"The configuration of {self.owner} is of type {kind}.", "Make it a dict.")]

    def bind(
        self,
        configuration: Mapping[str, object],
        inputs: Mapping[str, object],
        *,
        kept: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return keyword arguments for one call, converted to their annotations.

        `kept` has what the configuration's immutable values were converted to, for the next call.
        Raises `ConfigurationError` if they do not fit the signature.
        """
        # The usual case: every name is known, and none is missing.
        names = configuration.keys() | inputs.keys()
        is_usual = len(names) == len(configuration) + len(inputs)
        if not (is_usual and self._required <= names <= self._named.keys()):
            problems = list(self._name_problems(configuration, inputs))
            if problems:
                words = " ".join(f"{each.message} {each.hint}" for each in problems)
                raise ConfigurationError(words)
        kept = {} if kept is None else kept
        arguments: dict[str, Any] = {**configuration, **kept, **inputs}
        try:
            for name, value in arguments.items():
                if name in inputs:
                    arguments[name] = self.convert(name, value)
                elif name not in kept and type(value) in _IMMUTABLE:
                    arguments[name] = kept[name] = self.convert(name, value)
                elif name not in kept:
                    # A function may change it; the next run must not see that.
                    arguments[name] = self.convert(name, copy.deepcopy(value))
            return arguments
        except Mismatch as error:
            raise ConfigurationError(f"{self.owner}: argument {error}.") from None

    def convert(self, name: str, value: object) -> Any:
        """Return `value` as the argument `name` receives it; raise `Mismatch` if it cannot."""
        parameter = self._named.get(name, self._variadic)
        # `size: int = None` accepts None.
        if parameter is None or value is parameter.default:
            return value
        annotation = self.type_hints.get(parameter.name, Any)
        if type(value) is annotation:
            return value
        try:
            return convert(value, annotation)
        except Mismatch as error:
            error.argument = name
            raise

    @cached_property
    def _named(self) -> dict[str, Parameter]:
        kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        return {
            name: each for name, each in self.signature.parameters.items() if each.kind in kinds
        }

    @cached_property
    def _variadic(self) -> Parameter | None:
        parameters = self.signature.parameters.values()
        return next((each for each in parameters if each.kind is Parameter.VAR_KEYWORD), None)

    @cached_property
    def _required(self) -> frozenset[str]:
        parameters = self.signature.parameters.values()
        return frozenset(each.name for each in parameters if each.default is Parameter.empty)

    def _accepts(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._named or self._variadic is not None)

    def _name_problems(
        self, configuration: Mapping[str, object], receivers: Collection[str]
    ) -> Iterator[Problem]:
        missing = [
            name
            for name in self._named
            if name in self._required and name not in configuration and name not in receivers
        ]
        for receiver in receivers:
            if not self._accepts(receiver):
                advice = f"Did you mean {missing[0]!r}?" if len(missing) == 1 else ""
                yield Problem(
                    f"{self.owner} has no argument {receiver!r} to receive the input.",
                    advice or self._suggestion(receiver),
                )
                if advice:  # one mistake is one problem
                    missing.clear()
            elif receiver in configuration:
                yield Problem(
                    f"Argument {receiver!r} of {self.owner} receives the input, but is in the "
                    "configuration as well.",
                    f"Remove {receiver!r} from the configuration, or choose another argument.",
                )
        for name in configuration:
            if not self._accepts(name):
                yield Problem(f"{self.owner} has no argument {name!r}.", self._suggestion(name))
        for name in missing:
            yield Problem(
                f"{self.owner} requires the argument {name!r}.",
                f"Add {name!r} to the configuration, or give it a default in {self.location}.",
            )
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is Parameter.POSITIONAL_ONLY and name in self._required:
                yield Problem(
                    f"Argument {name!r} of {self.owner} is positional-only, but analyses are "
                    "called by name.",
                    f"Remove the '/' from the signature of {self.location}, or give {name!r} a "
                    "default.",
                )

    def _type_problems(self, configuration: Mapping[str, object]) -> Iterator[Problem]:
        for name, value in configuration.items():
            try:
                if self._accepts(name):
                    self.convert(name, value)
            except Mismatch as error:
                yield Problem(
                    f"{self.owner}: argument {error}.",
                    f"Change the value, or the annotation in {self.location}.",
                )

    def _suggestion(self, name: object) -> str:
        known = f"{self.location} has no arguments that can be passed by name."
        if self._named:
            known = f"Arguments of {self.location}: {', '.join(map(repr, self._named))}."
        return suggestion(str(name), self._named, otherwise=known)


_IMMUTABLE = {type(None), bool, int, float, str}
