"""Hooks: how classes that msgspec does not know are stored and restored.

A hook belongs to the codec that it was given to; there is no registry. Hooks are asked in order,
the user's before the ones built in. Classes that msgspec knows by itself (structs, dataclasses,
attrs, enums, dates) never reach a hook.

Invariants:
    No library is imported here: a Pydantic model is known by what its class carries.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

__all__ = ["BUILT_IN_HOOKS", "TypeHook", "path_hook", "pydantic_hook"]


class TypeHook(msgspec.Struct, frozen=True, kw_only=True):
    """How the classes of one family are stored.

    >>> hook = TypeHook(
    ...     matches=lambda cls: issubclass(cls, complex),
    ...     encode=lambda value: [value.real, value.imag],
    ...     decode=lambda cls, data: cls(*data),
    ... )
    """

    matches: Callable[[type[Any]], bool]
    """Whether this hook is for a class. Asked once per class and codec."""
    encode: Callable[[Any], Any]
    """The value as data that msgspec can encode; `msgspec.Raw` for finished JSON."""
    decode: Callable[[Any, Any], Any]
    """`(class, data) -> value`. A ValueError or TypeError means that the data does not fit."""
    parts: Callable[[Any], Mapping[str, Any]] | None = None
    """What the value is made of, by name, to find what was not restored. Without it two values
    of one class are the same when their encodings are."""


def path_hook() -> TypeHook:
    """Return the hook for `pathlib` paths, which are stored as text."""

    def decode(cls: Any, data: Any) -> Any:
        if not isinstance(data, str):
            raise TypeError(f"Expected `str`, got `{type(data).__name__}`")
        return cls(data)

    return TypeHook(matches=lambda cls: issubclass(cls, pathlib.PurePath), encode=str, decode=decode)


def pydantic_hook() -> TypeHook:
    """Return the hook for Pydantic models (version 2).

    Aliases are kept, computed fields left out. Which fields were set explicitly
    (`model_fields_set`) and private attributes are not stored.
    """

    def matches(cls: type[Any]) -> bool:
        return hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_dump_json")

    def encode(value: Any) -> Any:
        return msgspec.Raw(value.model_dump_json(by_alias=True, round_trip=True).encode())

    def decode(cls: Any, data: Any) -> Any:
        # By way of JSON: only there does a strict model take a date from its text.
        return cls.model_validate_json(msgspec.json.encode(data))

    def parts(value: Any) -> Mapping[str, Any]:
        return {**vars(value), **(getattr(value, "__pydantic_extra__", None) or {})}

    return TypeHook(matches=matches, encode=encode, decode=decode, parts=parts)


BUILT_IN_HOOKS: Final = (path_hook(), pydantic_hook())
