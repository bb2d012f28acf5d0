"""Failures: errors as JSON text, and errors made from that text again.

Prior art pickles exceptions, or keeps their text alone. A pickle runs what a file says; a text
cannot be caught by class. Here a failure is plain JSON that reads well in SQL
(`error ->> '$.message'`), and the error is rebuilt from a class that this process has imported
already, without calling its constructor.

Nobody else reads or writes this form; the columns named `error` hold it.

Invariants:
    Describing never raises, whatever the error does when it is looked at, and its size is bounded.
    Restoring never raises, and never imports because a file says so.
    A restored error is an instance of the class it was, with the same text; or it is a
    StepFailedError that carries class, text, fields, notes, cause and traceback.
"""

from __future__ import annotations

import traceback
from types import BuiltinFunctionType, MemberDescriptorType
from typing import Any, Final, cast

import msgspec

from perdure.errors import StepFailedError
from perdure.storage.codec import Codec
from perdure.storage.failure_values import (
    FieldReader,
    FieldWriter,
    clean_text,
    imported_class,
    plain_value,
    text_of,
)

__all__ = [
    "TRACEBACK_ATTRIBUTE",
    "FailureRecord",
    "describe_failure",
    "failure_summary",
    "restore_failure",
    "with_cause",
]

ERRORS_MAX: Final = 128
"""Of one failure: causes, contexts and members of groups together. A group can hold thousands."""

NOTES_MAX: Final = 64
"""Of one error; a note is a sentence for people."""

FAILURE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of the whole text; of a larger one only class, message and traceback are kept."""

FRAMES_MAX: Final = 100
"""Of one traceback, the last ones; endless recursion has a thousand that say the same."""

TRACEBACK_ATTRIBUTE: Final = "__perdure_traceback__"
"""A restored error has no frames; the text of those it was raised through stands here."""

MESSAGE_ATTRIBUTE: Final = "__perdure_message__"
"""The text of a restored error whose own `__str__` cannot make it from what was stored."""

# Set through the root's own descriptors: a class of the user's may be frozen, or define `args` anew.
_ROOT: Final[dict[str, Any]] = dict(vars(BaseException))
_TYPE: Final[dict[str, Any]] = dict(vars(type))


class FailureRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One error as it is stored."""

    class_: str = msgspec.field(name="class")
    """The qualified name of its class, within `module`."""
    module: str
    message: str
    """What `str(error)` gave."""
    args: list[Any] = []
    fields: dict[str, Any] = {}
    notes: list[str] = []
    cause: FailureRecord | None = None
    context: FailureRecord | None = None
    context_is_cause: bool = False
    """`raise ... from error` inside `except ... as error` makes one error both."""
    suppress_context: bool = False
    members: list[FailureRecord] = []
    """Of an exception group."""
    traceback: str = ""

    @property
    def class_name(self) -> str:
        """The full name of the class, without the module where it is a builtin."""
        return self.class_ if self.module == "builtins" else f"{self.module}.{self.class_}"


def describe_failure(error: BaseException, codec: Codec) -> str:
    """Return an error as JSON text. Never fails.

    >>> describe_failure(ValueError("no tide"), Codec())
    '{"class":"ValueError","module":"builtins","message":"no tide","args":["no tide"]}'
    """
    try:
        raw = msgspec.json.encode(_Writer(codec).record(error))
        if len(raw) <= FAILURE_BYTES_MAX:
            return raw.decode()
    except Exception:  # noqa: BLE001, S110 (an error that defeats the careful way is still to be stored)
        pass
    return msgspec.json.encode(_outline(error)).decode()


def restore_failure(text: str, *, step: str, attempt: int, codec: Codec | None = None) -> BaseException:
    """Return the error that was described. Never fails.

    Its class is found among those already imported; else it is a StepFailedError, for which
    `step` and `attempt` (from 1) are needed. `codec` restores the user's own types in its fields.

    >>> restore_failure(describe_failure(KeyError("a"), Codec()), step="fetch", attempt=1)
    KeyError('a')
    """
    try:
        record = msgspec.json.decode(text, type=FailureRecord)
        return _Reader(codec or Codec(), step, attempt).error(record)
    except Exception as error:  # noqa: BLE001 (a damaged text must not hide that there was an error)
        reason = f"{type(error).__name__}: {error}"
        message = f"step {step!r} failed, and its stored error cannot be read ({reason})"
        return StepFailedError(message, step=step, attempt=attempt, error_message=clean_text(text))


def failure_summary(text: str) -> tuple[str, str]:
    """Return class name and message of a described error, for tables. Never fails.

    >>> failure_summary('{"class":"Declined","module":"shop","message":"card declined"}')
    ('shop.Declined', 'card declined')
    """
    try:
        record = msgspec.json.decode(text, type=FailureRecord)
    except (msgspec.DecodeError, RecursionError):
        return "", clean_text(text)
    return record.class_name, record.message


def with_cause(text: str, cause: str) -> str:
    """Return a described error with another, described elsewhere, as its cause. Never fails.

    >>> bare = describe_failure(KeyError("a"), Codec())
    >>> restore_failure(with_cause(bare, bare), step="fetch", attempt=1).__cause__
    KeyError('a')
    """
    try:
        record = msgspec.json.decode(text, type=FailureRecord)
        behind = msgspec.json.decode(cause, type=FailureRecord)
        both = msgspec.json.encode(msgspec.structs.replace(record, cause=behind, suppress_context=True))
    except (msgspec.DecodeError, RecursionError):
        return text
    return both.decode() if len(both) <= FAILURE_BYTES_MAX else text


# -- writing ---------------------------------------------------------------------------------


class _Writer:
    """Describes one error and the errors behind it."""

    def __init__(self, codec: Codec) -> None:
        self._fields = FieldWriter(codec, self._record_once)
        self._left = ERRORS_MAX
        self._around: set[int] = set()

    def _record_once(self, error: BaseException | None) -> FailureRecord | None:
        if error is None or id(error) in self._around or self._left <= 0:
            return None
        return self.record(error)

    def record(self, error: BaseException) -> FailureRecord:
        self._left -= 1
        self._around.add(id(error))
        try:
            return self._record(error)
        except Exception:  # noqa: BLE001 (code of the user's; the others behind it are still described)
            return _outline(error)
        finally:
            self._around.discard(id(error))

    def _record(self, error: BaseException) -> FailureRecord:
        outline = _outline(error)
        in_group = _members(error)
        cause, context = _root_value(error, "__cause__"), _root_value(error, "__context__")
        both = cause is not None and cause is context
        return msgspec.structs.replace(
            outline,
            args=[] if in_group else [self._fields.write(each) for each in _root_value(error, "args")],
            fields={name: self._fields.write(value) for name, value in _fields_of(error).items()},
            members=[each for each in map(self._record_once, in_group) if each is not None],
            cause=self._record_once(cause),
            context=None if both else self._record_once(context),
            context_is_cause=both,
            suppress_context=_root_value(error, "__suppress_context__"),
            notes=_notes(error),
        )


def _outline(error: BaseException) -> FailureRecord:
    """Return what needs no encoding."""
    cls = type(error)
    record = FailureRecord(  # by the descriptors of `type`: a metaclass may do anything
        class_=text_of(_TYPE["__qualname__"].__get__(cls)),
        module=text_of(_TYPE["__module__"].__get__(cls)),
        message=text_of(error),
    )
    return msgspec.structs.replace(record, traceback=_traceback_text(error, record))


def _root_value(error: BaseException, name: str) -> Any:
    return _ROOT[name].__get__(error)


def _members(error: BaseException) -> tuple[BaseException, ...]:
    if BaseExceptionGroup not in type(error).__mro__:  # isinstance() would ask the error for its __class__
        return ()
    return cast("BaseExceptionGroup[BaseException]", error).exceptions


def _notes(error: BaseException) -> list[str]:
    notes = _root_value(error, "__dict__").get("__notes__", ())
    if not isinstance(notes, list | tuple):
        return []
    return [text_of(note) for note in cast("list[object]", notes)[:NOTES_MAX]]


def _traceback_text(error: BaseException, record: FailureRecord) -> str:
    earlier = _root_value(error, "__dict__").get(TRACEBACK_ATTRIBUTE, "")
    parts = [earlier] if isinstance(earlier, str) else []
    try:
        frames = traceback.format_tb(_root_value(error, "__traceback__"), limit=-FRAMES_MAX)
    except Exception:  # noqa: BLE001 (source lines come from loaders, which may raise anything)
        frames = ["  (its frames cannot be shown)\n"]
    if frames:
        last = f"{record.class_name}: {record.message}\n"
        parts += ["Traceback (most recent call last):\n", *frames, last]
    return clean_text("".join(parts))


def _slots(cls: type[BaseException]) -> dict[str, MemberDescriptorType]:
    """Return fields that do not stand in `__dict__`: of `__slots__`, and of classes written in C."""
    slots: dict[str, MemberDescriptorType] = {}
    for each in reversed(cls.__mro__):
        if each is not BaseException:
            slots.update((k, v) for k, v in vars(each).items() if isinstance(v, MemberDescriptorType))
    slots.pop("exceptions", None)  # of a group: its members are described one by one
    return slots


def _fields_of(error: BaseException) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, slot in _slots(type(error)).items():
        try:
            value = slot.__get__(error)
        except AttributeError:  # never assigned
            continue
        if value is not None or slot.__objclass__.__module__ != "builtins":
            fields[name] = value
    kept = _root_value(error, "__dict__").items()
    fields.update((k, v) for k, v in kept if k != "__notes__" and not k.startswith("__perdure_"))
    return fields


# -- reading ---------------------------------------------------------------------------------


class _Told:
    """The first base of a restored error that tells its stored message."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        """Keep the user's `__init_subclass__` from seeing a class that nobody wrote."""

    def __str__(self) -> str:
        return str(cast(Any, self).__dict__[MESSAGE_ATTRIBUTE])


class _Reader:
    """Restores one error and the errors behind it."""

    def __init__(self, codec: Codec, step: str, attempt: int) -> None:
        self._fields = FieldReader(codec, lambda data: self.error(msgspec.convert(data, FailureRecord)))
        self._step = step
        self._attempt = attempt

    def error(self, record: FailureRecord) -> BaseException:
        members = [self.error(member) for member in record.members]
        found = self._of_its_class(record, members)
        error = self._stand_in(record) if found is None else found
        if record.notes:
            _root_value(error, "__dict__")["__notes__"] = list(record.notes)
        if record.traceback:
            _root_value(error, "__dict__")[TRACEBACK_ATTRIBUTE] = record.traceback
        if found is not None or not members:
            self._set_behind(error, record)
        else:  # a group whose own class is missing stands behind as a plain one, with its members
            group = BaseExceptionGroup(record.message, members)
            self._set_behind(group, record)
            error.__cause__ = group
        return error

    def _set_behind(self, error: BaseException, record: FailureRecord) -> None:
        if record.cause is not None:
            _ROOT["__cause__"].__set__(error, self.error(record.cause))
        if record.context_is_cause:
            _ROOT["__context__"].__set__(error, _root_value(error, "__cause__"))
        elif record.context is not None:
            _ROOT["__context__"].__set__(error, self.error(record.context))
        _ROOT["__suppress_context__"].__set__(error, record.suppress_context)

    def _of_its_class(self, record: FailureRecord, members: list[BaseException]) -> BaseException | None:
        cls = imported_class(record.module, record.class_, BaseException)
        if cls is None:
            return None
        try:
            error = self._filled(cls, record, members)
            if text_of(error) == record.message:
                return error
            told: type[BaseException] = cast(Any, type(cls))(
                cls.__name__, (_Told, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
            )
            error = self._filled(told, record, members)
            _root_value(error, "__dict__")[MESSAGE_ATTRIBUTE] = record.message
        except Exception:  # noqa: BLE001 (a class that cannot be made without its constructor, or is final)
            return None
        return error

    def _filled(
        self, cls: type[BaseException], record: FailureRecord, members: list[BaseException]
    ) -> BaseException:
        values = {name: self._fields.read(data) for name, data in record.fields.items()}
        if BaseExceptionGroup in cls.__mro__:
            error = _empty(cls, str(values.pop("message", "")), members)
        else:
            error = _empty(cls)
            _ROOT["args"].__set__(error, tuple(self._fields.read(record.args)))
        slots = _slots(cls)
        for name, value in values.items():
            if name not in slots:
                _root_value(error, "__dict__")[name] = value
                continue
            try:
                slots[name].__set__(error, value)
            except (AttributeError, TypeError):  # read-only, or a number whose repr alone was kept
                continue
        return error

    def _stand_in(self, record: FailureRecord) -> StepFailedError:
        where = f"of step {self._step!r}, " if self._step else ""
        return StepFailedError(
            f"{record.class_name}: {record.message} ({where}restored without its class: it is not "
            f"imported in this process, or cannot be made without its constructor; import {record.module!r} "
            "before the runtime opens)",
            step=self._step,
            attempt=self._attempt,
            error_class=record.class_name,
            error_message=record.message,
            fields={name: plain_value(data) for name, data in record.fields.items()},
            traceback_text=record.traceback,
        )


def _empty(cls: type[BaseException], *args: Any) -> BaseException:
    """Return an instance on which no code of the user's has run."""
    for base in cls.__mro__:
        made_in_c = isinstance(vars(base).get("__new__"), BuiltinFunctionType)
        if made_in_c:
            try:
                made: BaseException = cast(Any, base).__new__(cls, *args)
            except TypeError:  # of two bases written in C only one may make the instance
                continue
            return made
    raise TypeError(f"{cls.__qualname__} has no constructor of its own")
