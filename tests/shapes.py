"""While testing, the shapes in the signatures of the tensor modules are enforced.

beartype checks what a function is given and what it returns against its annotations, and jaxtyping
keeps the sizes of the axes that they name for the length of a call. jaxtyping's own import hook
checks twice, before a call and after it, and keeps sizes for functions without any shape, too;
small runs took a fifth longer with it.
"""

import ast
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, TypeVar, get_args

import torch
from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Class = TypeVar("_Class", bound=type)

_UNKNOWN = object()
"""The kind of what may hold anything."""


def enforce(modules: Sequence[str]) -> None:
    """Check the signatures in these modules, and in those below them, from their imports on."""
    if early := [name for name in modules if name in sys.modules]:
        raise ImportError(f"imported before their shapes could be checked: {', '.join(early)}")
    sys.meta_path.insert(0, _Finder(tuple(modules)))


def checked(function: _Function) -> _Function:
    """Return a function that checks what it is given and what it returns.

    What has the types, shapes and numbers that were right before is not checked again.
    """
    called = beartype(function)
    if not _names_shapes(function.__annotations__.values()):
        return called
    right: dict[Any, set[Any]] = {}
    returned: list[Any] = []

    @functools.wraps(function)
    def return_again(*args: Any, **kwargs: Any) -> Any:
        return returned.pop()

    called_again = beartype(return_again)

    @functools.wraps(function)
    def outer(*args: Any, **kwargs: Any) -> Any:
        given: tuple[Any, ...] = (_UNKNOWN,)  # as shapes without numbers are, while compiling
        if not torch.compiler.is_compiling():
            given = (*map(_kind, args), *kwargs, *map(_kind, kwargs.values()))
        if given not in right:
            with jaxtyped("context"):  # in which an axis has one size
                result = called(*args, **kwargs)
        else:
            result = function(*args, **kwargs)
            if _kind(result) in right[given]:
                return result
            returned.append(result)
            with jaxtyped("context"):
                called_again(*args, **kwargs)
        if _UNKNOWN not in given:
            right.setdefault(given, set()).add(_kind(result))
        return result

    return outer


def checked_class(cls: _Class) -> _Class:
    """Return a class; if it is a dataclass, its fields are checked when it is made."""
    if dataclasses.is_dataclass(cls) and "__init__" in vars(cls):
        cls.__init__ = checked(cls.__init__)
    return cls


def _kind(value: Any) -> Any:
    """Return all that is checked of a value, if that is little."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, (int, str)):
        return type(value), value
    return _UNKNOWN if isinstance(value, Iterable) else type(value)


def _names_shapes(hints: Any) -> bool:
    return any(
        (isinstance(hint, type) and issubclass(hint, AbstractArray))
        or _names_shapes(get_args(hint))
        for hint in hints
    )


class _Finder(MetaPathFinder):
    """Finds some modules as usual and has them loaded with checks."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self._modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in self._modules):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Loads a module with decorators on all its functions and classes."""

    def get_code(self, fullname: str) -> CodeType:
        # Not as the base class does it, which would keep this in the folder of compiled files.
        path = self.get_filename(fullname)
        tree = _Decorating().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[checked.__name__] = checked
        vars(module)[checked_class.__name__] = checked_class
        super().exec_module(module)


class _Decorating(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Add a decorator below all others, which may hide a signature."""
        self.generic_visit(node)
        node.decorator_list.append(ast.Name(checked.__name__, ast.Load()))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """Add a decorator above all others, of which one makes dataclasses."""
        self.generic_visit(node)
        node.decorator_list.insert(0, ast.Name(checked_class.__name__, ast.Load()))
        return node
