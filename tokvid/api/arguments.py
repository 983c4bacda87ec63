"""Arguments of functions and methods: those of another type are told in one line, before anything is made."""

import functools
import inspect
import operator
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

from tokvid.errors import UserError
from tokvid.io.settings import PLAIN

P = ParamSpec("P")
R = TypeVar("R")


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with `check_types` before each call."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_types(function, args, kwargs)
        return function(*args, **kwargs)

    return call


def check_types(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """UserError for an argument that should be a number, or True or False, by its annotation, and is not."""
    parameters = inspect.signature(function).parameters.values()
    named = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    hints = hints_of(function)
    for name, value in [*zip(named, args, strict=False), *kwargs.items()]:
        hint = hints.get(name)
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        plain = all(kind in (int, float, bool, types.NoneType) for kind in kinds)
        if plain and not any(fits(kind, value) for kind in kinds):
            raise UserError(f"{name} should be {PLAIN[kinds[0]]}, got {reprlib.repr(value)}")


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's arguments, those in its `**settings` included."""
    hints: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (settings,) = typing.get_args(parameter.annotation)
            hints |= settings.__annotations__
        else:
            hints[parameter.name] = parameter.annotation
    return hints


def fits(kind: type, value: Any) -> bool:
    """Whether a value is an int, a float or a bool, or None; kinds of NumPy count, texts and bools are no numbers."""
    if kind is types.NoneType or value is None:
        return kind is types.NoneType and value is None
    if kind is bool or isinstance(value, bool | np.bool_):
        return kind is bool and isinstance(value, bool | np.bool_)
    if isinstance(value, str | bytes):  # float("2") is a number, "2" is none
        return False
    try:
        operator.index(value) if kind is int else float(value)  # also of arrays without an axis
    except OverflowError:  # too large for a float, as the checks of ranges find
        return True
    except (TypeError, ValueError):
        return False
    return True
