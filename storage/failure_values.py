"""Values inside failures: the arguments and fields of errors, as JSON that names its classes.

Annotations restore the results of steps, but nobody annotates what an error carries. So here, and
only here, a value that JSON has no form for stands with the name of its class:

    {"$class": "shop.orders:Order", "value": {...}}    restored when that class is imported already
    {"$error": {...}}                                  an error inside an error
    {"$repr": "...", "text": "..."}                    what cannot be encoded; its text where it differs

Only the failure module uses this.

Invariants:
    Writing and reading never raise, and what is written is bounded.
    Reading never imports. Of the classes that a text names, only those that a codec restores are made.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final, Self, TypeVar, cast

import msgspec

from perdure.storage.codec import Codec
from perdure.storage.codec_compare import class_name

__all__ = [
    "FieldReader",
    "FieldWriter",
    "StoredText",
    "clean_text",
    "imported_class",
    "plain_value",
    "text_of",
]

VALUES_MAX: Final = 10_000
"""Of one failure, counting what is inside them; beyond, a value is kept as the name of its class."""

LEVELS_MAX: Final = 32
"""Deeper inside a field a value is kept as its repr."""

VALUE_BYTES_MAX: Final = 64 * 1024
"""Of one value with a class of its own; a larger one is kept as its repr."""

TEXT_CHARS_MAX: Final = 64 * 1024
"""Of one text; a longer one is cut. A failure is for reading, and stands in every view."""

INT_BITS_MAX: Final = 4096
"""A longer integer is written in hexadecimal: Python refuses to read more than 4,300 decimal digits."""

SEQUENCES: Final[Mapping[type[Any], str]] = {
    tuple: "builtins:tuple",
    set: "builtins:set",
    frozenset: "builtins:frozenset",
}

CONTAINERS: Final = (list, dict, *SEQUENCES)

B = TypeVar("B")


class StoredText(str):
    """What is left of a value that could not be encoded: its repr and its text.

    As a str it is the repr; formatted, it reads as the value itself did, so that the text of an
    error that holds it stays the same.
    """

    __slots__ = ("_text",)

    _text: str

    def __new__(cls, represented: str, text: str) -> Self:  # noqa: D102 (the class says it)
        self = super().__new__(cls, represented)
        self._text = text
        return self

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return str.__str__(self)


def clean_text(text: str) -> str:
    """Return a text that UTF-8 has a form for, cut where it is too long."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= TEXT_CHARS_MAX:
        return text
    # What is cut once is short enough not to be cut again when the restored error is described.
    kept = TEXT_CHARS_MAX - 64
    return f"{text[:kept]}… ({len(text) - kept} more characters)"


def text_of(value: object, how: Callable[[object], str] = str) -> str:
    """Return `str(value)`, or `repr(value)`, whatever that does."""
    try:
        return clean_text(how(value))
    except Exception as error:  # noqa: BLE001 (a broken __str__ must not hide the error it belongs to)
        return f"<{class_name(type(value))} whose {how.__name__} raised {class_name(type(error))}>"


def imported_class(module: str, qualname: str, base: type[B]) -> type[B] | None:
    """Return a class that this process has imported, or None.

    Looks into dictionaries alone: an attribute of a module may be a function that imports.
    """
    place: object = sys.modules.get(module)
    for name in qualname.split("."):
        if not isinstance(place, ModuleType | type):
            return None
        place = cast("Mapping[str, object]", object.__getattribute__(place, "__dict__")).get(name)
    return place if isinstance(place, type) and issubclass(place, base) else None


class FieldWriter:
    """Writes the values of one failure. `describe` writes the errors among them."""

    def __init__(self, codec: Codec, describe: Callable[[BaseException], object | None]) -> None:
        self._codec = codec
        self._describe = describe
        self._left = VALUES_MAX

    def write(self, value: object, level: int = 0) -> Any:
        """Return the value as data that msgspec encodes."""
        self._left -= 1
        try:
            if self._left < 0:
                return {"$repr": f"<{class_name(type(value))}>"}
            if level > LEVELS_MAX:
                return _written_text(value)
            return self._written(value, level + 1)
        except Exception:  # noqa: BLE001 (code of the user's; describing never fails)
            return _written_text(value)

    def _written(self, value: object, level: int) -> Any:
        cls = type(value)
        if value is None or cls is bool:
            return value
        if isinstance(value, int) and cls is int:
            return (
                value
                if value.bit_length() <= INT_BITS_MAX
                else _tagged("builtins:int", clean_text(hex(value)))
            )
        if isinstance(value, float) and cls is float:
            finite = value - value == 0
            return value if finite else _tagged("builtins:float", repr(value))
        if isinstance(value, str) and cls is str:
            if _has_utf8(value):
                return clean_text(value)
            return _tagged("builtins:str", clean_text(value.encode("unicode_escape").decode()))
        if issubclass(cls, BaseException):  # isinstance() would ask the error for its __class__
            described = self._describe(cast("BaseException", value))
            return _written_text(value) if described is None else {"$error": described}
        if cls in CONTAINERS and self._left < len(cast("list[object]", value)):
            return {"$repr": f"<{class_name(cls)} of {len(cast('list[object]', value))} items>"}
        if cls in SEQUENCES or cls is list:
            items = [self.write(item, level) for item in cast("list[object]", value)]
            return items if cls is list else _tagged(SEQUENCES[cls], items)
        if cls is dict:
            return self._written_dict(cast("dict[object, object]", value), level)
        return self._written_instance(value)

    def _written_dict(self, value: dict[object, object], level: int) -> Any:
        if all(type(key) is str and not key.startswith("$") and _has_utf8(key) for key in value):
            return {cast(str, key): self.write(item, level) for key, item in value.items()}
        pairs = [[self.write(key, level), self.write(item, level)] for key, item in value.items()]
        return _tagged("builtins:dict", pairs)

    def _written_instance(self, value: object) -> Any:
        cls = type(value)
        if isinstance(value, StoredText):
            return _written_text(value)
        stored, _ = self._codec.coder(cls).record(value)
        if len(stored) > VALUE_BYTES_MAX:
            return _written_text(value)
        if isinstance(stored, bytes):
            return _tagged(f"builtins:{cls.__name__}", base64.b64encode(stored).decode())
        return _tagged(f"{cls.__module__}:{cls.__qualname__}", msgspec.Raw(stored.encode()))


def _has_utf8(text: str) -> bool:
    """Whether a text holds no lone surrogate, as a file name that is not UTF-8 does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tagged(name: str, value: object) -> dict[str, object]:
    return {"$class": name, "value": value}


def _written_text(value: object) -> dict[str, str]:
    represented, text = text_of(value, repr), text_of(value)
    return {"$repr": represented} if represented == text else {"$repr": represented, "text": text}


class FieldReader:
    """Reads the values of one failure. `restore` makes the errors among them."""

    def __init__(self, codec: Codec, restore: Callable[[Any], BaseException]) -> None:
        self._codec = codec
        self._restore = restore

    def read(self, data: Any) -> Any:
        """Return the value, or plain data where its class is not imported here."""
        if isinstance(data, list):
            return [self.read(item) for item in cast("list[object]", data)]
        if not isinstance(data, dict):
            return data
        mapping = cast("dict[str, Any]", data)
        if "$repr" in mapping:
            return StoredText(str(mapping["$repr"]), str(mapping.get("text", mapping["$repr"])))
        try:
            if "$error" in mapping:
                return self._restore(mapping["$error"])
            if "$class" in mapping:
                return self._instance(str(mapping["$class"]), mapping.get("value"))
        except Exception:  # noqa: BLE001 (the class is not what it was; its data is still true)
            return plain_value(mapping)
        return {key: self.read(item) for key, item in mapping.items()}

    def _instance(self, name: str, value: Any) -> Any:
        match name:
            case "builtins:tuple":
                return tuple(self.read(value))
            case "builtins:set":
                return set(self.read(value))
            case "builtins:frozenset":
                return frozenset(self.read(value))
            case "builtins:dict":
                return {self.read(key): self.read(item) for key, item in value}
            case "builtins:str":
                return value.encode().decode("unicode_escape")
            case "builtins:int":
                return int(value, 16)
            case "builtins:float":
                return float(value)
            case "builtins:bytes":
                return base64.b64decode(value)
            case "builtins:bytearray":
                return bytearray(base64.b64decode(value))
            case _:
                module, _, qualname = name.partition(":")
                cls = imported_class(module, qualname, object)
                return (
                    value
                    if cls is None
                    else self._codec.coder(cls).decode(msgspec.json.encode(value).decode())
                )


def plain_value(data: Any) -> Any:
    """Return written data without the names of classes."""
    if isinstance(data, list):
        return [plain_value(item) for item in cast("list[object]", data)]
    if not isinstance(data, dict):
        return data
    mapping = cast("dict[str, Any]", data)
    if "$repr" in mapping:
        return mapping["$repr"]
    if "$error" in mapping:
        return mapping["$error"].get("message", "")
    if "$class" in mapping:
        return plain_value(mapping.get("value"))
    return {key: plain_value(item) for key, item in mapping.items()}
