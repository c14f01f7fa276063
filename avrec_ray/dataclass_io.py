"""Dataclass configs to and from plain dicts, strictly. Used for Serve args, checkpoint and bundle metadata."""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from avrec_ray.errors import ConfigError

T = TypeVar("T")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`.

    >>> check_choice("index.backend", "flat", {"flat": 1})
    """
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is not one of {sorted(choices)}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ConfigError unless low <= value <= high.

    >>> check_range("seed", 3, 0)
    """
    if not low <= value <= high:
        raise ConfigError(f"{name}={value!r} is outside [{low}, {high}]")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass instance as nested plain dicts and lists, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Build dataclass `cls` from nested plain values; unknown keys and wrong types raise ConfigError.

    Strings that hold numbers are accepted for numeric fields, because PyYAML reads `3e-4` as a string
    where OmegaConf reads a float, and Serve reads its config with PyYAML.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or cls.__name__}: got {type(values).__name__}, expected a mapping")
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := set(values) - names:
        where = path or cls.__name__
        raise ConfigError(f"{where}: unknown key {sorted(unknown)[0]!r}; expected one of {sorted(names)}")
    built = {key: _convert(hints[key], value, f"{path}.{key}" if path else key) for key, value in values.items()}
    if missing := [f.name for f in dataclasses.fields(cls) if _is_required(f) and f.name not in built]:  # type: ignore[arg-type]
        raise ConfigError(f"{path or cls.__name__}: key {missing[0]!r} is missing; it has no default")
    return cls(**built)


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, path)
    if origin is list:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}={value!r}: got {type(value).__name__}, expected a list")
        return [_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={value!r}: got {type(value).__name__}, expected a mapping")
        return {str(k): _convert(args[1], v, f"{path}.{k}") for k, v in value.items()}
    return _convert_scalar(hint, value, path)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = hint(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is not None and (hint is float or float(value) == number):
            return number
    elif isinstance(hint, type) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise ConfigError(f"{path}={value!r}: got {type(value).__name__}, expected {getattr(hint, '__name__', hint)}")
