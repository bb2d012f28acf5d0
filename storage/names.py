"""Names: which ids and names are allowed, and what their files and folders are called.

Pure functions over text; nothing here looks at a disk, and anyone may call them. What they return
is part of the format on disk: changing it strands the files that exist.

Invariants:
    Two different ids never share a file name, even where the file system folds case or normalises
    Unicode; nor do two workflows share a folder whose names differ in more than case.
    What is returned is ASCII, at most `FILE_NAME_BYTES_MAX` bytes, and reserved on no platform.
    A good name costs one match of a compiled expression; only a refused one costs more.

Case-folding and normalising both leave the lower-case ASCII letters alone, so a stem is made of
those and everything else, capitals included, is spelled as the bytes of its UTF-8 form. A workflow's
name is nearly always a class in CapWords; spelling its capitals so would make it unreadable, so its
folder keeps the name, and two names that differ in case alone are refused by the `App` that would
hold both. `~` and `%` are no characters of their own in either alphabet, so the marks are unambiguous.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from perdure.errors import InvalidArgumentError, InvalidIdError, InvalidNameError
from perdure.limits import (
    EVENT_TYPE_CHARS_MAX,
    FILE_NAME_BYTES_MAX,
    ID_CHARS_MAX,
    NAME_CHARS_MAX,
    TOKEN_CHARS_MAX,
    WORKFLOW_NAME_CHARS_MAX,
)

__all__ = [
    "STATE_ENTRIES",
    "check_caller",
    "check_event_type",
    "check_instance_id",
    "check_step_name",
    "check_tags",
    "check_workflow_name",
    "file_stem",
    "folder_name",
]

STATE_ENTRIES: Final = frozenset({"archive", "catalog", "locks", "relay", "sockets", "workers"})
"""What Perdure itself keeps in a state folder, in lower case. An entry with a dot in its name needs
no line here: no workflow's folder has one."""

_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-.")
_DEVICES: Final = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
)
_DIGEST_CHARS: Final = 40
_SHOWN_CHARS_MAX: Final = 60

# Control characters, the two Unicode line ends, and lone surrogates, which UTF-8 cannot carry.
_TEXT: Final = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
_id_matches = re.compile(f"{_TEXT}{{1,{ID_CHARS_MAX}}}").fullmatch
_step_matches = re.compile(f"{_TEXT}{{1,{NAME_CHARS_MAX}}}").fullmatch
_who_matches = re.compile(f"{_TEXT}{{1,{NAME_CHARS_MAX}}}").fullmatch
_token_matches = re.compile(f"{_TEXT}{{1,{TOKEN_CHARS_MAX}}}").fullmatch
_event_matches = re.compile(f"{_TEXT}{{1,{EVENT_TYPE_CHARS_MAX}}}").fullmatch
_workflow_matches = re.compile(f"[a-zA-Z0-9_][a-zA-Z0-9_-]{{0,{WORKFLOW_NAME_CHARS_MAX - 1}}}").fullmatch

_TEXT_RULE: Final = "1 to {} characters, with no control characters, line ends or lone surrogates"


def check_instance_id(instance_id: str) -> None:
    """Refuse an instance id that is empty, too long or cannot be shown in one line.

    Raises InvalidIdError.

    >>> check_instance_id("tides-1")
    """
    if not _fits(_id_matches, instance_id):
        raise _refusal(InvalidIdError, "instance id", instance_id, _TEXT_RULE.format(ID_CHARS_MAX))


def check_step_name(name: str) -> None:
    """Refuse a step name that is empty, too long or cannot be shown in one line.

    Raises InvalidNameError.
    """
    if not _fits(_step_matches, name):
        raise _refusal(InvalidNameError, "step name", name, _TEXT_RULE.format(NAME_CHARS_MAX))


def check_event_type(event_type: str) -> None:
    """Refuse an event type that is empty, too long or cannot be shown in one line.

    Raises InvalidNameError.
    """
    if not _fits(_event_matches, event_type):
        raise _refusal(InvalidNameError, "event type", event_type, _TEXT_RULE.format(EVENT_TYPE_CHARS_MAX))


def check_caller(*, who: str | None = None, token: str | None = None) -> None:
    """Refuse a `who` or a `token` of a command that could not be recorded with it.

    Raises InvalidArgumentError.

    >>> check_caller(who="Ada", token="order-17")
    """
    if who is not None and not _fits(_who_matches, who):
        raise _refusal(InvalidArgumentError, "who", who, _TEXT_RULE.format(NAME_CHARS_MAX))
    if token is not None and not _fits(_token_matches, token):
        raise _refusal(InvalidArgumentError, "token", token, _TEXT_RULE.format(TOKEN_CHARS_MAX))


def check_tags(tags: Sequence[str]) -> list[str]:
    """Return the tags of an instance, where each can be shown in one line. Raises InvalidArgumentError.

    >>> check_tags(("monthly", "paid"))
    ['monthly', 'paid']
    """
    if isinstance(tags, str | bytes | Mapping) or not isinstance(tags, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
        raise InvalidArgumentError(f"tags={tags!r}: it must be a list of texts")
    listed = list(tags)
    for tag in listed:
        if not _fits(_step_matches, tag):
            raise _refusal(InvalidNameError, "tag", tag, _TEXT_RULE.format(NAME_CHARS_MAX))
    return listed


def check_workflow_name(name: str) -> None:
    """Refuse a workflow name that cannot be a folder beside Perdure's own entries.

    Raises InvalidNameError.

    >>> check_workflow_name("ResearchAgent")
    """
    if not _fits(_workflow_matches, name):
        rule = f"1 to {WORKFLOW_NAME_CHARS_MAX} of a-z A-Z 0-9 _ and -, not beginning with -"
        raise _refusal(InvalidNameError, "workflow name", name, rule)
    if name.lower() in STATE_ENTRIES:
        kept = ", ".join(sorted(STATE_ENTRIES))
        raise InvalidNameError(f"workflow name {name!r} is not allowed: Perdure keeps {kept} for itself")


def file_stem(instance_id: str) -> str:
    """Return the name of an instance's file, without its suffix.

    Equal stems mean equal ids. A long one keeps a readable beginning and ends in a digest.
    Raises UnicodeEncodeError for an id that `check_instance_id` would have refused.

    >>> file_stem("tides-1"), file_stem("Tides 1"), file_stem("con")
    ('tides-1', '%54ides%201', '%63on')
    """
    raw = instance_id.encode()
    pieces = [chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in raw]
    if pieces and (pieces[0] in ".-" or "".join(pieces).partition(".")[0] in _DEVICES):
        # Hidden, an option to every shell command, or a device: its first character is spelled.
        pieces[0] = f"%{raw[0]:02x}"
    if pieces and pieces[-1] == ".":
        pieces[-1] = "%2e"
    stem = "".join(pieces)
    return stem if len(stem) <= FILE_NAME_BYTES_MAX else _shortened(pieces, raw)


def folder_name(workflow: str) -> str:
    """Return the name of the folder that holds a workflow's instances: the workflow's own.

    Two workflows whose names differ in case alone would share a folder on some file systems; an
    `App` refuses to hold both. A device name of Windows is marked, so that the folder can move.

    >>> folder_name("ResearchAgent"), folder_name("con")
    ('ResearchAgent', 'con~')
    """
    return f"{workflow}~" if workflow.lower() in _DEVICES else workflow


def _shortened(pieces: list[str], raw: bytes) -> str:
    room = FILE_NAME_BYTES_MAX - _DIGEST_CHARS - 1
    kept: list[str] = []
    for piece in pieces:  # whole pieces only: half an escape would be read as another character
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return f"{''.join(kept)}~{hashlib.sha256(raw).hexdigest()[:_DIGEST_CHARS]}"


def _fits(matches: Callable[[str], re.Match[str] | None], value: str) -> bool:
    try:
        return matches(value) is not None
    except TypeError:  # not text at all, from a caller that no type checker has seen
        return False


def _refusal(error: type[InvalidArgumentError], what: str, value: object, rule: str) -> InvalidArgumentError:
    shown = repr(value)
    if len(shown) > _SHOWN_CHARS_MAX:
        length = f", {len(value)} characters" if isinstance(value, str) else ""
        shown = f"{shown[:_SHOWN_CHARS_MAX]}… ({type(value).__name__}{length})"
    elif not isinstance(value, str):
        shown = f"{shown} ({type(value).__name__})"
    return error(f"{what} {shown} is not allowed: it must be text of {rule}")
