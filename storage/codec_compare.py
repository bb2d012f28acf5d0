"""Sameness: whether a decoded value is the value that was encoded, and where it is not.

`==` is not the question. `(1, 2)` inside a list, a `StrEnum` beside its text, a subclass beside
its base are equal and still not what the caller would get back after a restart. So classes are
compared exactly, all the way down, with one exception that the type system itself makes: an int
given where a float is promised comes back as the equal float.

Nothing here touches storage. The codec owns one comparer and nobody else calls it.

Invariants:
    No difference is found only where class and content are the same at every level.
    A difference is described by classes and paths; the values themselves are not quoted.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, cast

import msgspec

from perdure.storage.codec_hooks import TypeHook

__all__ = ["Comparer", "Difference", "children", "class_name", "key_step"]

Rule = Callable[[Any, Any], "Difference | None"]

KEY_CHARS_MAX: Final = 64
"""A longer key is cut in a path: a path is for reading."""

ATOMS: Final[tuple[type, ...]] = (
    *(type(None), bool, int, float, str, bytes, bytearray),
    *(dt.date, dt.timedelta, uuid.UUID),
)
"""Classes without parts whose `==` is exact once the class is the same."""

_ABSENT: Final = object()


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where a decoded value differs from the original, and how.

    >>> Difference(path=".price", reason="...").under("[3]").path
    '[3].price'
    """

    path: str = ""
    reason: str

    def under(self, step: str) -> Difference:
        """Return the same difference, seen from one level further out."""
        return Difference(path=step + self.path, reason=self.reason)


def class_name(cls: type[Any]) -> str:
    """Return a class's full name, without the module where it is a builtin.

    >>> class_name(decimal.Decimal), class_name(int)
    ('decimal.Decimal', 'int')
    """
    try:
        module, name = str(cls.__module__), str(cls.__qualname__)
    except Exception:  # noqa: BLE001 (a metaclass may do anything)
        return "object"
    return name if module == "builtins" else f"{module}.{name}"


def key_step(key: object) -> str:
    """Return one step of a path in SQLite's own form, so that it can be pasted into a query.

    >>> key_step("price"), key_step("unit price")
    ('.price', '."unit price"')
    """
    if not isinstance(key, str):
        return f'."{key}"' if type(key) is int else f"[a key of {class_name(type(key))}]"
    if len(key) > KEY_CHARS_MAX:
        key = key[:KEY_CHARS_MAX] + "…"
    return f".{key}" if key.isidentifier() else f".{json.dumps(key, ensure_ascii=False)}"


def field_names(cls: type[Any]) -> tuple[str, ...] | None:
    """Return the fields of a struct, dataclass, attrs class or named tuple; None for any other."""
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_fields__
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if "__attrs_attrs__" in vars(cls):
        attributes: Iterable[Any] = vars(cls)["__attrs_attrs__"]
        return tuple(attribute.name for attribute in attributes)
    names: tuple[str, ...] | None = getattr(cls, "_fields", None)
    return names if issubclass(cls, tuple) else None


def children(value: object, hook_for: Callable[[type[Any]], TypeHook | None]) -> Iterator[tuple[str, Any]]:
    """Yield what a value is made of, each part with its step of the path."""
    cls = type(value)
    names = field_names(cls)
    hook = hook_for(cls)
    if names is not None:
        yield from ((key_step(name), getattr(value, name, None)) for name in names)
    elif issubclass(cls, dict):
        yield from ((key_step(key), part) for key, part in cast("dict[object, object]", value).items())
    elif issubclass(cls, list | tuple | set | frozenset):
        yield from ((f"[{index}]", part) for index, part in enumerate(cast("list[object]", value)))
    elif hook is not None and hook.parts is not None:
        yield from ((key_step(name), part) for name, part in hook.parts(value).items())


class Comparer:
    """Compares values with their decoded form; learns one rule per class."""

    def __init__(self, hook_for: Callable[[type[Any]], TypeHook | None]) -> None:
        self._hook_for = hook_for
        self._rules: dict[type[Any], Rule] = dict.fromkeys(ATOMS, _atoms)
        self._rules |= {
            list: self._sequences,
            tuple: self._sequences,
            dict: self._dicts,
            set: self._sets,
            frozenset: self._sets,
            decimal.Decimal: _decimals,
            dt.datetime: _times,
            dt.time: _times,
        }

    def difference(self, value: object, decoded: object) -> Difference | None:
        """Return the first difference, or None when the two are the same."""
        if value is decoded:  # enum members and other singletons
            return None
        cls = type(value)
        if cls is not type(decoded):
            return _classes(value, decoded)
        rule = self._rules.get(cls)
        if rule is None:
            rule = self._rules[cls] = self._rule_for(cls)
        return rule(value, decoded)

    def _rule_for(self, cls: type[Any]) -> Rule:
        hook = self._hook_for(cls)
        if issubclass(cls, enum.Enum):
            return _identities
        if (names := field_names(cls)) is not None:
            return lambda value, decoded: self._fields(names, value, decoded)
        if hook is None:
            return _equals
        if (parts := hook.parts) is not None:
            return lambda value, decoded: self._mappings(parts(value), parts(decoded))
        encode = hook.encode
        return lambda value, decoded: self._encodings(encode(value), encode(decoded))

    def _sequences(self, value: Any, decoded: Any) -> Difference | None:
        if len(value) != len(decoded):
            return Difference(reason=f"{len(value)} items would come back as {len(decoded)}")
        for index, (before, after) in enumerate(zip(value, decoded, strict=True)):
            found = self.difference(before, after)
            if found is not None:
                return found.under(f"[{index}]")
        return None

    def _dicts(self, value: dict[Any, Any], decoded: dict[Any, Any]) -> Difference | None:
        if len(value) != len(decoded):
            return Difference(reason=f"{len(value)} keys would come back as {len(decoded)}")
        for (key, before), (key_after, after) in zip(value.items(), decoded.items(), strict=True):
            found = self.difference(key, key_after)
            if found is not None:
                return Difference(path=key_step(key), reason=f"as a key, {found.reason}")
            found = self.difference(before, after)
            if found is not None:
                return found.under(key_step(key))
        return None

    def _mappings(self, value: Mapping[str, Any], decoded: Mapping[str, Any]) -> Difference | None:
        return self._dicts(dict(value), dict(decoded))

    def _sets(self, value: Any, decoded: Any) -> Difference | None:
        if value != decoded:
            return Difference(reason=f"some members of the {type(value).__name__} would come back different")
        twins: dict[Any, Any] = {member: member for member in decoded}
        for index, member in enumerate(value):
            found = self.difference(member, twins[member])
            if found is not None:
                return found.under(f"[{index}]")
        return None

    def _fields(self, names: tuple[str, ...], value: Any, decoded: Any) -> Difference | None:
        for name in names:
            found = self.difference(getattr(value, name, _ABSENT), getattr(decoded, name, _ABSENT))
            if found is not None:
                return found.under(key_step(name))
        return None

    def _encodings(self, value: Any, decoded: Any) -> Difference | None:
        found = self.difference(value, decoded)
        return None if found is None else Difference(reason="its encoding changes when it is stored and read")


def _classes(value: object, decoded: object) -> Difference | None:
    if type(value) is int and type(decoded) is float and value == decoded:
        return None  # an int is a float by the rules of typing, so no caller can tell
    if type(value) is float and decoded is None:
        return Difference(reason="NaN and infinities have no form in JSON")
    before, after = class_name(type(value)), class_name(type(decoded))
    return Difference(reason=f"{before} would come back as {after}")


def _atoms(value: Any, decoded: Any) -> Difference | None:
    return None if value == decoded else _changed(value)


def _identities(value: Any, decoded: Any) -> Difference | None:
    return None if value is decoded else _changed(value)


def _decimals(value: decimal.Decimal, decoded: decimal.Decimal) -> Difference | None:
    # 1.0 and 1.00 are equal and not the same; a signalling NaN raises when compared.
    return None if value.as_tuple() == decoded.as_tuple() else _changed(value)


def _times(value: Any, decoded: Any) -> Difference | None:
    if value.replace(tzinfo=None) != decoded.replace(tzinfo=None):
        return _changed(value)
    before: dt.tzinfo | None = value.tzinfo
    after: dt.tzinfo | None = decoded.tzinfo
    if before is None or after is None:  # only without a zone does `fold` decide anything
        return None if before is after and value.fold == decoded.fold else _changed(value)
    # Asked for no time in particular, only a zone with one fixed offset answers.
    if before.utcoffset(None) == after.utcoffset(None):
        return None
    return Difference(reason="its time zone would come back as a fixed offset; use .astimezone(timezone.utc)")


def _equals(value: Any, decoded: Any) -> Difference | None:
    """For classes inside hooked values about which nothing is known but their `==`."""
    return None if bool(value == decoded) else _changed(value)


def _changed(value: object) -> Difference:
    return Difference(reason=f"the {class_name(type(value))} would come back with another value")
