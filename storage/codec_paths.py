"""Paths: where in a value encoding or decoding failed.

The serialiser says what is wrong, but not always where: it is silent when it encodes, and where it
decodes it writes `[...]` for the key of a mapping. The exact place is found here by trying again
with parts of the value, which may cost many times what the failed call did, and is done only then.

Invariants:
    Locating never raises; what cannot be located is placed at the nearest level that is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from perdure.storage.codec_compare import Difference, children, class_name, key_step
from perdure.storage.codec_hooks import TypeHook

__all__ = ["locate_invalid", "locate_unencodable"]

LEVELS_MAX: Final = 64
"""Deeper places are reported at this level: the search encodes each level again."""

SUFFIX: Final = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`$")
STEP: Final = re.compile(r"\.(?P<field>[^.\[]+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])")


def locate_unencodable(
    value: object,
    error: Exception,
    encode: Callable[[Any], bytes],
    hook_for: Callable[[type[Any]], TypeHook | None],
) -> Difference:
    """Return which part of `value` made `encode` raise `error`, and why it cannot be stored."""
    if isinstance(error, RecursionError):
        return Difference(reason="it contains itself or is nested too deeply")
    steps: list[str] = []
    try:
        for _ in range(LEVELS_MAX):
            for step, part in children(value, hook_for):
                if not _works(encode, part):
                    steps.append(step)
                    value = part
                    break
            else:
                break
        reason = _reason(value, encode)
    except Exception:  # noqa: BLE001 (the user's own classes; locating never raises)
        reason = f"{class_name(type(value))} cannot be stored"
    return Difference(path="".join(steps), reason=reason)


def _works(encode: Callable[[Any], bytes], value: object) -> bool:
    try:
        encode(value)
    except Exception:  # noqa: BLE001 (that it raises is the answer)
        return False
    return True


def _reason(value: object, encode: Callable[[Any], bytes]) -> str:
    cls = type(value)
    if isinstance(value, str):
        return "the text holds a lone surrogate, which UTF-8 has no form for"
    if isinstance(value, int):
        return "the integer has too many digits"
    if isinstance(value, dict):
        keys = list(cast("dict[object, object]", value))
        bad = next((key for key in keys if not _works(encode, {key: None})), None)
        if bad is not None:
            return f"a key of class {class_name(type(bad))} cannot be stored"
    return f"{class_name(cls)} cannot be stored"


def locate_invalid(error: Exception, raw: bytes, decode: Callable[[bytes], Any]) -> Difference:
    """Return where in the JSON text `raw` the value is that made `decode` raise `error`."""
    text = str(error)
    match = SUFFIX.search(text)
    if match is None:
        return Difference(reason=text)
    path, reason = match["path"], text[: match.start()]
    if match["key"]:
        reason = f"as a key, {reason}"
    try:
        path = _named(path, text, msgspec.json.decode(raw), decode)
    except Exception:  # noqa: BLE001 (the pattern is still true, only less exact)
        path = match["path"]
    return Difference(path=path, reason=reason)


def _named(path: str, text: str, root: Any, decode: Callable[[bytes], Any]) -> str:
    """Replace each `[...]` that stands for a key by the key."""

    def fails() -> bool:
        try:
            decode(msgspec.json.encode(root))
        except Exception as error:  # noqa: BLE001 (what it raises is the answer)
            return str(error) == text
        return False

    node, named = root, ""
    for step in STEP.finditer(path):
        if step["field"] is not None:
            node, named = node[step["field"]], named + key_step(step["field"])
        elif step["index"] is not None:
            node, named = node[int(step["index"])], named + step[0]
        elif isinstance(node, dict):
            mapping = cast("dict[str, Any]", node)
            key = _failing_key(mapping, fails)
            node, named = mapping[key], named + key_step(key)
        else:
            return named + path[step.start() :]
    return named


def _failing_key(mapping: dict[str, Any], fails: Callable[[], bool]) -> str:
    """Halve the mapping in place until one key is left, then put everything back."""
    everything = dict(mapping)
    suspects = list(everything)
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        mapping.clear()
        mapping.update((key, everything[key]) for key in half)
        suspects = half if fails() else suspects[len(suspects) // 2 :]
    mapping.clear()
    mapping.update(everything)
    return suspects[0]
