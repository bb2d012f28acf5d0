"""Descriptions: the arguments of a step as text to read and a digest to compare.

Unlike a result, an input is never decoded again. So nothing is refused: what has no encoding is
replaced by the name of its class, and the digest says whether a replay was given the same.

Nobody else may touch this; the codec owns the one describer.

Invariants:
    Describing never raises and calls no `__repr__` or `__str__` of the user's.
    Equal arguments have equal digests in every process, whatever its hash seed.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, cast

import msgspec

from perdure.storage.codec_compare import children, class_name, field_names
from perdure.storage.codec_hooks import TypeHook

__all__ = ["Describer", "digest_of"]

DIGEST_BYTES: Final = 16
"""128 bits: nobody attacks it, and it stands in every row."""

LEVELS_MAX: Final = 64
"""Deeper than this an argument is described by its class: only a value built to be deep gets here."""


def digest_of(raw: bytes) -> str:
    """Return the digest of a description's text."""
    return blake2b(raw, digest_size=DIGEST_BYTES).hexdigest()


_NO_ARGUMENTS: Final = ("[]", digest_of(b"[]"))


class Describer:
    """Describes arguments. Holds no state but its encoder."""

    def __init__(self, hook_for: Callable[[type[Any]], TypeHook | None]) -> None:
        self._hook_for = hook_for
        self._encode = msgspec.json.Encoder(enc_hook=self._describe_unknown, order="deterministic").encode

    def describe(
        self, args: tuple[object, ...], bytes_max: int, digest_above: int = -1
    ) -> tuple[str | None, str | None]:
        """Return the text, or None beyond `bytes_max`, and the digest of the whole text.

        The digest is None where the text is of at most `digest_above` bytes, and so stands for itself.
        """
        if not args:
            return _NO_ARGUMENTS
        try:
            raw = self._encode(args)
        except Exception:  # noqa: BLE001 (whatever it is, the careful way does without)
            raw = self._encode(self._tolerate(args, frozenset()))
        size = len(raw)
        if size <= digest_above:
            return raw.decode(), None
        return (raw.decode() if size <= bytes_max else None), digest_of(raw)

    def _describe_unknown(self, value: object) -> Any:
        try:
            hook = self._hook_for(type(value))
            return _type_name(value) if hook is None else hook.encode(value)
        except Exception:  # noqa: BLE001 (code of the user's; describing never fails)
            return _type_name(value)

    def _tolerate(self, value: object, around: frozenset[int]) -> Any:
        """Rebuild a value from parts that can be encoded. `around` are the ids of what holds it."""
        if id(value) in around or len(around) >= LEVELS_MAX:
            return _type_name(value)
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace").decode()
        try:
            return self._tolerate_parts(value, around | {id(value)})
        except Exception:  # noqa: BLE001 (code of the user's; describing never fails)
            return _type_name(value)

    def _tolerate_parts(self, value: object, around: frozenset[int]) -> Any:
        if field_names(type(value)) is not None:
            parts = children(value, self._hook_for)
            return {step.removeprefix("."): self._tolerate(part, around) for step, part in parts}
        if isinstance(value, dict):
            items = cast("dict[object, object]", value).items()
            return {self._key_text(key): self._tolerate(part, around) for key, part in items}
        if isinstance(value, list | tuple):
            return [self._tolerate(part, around) for part in cast("list[object]", value)]
        if isinstance(value, set | frozenset):
            members = [self._encode(self._tolerate(part, around)) for part in cast("set[object]", value)]
            return [msgspec.Raw(raw) for raw in sorted(members)]
        return msgspec.Raw(self._encode(value))

    def _key_text(self, key: object) -> str:
        if isinstance(key, str):
            return key.encode("utf-8", "backslashreplace").decode()
        return self._encode(self._tolerate(key, frozenset())).decode()


def _type_name(value: object) -> dict[str, str]:
    return {"$type": class_name(type(value))}
