"""Dataclasses of settings: to and from JSON values, checked, and changed by the names of their fields."""

import dataclasses
import json
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from tokvid.errors import UserError, did_you_mean

PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
T = TypeVar("T")


def at_least(config: Any, least: int, *names: str) -> None:
    """UserError where one of these fields is, or contains, a number below `least`."""
    for name in names:
        value = getattr(config, name)
        if any(not number >= least for number in (value if isinstance(value, tuple) else (value,))):
            raise UserError(f"{name} should be {least} or more, got {value}")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON-ready plain values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Builds a config dataclass from JSON values; UserError on an unknown or mistyped field. Never runs code.

    Messages begin with `where`; "" for values of no file. A field of an earlier version (`kind.retired`) is accepted
    with its one remaining value.
    """
    begins, owner = (f"{where}: ", f"{where}.") if where else ("", "")
    if not isinstance(values, Mapping):
        names = ", ".join(field.name for field, _ in _fields(kind))
        raise UserError(
            f"{where} should be an object of {kind.__name__}'s fields, got {reprlib.repr(values)}; they are {names}"
        )
    values = getattr(kind, "renamed", lambda values: values)(values)
    hints = {field.name: hint for field, hint in _fields(kind)}
    retired, kwargs = getattr(kind, "retired", {}), {}
    for name, value in values.items():
        if name in retired and name not in hints:
            if value != retired[name]:
                raise UserError(
                    f"{owner}{name} can only be {retired[name]!r} in this version, got {reprlib.repr(value)}"
                )
            continue
        if name not in hints:
            raise UserError(f"{begins}{did_you_mean(name, hints, 'field')}")
        kwargs[name] = _from_json(hints[name], value, f"{owner}{name}")
    required = (field for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING)  # type: ignore[arg-type]
    for field in required:
        if field.name not in kwargs:
            raise UserError(f"{begins}{field.name} is missing")
    try:
        return kind(**kwargs)
    except UserError as error:  # from the class's own checks
        raise UserError(f"{begins}{error}") from error


def _fields(kind: Any) -> list[tuple[dataclasses.Field, Any]]:
    """A dataclass's fields with their types."""
    hints = typing.get_type_hints(kind)
    return [(field, hints[field.name]) for field in dataclasses.fields(kind)]


def _from_json(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # T | None
        return None if value is None else _from_json(kinds[0], value, where)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise UserError(f"{where} should be an object of names and values, got {reprlib.repr(value)}")
        return {name: _from_json(kinds[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin is tuple:
        any_length = kinds[-1] is Ellipsis
        if not isinstance(value, list) or not (any_length or len(value) == len(kinds)):
            raise UserError(
                f"{where} should be a list{'' if any_length else f' of {len(kinds)}'}, got {reprlib.repr(value)}"
            )
        each = kinds[:1] * len(value) if any_length else kinds
        items = enumerate(zip(each, value, strict=True))
        return tuple(_from_json(kind, item, f"{where}[{i}]") for i, (kind, item) in items)
    if origin is Literal:
        if value not in kinds:
            raise UserError(f"{where}: {did_you_mean(value, kinds, 'value')}")
        return value
    if hint is float and type(value) is int and abs(value) < 2**1000:  # larger ones overflow a float
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} should be {PLAIN[hint]}, got {reprlib.repr(value)}")
    if hint is float and not math.isfinite(value):  # Python reads NaN, which is no JSON
        raise UserError(f"{where} should be a finite number, got {value!r}")
    return value


def changed(recipe: T, changes: Mapping[str, Any]) -> T:
    """Settings in groups with some fields changed: {"data.fps": (2, 4), "layouts.tasks.infilling": 0.1}."""
    values = to_dict(recipe)
    if not isinstance(changes, Mapping):
        raise UserError(f"changes should be a mapping of fields and values, got {changes!r:.60}")
    for name, value in changes.items():
        holder, field, _ = _place(values, name)
        holder[field] = list(value) if isinstance(value, tuple) else value
    return from_dict(type(recipe), values, "recipe")


def overridden(recipe: T, overrides: list[str]) -> T:
    """["--data.fps", "2", "4", "--data.path=clips"] → settings in groups with these fields changed.

    Of a field with named values, `--layouts.tasks.infilling 0.1` changes one.
    """
    changes: dict[str, list[str]] = {}
    for word in overrides:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            changes[name] = [value] if equals else []
        else:
            changes[name].append(word)
    values = to_dict(recipe)
    for name, words in changes.items():
        holder, field, before = _place(values, name)
        is_list = isinstance(before, list)
        example = next(iter(before), "") if is_list else before  # lists that are empty by default hold names
        parsed = [word if isinstance(example, str) else _value(word) for word in words]
        if not is_list and len(parsed) != 1:
            raise UserError(f"--{name} takes one value, got {len(parsed)}")
        holder[field] = parsed if is_list else parsed[0]
    return from_dict(type(recipe), values, "recipe")


def _place(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str, Any]:
    """The object that holds a field of settings in groups, as JSON values, its name there, and a value of its type."""
    group, _, field = name.partition(".")
    holder = values.get(group, {})
    if field in holder and not isinstance(holder[field], dict):
        return holder, field, holder[field]
    field, _, key = field.partition(".")
    if key and isinstance(holder.get(field), dict):
        return holder[field], key, 0.0
    names = []
    for group, fields in values.items():
        for field, value in fields.items():
            keys = [f".{key}" for key in value] if isinstance(value, dict) else [""]
            names += [f"{group}.{field}{key}" for key in keys]
    raise UserError(did_you_mean(name, names, "field of the recipe"))


def _value(word: str) -> Any:
    """A number or a truth value where it is one, else the word itself."""
    try:
        return json.loads({"True": "true", "False": "false"}.get(word, word))
    except ValueError:
        return word
