"""Plain values of a YAML file against the type hints of the constructor that will receive them."""

from __future__ import annotations

import inspect
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from enum import Enum
from os import PathLike
from typing import Any, Literal, Union, get_args, get_origin


class _Open:
    def __repr__(self) -> str:
        return "(unknown)"


OPEN: Any = _Open()  # a value that could not be read: matches every hint

_SCALARS = (bool, int, float, str)
_FROM_TEXT = ("device", "dtype", "timedelta", "Size", "memory_format")  # classes whose callers take text or numbers


def signature(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """The parameters of a class or function and the hints of those that can be evaluated."""
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # a builtin without a signature takes anything
        parameters = {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}
    makers = [target.__new__, target.__init__] if inspect.isclass(target) else [target]
    hints: dict[str, Any] = {}
    for maker in makers:
        hints.update(_hints(maker))
    return parameters, {name: hint for name, hint in hints.items() if name in parameters}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The hints, each by itself if they cannot be evaluated together (names imported for type checkers only)."""
    try:
        return typing.get_type_hints(function)
    except Exception:
        inner = inspect.unwrap(function)
        scope = getattr(inner, "__globals__", {})
        hints = {}
        for name, hint in getattr(inner, "__annotations__", {}).items():
            holder = types.SimpleNamespace(__annotations__={name: hint})
            try:
                hints.update(typing.get_type_hints(holder, scope))
            except Exception:
                hints[name] = Any
        return hints


def matches(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a hint; a value that cannot be judged (a ``_target_`` node, an odd hint) does."""
    if value is OPEN or hint is Any or (isinstance(value, Mapping) and "_target_" in value):
        return True
    origin = get_origin(hint)
    if origin in _BY_ORIGIN:
        return _BY_ORIGIN[origin](value, get_args(hint))
    if origin is not None:
        return _fits_generic(value, origin, get_args(hint))
    if isinstance(hint, type | types.NoneType) or hint is None:
        return _fits_class(value, hint)
    return True


def _fits_union(value: Any, options: tuple[Any, ...]) -> bool:
    return any(matches(value, option) for option in options)


def _fits_literal(value: Any, options: tuple[Any, ...]) -> bool:
    return any(value == option and type(value) is type(option) for option in options)


def _fits_annotated(value: Any, arguments: tuple[Any, ...]) -> bool:
    return matches(value, arguments[0])


def _fits_tuple(value: Any, items: tuple[Any, ...]) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if len(items) == 2 and items[1] is Ellipsis:
        return all(matches(item, items[0]) for item in value)
    return not items or (len(items) == len(value) and all(map(matches, value, items)))


def _fits_callable(value: Any, _arguments: tuple[Any, ...]) -> bool:
    return not isinstance(value, (*_SCALARS, list, tuple, types.NoneType))


_BY_ORIGIN: dict[Any, Callable[[Any, tuple[Any, ...]], bool]] = {
    Union: _fits_union,
    types.UnionType: _fits_union,
    Literal: _fits_literal,
    typing.Annotated: _fits_annotated,
    tuple: _fits_tuple,
    abc.Callable: _fits_callable,
}


def _fits_generic(value: Any, origin: Any, items: tuple[Any, ...]) -> bool:
    if not isinstance(origin, type):
        return True
    if issubclass(origin, abc.Mapping):
        return isinstance(value, Mapping) and all(matches(v, items[-1]) for v in value.values())
    if issubclass(origin, abc.Iterable) and items:
        return isinstance(value, list | tuple) and all(matches(v, items[0]) for v in value)
    return _fits_class(value, origin)


def _fits_class(value: Any, hint: Any) -> bool:
    if hint in (None, types.NoneType) or value is None:
        return value is None and hint in (None, types.NoneType, object)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if isinstance(value, list | tuple):
        return _takes_list(hint)
    if isinstance(value, Mapping):
        return not issubclass(hint, Enum | PathLike | list | tuple | set)
    return _takes_scalar(value, hint)


def _takes_list(hint: type) -> bool:
    return hint is object or (issubclass(hint, abc.Iterable) and not issubclass(hint, abc.Mapping))


def _takes_scalar(value: Any, hint: type) -> bool:
    if isinstance(value, str) and issubclass(hint, abc.Sequence | abc.Set | abc.Mapping):
        return False
    if issubclass(hint, Enum | PathLike) or hint.__name__ in _FROM_TEXT:
        return isinstance(value, str | int)
    try:
        return isinstance(value, hint)
    except TypeError:  # a protocol that cannot be tested
        return True


def describe(hint: Any) -> str:
    """A hint as a message shows it: ``int, 'auto' or None``."""
    if get_origin(hint) in (Union, types.UnionType):
        names = list(dict.fromkeys(describe(option) for option in get_args(hint)))
        return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
    if get_origin(hint) is Literal:
        return " | ".join(repr(option) for option in get_args(hint))
    if hint in (None, types.NoneType):
        return "null"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
