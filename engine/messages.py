"""What a supervisor and its workers say to each other: frozen records, tagged by their names.

They travel over a `Line`, both ends of which run the same version of Perdure.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from perdure import errors
from perdure.actors.methods import MethodCall, MethodReply
from perdure.actors.outcome import Completed, Dead, Failed, Outcome, Terminated
from perdure.engine.access import Command, ElsewhereError
from perdure.engine.status import InstanceStatus
from perdure.errors import CommandError, PerdureError
from perdure.storage.records import Key, Stored

OUTCOME_CHARS_MAX: Final = 64 * 1024
"""A larger result is read from the instance's file by whoever wants it."""

How = Literal["complete", "errored", "terminated", "dead"]
Ask = Literal["command", "status", "outcome", "sync", "sync-all", "statistics", "call"]


class Begin(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """To a worker: open the folder under this number, as one of so many."""

    worker: int
    workers: int
    settings: bytes


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """From a worker: it runs instances."""


class Refused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """From a worker: it cannot run, and why."""

    error: str
    text: str


class Look(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Either way: there may be something in the catalog that can move."""


class Follow(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """To a worker: say `Changed` at the next commit of this instance."""

    workflow: str
    id: str


class Leave(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """To a worker: park what runs and end."""


class Ended(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """From a worker: how an instance ended, durably. `stored` is None where it is too large."""

    workflow: str
    id: str
    how: How
    stored: Any  # `Stored` or None: on its way, text and bytes are told apart only so


class Changed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """From a worker: an instance that is followed was committed."""

    workflow: str
    id: str


class Counters(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """From a worker: its statistics, as they are now."""

    statistics: bytes


class Forget(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """From a worker: another incarnation has taken the place of this instance."""

    workflow: str
    id: str


class Posted(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """From a worker: there are posts between parents and children to deliver."""


class Request(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Either way: a question about one instance, or `sync-all` of a workflow."""

    ask: Ask
    workflow: str
    id: str
    command: Command | None = None
    number: int = 0
    call: MethodCall | None = None


class Answer(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Either way: the answer to the request of that number; `error` is the class name of one of ours."""

    number: int
    status: InstanceStatus | None = None
    ended: Ended | None = None
    value: bytes | None = None
    error: str | None = None
    text: str = ""
    facts: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    reply: MethodReply | None = None


ToWorker = Begin | Look | Follow | Leave
ToSupervisor = Ready | Refused | Look | Ended | Changed | Counters | Forget | Posted
Message = ToWorker | ToSupervisor | Request | Answer


def ended(key: Key, outcome: Outcome) -> Ended | None:
    """Return what is told of an outcome, None where the instance has not ended."""
    match outcome:
        case Completed(output=output):
            return Ended(key.workflow, key.id, "complete", _small(output))
        case Failed(error=error):
            return Ended(key.workflow, key.id, "errored", _small(error))
        case Terminated():
            return Ended(key.workflow, key.id, "terminated", "")
        case Dead(reason=reason):
            return Ended(key.workflow, key.id, "dead", reason)
        case _:
            return None


def outcome_of(told: Ended) -> Outcome | None:
    """Return the outcome that was told, None where it was too large to be."""
    if told.stored is None:
        return None
    match told.how:
        case "complete":
            return Completed(output=told.stored)
        case "errored":
            return Failed(error=str(told.stored))
        case "terminated":
            return Terminated()
        case "dead":
            return Dead(reason=str(told.stored))


def _small(stored: Stored) -> Stored | None:
    return stored if len(stored) <= OUTCOME_CHARS_MAX else None


def failed(number: int, error: PerdureError) -> Answer:
    """Return the answer that carries an error, with the plain ones of its attributes."""
    facts = {
        name: value for name, value in vars(error).items() if isinstance(value, str | int | float | None)
    }
    return Answer(number, error=type(error).__name__, text=str(error), facts=facts)


def restored(name: str, text: str, facts: dict[str, Any] | None = None) -> PerdureError:
    """Return the error that `failed` was given."""
    cls = ElsewhereError if name == "ElsewhereError" else getattr(errors, name, CommandError)
    if not (isinstance(cls, type) and issubclass(cls, PerdureError)):
        cls = CommandError
    error = cls.__new__(cls)
    Exception.__init__(error, text)
    vars(error).update(facts or {})
    return error
