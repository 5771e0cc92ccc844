"""A digest of the code of an analysis: of its function and what that uses of the project.

It is of syntax trees, so comments, docstrings, the layout and the place of a function do not change
it. Names are followed through the project's modules without running anything: to functions, classes
and assignments.
"""

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, TypeAlias

from django.db.models import Model

_Used: TypeAlias = "tuple[_Module, str, ast.stmt]"

_KINDS = ("stdlib", "platstdlib", "purelib", "platlib")
_FOREIGN = tuple({Path(sysconfig.get_path(kind)).resolve() for kind in _KINDS})
_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@cache
def code_digest(function: Callable[..., Any]) -> str:
    """SHA-256, in hex, of the function's code and the project's that it uses; "" if unreadable."""
    # Computed once per process, which runs the code that it has imported.
    with suppress(Exception):  # sources may be anything, and gone
        return _digest(inspect.unwrap(function))
    return ""


def _digest(function: Any) -> str:
    module = _Module.named(function.__module__)
    tree = None if module is None else module.function(function)
    if module is None or tree is None:
        return ""
    parts: dict[str, str] = {}
    waiting: list[_Used] = [(module, function.__qualname__, tree)]
    while waiting:
        module, name, tree = waiting.pop()
        part = f"{module.name}:{name}"
        if part not in parts:
            parts[part] = _written(tree)
            waiting += _used(module, tree)
    written = "\n".join(sorted(parts.values()))
    return hashlib.sha256(written.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, eq=False)
class _Module:
    """The definitions and imports at the top of one of the project's modules."""

    name: str
    tree: ast.Module
    definitions: dict[str, ast.stmt]
    #: What each imported name stands for: a module, and the name in it or "".
    imports: dict[str, tuple[str, str]]

    @staticmethod
    @cache
    def named(name: str) -> "_Module | None":
        """The module; None if it is not the project's, or has no source."""
        spec = _spec(name)
        if spec is None or spec.loader is None or _is_foreign(spec):
            return None
        source = spec.loader.get_source(name)  # type: ignore[attr-defined]
        tree = ast.parse(source or "")
        definitions = {each: node for node in _top(tree) for each in _defined(node)}
        is_package = spec.submodule_search_locations is not None
        return _Module(name, tree, definitions, _imports(tree, name, is_package=is_package))

    def function(self, function: Any) -> ast.stmt | None:
        """The definition of a function, which may be in a class or in another function."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                if first == function.__code__.co_firstlineno and node.name == function.__name__:
                    return node
        return None


@cache
def _spec(name: str) -> ModuleSpec | None:
    """Where the module is; found without importing the packages that it is in."""
    package = name.rpartition(".")[0]
    if not package:
        with suppress(ValueError):  # __main__
            return importlib.util.find_spec(name)
        return None
    parent = _spec(package)
    if parent is None or _is_foreign(parent):
        return None
    return PathFinder.find_spec(name, parent.submodule_search_locations)


def _is_foreign(spec: ModuleSpec) -> bool:
    """Whether the module belongs to Python, an installed package or autorun."""
    path = Path(spec.origin or "").resolve()
    is_installed = "site-packages" in path.parts or "dist-packages" in path.parts
    is_pythons = not path.is_file() or any(place in path.parents for place in _FOREIGN)
    return is_installed or is_pythons or spec.name.partition(".")[0] == "autorun"


def _top(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a module, and those within its `if` and `try` statements."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt):
            yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _top(node)


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (each.id for each in ast.walk(target) if isinstance(each, ast.Name))


def _imports(tree: ast.AST, module: str, *, is_package: bool) -> dict[str, tuple[str, str]]:
    """Return the module and the name behind each imported name, also within functions."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                name = each.name if each.asname else each.name.partition(".")[0]
                found[each.asname or name] = (name, "")
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                source = ".".join([*kept, *filter(None, [source])])
            for each in node.names:
                found[each.asname or each.name] = (source, each.name)
    return found


def _used(module: _Module, tree: ast.AST) -> Iterator[_Used]:
    """The project's definitions that a piece of code names, without its models."""
    for node in ast.walk(tree):
        dotted = _dotted(node)
        found = _resolved(module, dotted) if dotted else None
        if found is not None and not _is_model(found[0].name, found[1]):
            yield found


def _is_model(module: str, name: str) -> bool:
    """Whether the name is a model, whose fields change without changing an analysis."""
    known = getattr(sys.modules.get(module), name, None)
    return isinstance(known, type) and issubclass(known, Model)


def _dotted(node: ast.AST) -> list[str]:
    """`["a", "b"]` for the expression `a.b`; empty for others."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def _resolved(module: _Module, dotted: list[str], depth: int = 20) -> "_Used | None":
    first, *rest = dotted
    if first in module.definitions:
        return module, first, module.definitions[first]
    if first not in module.imports or not depth:
        return None
    source, name = module.imports[first]
    rest = [name, *rest] if name else rest
    # The longest part that is a module: `package.module.function`.
    while rest and (found := _Module.named(source)) is not None:
        if rest[0] in found.definitions or rest[0] in found.imports:
            return _resolved(found, rest, depth - 1)
        source, rest = f"{source}.{rest[0]}", rest[1:]
    return None


def _written(node: Any) -> str:
    """A syntax tree as text, the same in every version of Python, without docstrings."""
    # Also without the `@analysis` line, whose title and version are compared anyway.
    if isinstance(node, list):
        return f"[{','.join(map(_written, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, _DOCUMENTED):
        fields["decorator_list"] = [each for each in node.decorator_list if not _is_analysis(each)]
        if ast.get_docstring(node, clean=False) is not None:
            fields["body"] = node.body[1:]
    # Newer versions have more fields, which are empty as a rule.
    parts = (f"{name}={_written(each)}" for name, each in fields.items() if each not in (None, []))
    return f"{type(node).__name__}({','.join(parts)})"


def _is_analysis(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return _dotted(called)[-1:] == ["analysis"]
