"""What an instance is created with: checked whole before anything is written.

`Runtime.create` is the only user. Params and event are encoded once, here, and travel as they are.

Invariants:
    Every refusal comes before the first write.
    A creation with a token makes the same incarnation however often it is repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict, TypeVar

import msgspec

from perdure.actors.concurrency import lane_of
from perdure.actors.durations import Duration, seconds
from perdure.actors.host import Clock, deadline_in
from perdure.actors.limiting import check_event_bytes, effective_limits
from perdure.actors.retention import Retention, retention_of, stored_retention
from perdure.actors.step import WorkflowStep
from perdure.actors.workflow import Definition, WorkflowEvent
from perdure.engine.app import App
from perdure.errors import InvalidArgumentError
from perdure.limits import PRIORITY_MAX
from perdure.storage.codec import Codec
from perdure.storage.names import check_caller, check_event_type, check_instance_id, check_tags
from perdure.storage.records import Birth, Stored

P = TypeVar("P", contravariant=True)
R = TypeVar("R", covariant=True)
IfExists = Literal["fail", "attach", "restart"]


class Runnable(Protocol[P, R]):
    """The shape of a workflow class, for type checkers: params in, result out."""

    async def run(self, event: WorkflowEvent[P], step: WorkflowStep, /) -> R:
        """Run the workflow."""
        ...


class Maker(Protocol):
    """What an instance is made with: time, random ids, the codec of its values, and what is allowed."""

    @property
    def app(self) -> App:
        """What the process can run, and its limits."""
        ...

    @property
    def clock(self) -> Clock:
        """Time and randomness."""
        ...

    @property
    def codec(self) -> Codec:
        """How values are stored."""
        ...


class CreateOptions(TypedDict, total=False):
    """What `Runtime.create` takes by name beside `params`."""

    id: str | None
    if_exists: IfExists
    at: datetime | None
    timeout: Duration | None
    event: tuple[str, Any] | None
    tags: Sequence[str] | None
    retention: Retention | Duration | None
    priority: int
    token: str | None


def prepare_birth(
    maker: Maker,
    definition: Definition,
    params: Any,
    *,
    id_: str | None,
    event: tuple[str, Any] | None,
    tags: Sequence[str] | None,
    timeout: Duration | None,
    retention: Retention | Duration | None,
    token: str | None,
    priority: int = 0,
    schedule: str | None = None,
) -> tuple[Birth, Stored]:
    """Return the birth of an instance and its encoded params.

    Raises `InvalidParamsError`, `InvalidIdError`, `InvalidNameError`, `InvalidDurationError` and
    `InvalidArgumentError`.
    """
    if id_ is None:
        id_ = random_id(maker.clock)
    check_instance_id(id_)
    check_caller(token=token)
    kept = retention_of(retention, "retention")
    stored: Stored = "null"
    decoded: Any = None
    if params is not None or definition.has_params:
        stored, decoded = maker.codec.coder(definition.params).accept(params)
    limits = effective_limits(definition.limits, maker.app.limits)
    check_event_bytes(limits, "params", stored)
    payload = None if event is None else _event_payload(maker, event)
    if payload is not None:
        check_event_bytes(limits, "the payload of the event", payload)
    if type(priority) is not int or abs(priority) > PRIORITY_MAX:
        raise InvalidArgumentError(
            f"priority={priority!r}: it must be a whole number from {-PRIORITY_MAX:,} to {PRIORITY_MAX:,}"
        )
    return Birth(
        workflow=definition.name,
        id=id_,
        incarnation=maker.clock.random_bits(62) if token is None else _incarnation(token),
        created_at_ms=maker.clock.wall_ms(),
        version=definition.version,
        tags=None if tags is None else msgspec.json.encode(check_tags(tags)).decode(),
        event_type=None if event is None else event[0],
        event_payload=payload,
        timeout=None if timeout is None else deadline_in(maker.clock, seconds(timeout)),
        retention=None if kept is None else stored_retention(kept),
        schedule=schedule,
        priority=priority,
        lane=lane_of(definition.concurrency, decoded),
    ), stored


def random_id(clock: Clock) -> str:
    """Return an id that nobody else draws: the moment, then 80 random bits.

    Ids made one after another stand side by side in the catalog's index, so that a batch of them
    touches a few pages of it instead of one for each.
    """
    return f"{clock.wall_ms():012x}{clock.random_bits(80):020x}"


def _event_payload(maker: Maker, event: tuple[str, Any]) -> str:
    try:
        type_, payload = event
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"event={event!r}: it must be a pair (type, payload)") from None
    if isinstance(event, str):  # pyright: ignore[reportUnnecessaryIsInstance] - of two letters, from a caller that no type checker has seen
        raise InvalidArgumentError(f"event={event!r}: it must be a pair (type, payload)")
    check_event_type(type_)
    encoded, _ = maker.codec.coder(Any).record(payload)
    if isinstance(encoded, bytes):
        raise InvalidArgumentError("the payload of create(event=...) must be a JSON value")
    return encoded


def _incarnation(token: str) -> int:
    """Make an incarnation of a token, which tells whose creation is there."""
    return int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest()) >> 2
