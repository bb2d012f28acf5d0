"""What a process that only visits a state folder knows of workflows: enough to check params, not to run.

Invariants:
    No instance moves while a visitor owns a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypedDict

import msgspec

from perdure.actors.durations import point_in_time, seconds
from perdure.actors.retention import Retention, retention_of
from perdure.engine.app import App
from perdure.engine.inbox import EventBody
from perdure.errors import InvalidArgumentError
from perdure.limits import Limits
from perdure.storage.codec import Codec
from perdure.storage.names import check_event_type


class Visitor(App):
    """Knows classes, to check params by, and runs none: no instance moves while it owns a folder."""

    def __init__(self, known: App) -> None:
        super().__init__(hooks=known.hooks, limits=Limits())
        self._known = known

    def definition(self, workflow: type | str) -> Any:
        """Return what is known of a workflow."""
        return self._known.definition(workflow)

    def with_workflows(self, workflows: Sequence[type]) -> App:
        """Return this very app: nothing is added to what runs nothing."""
        del workflows
        return self


def stored_params(app: App, workflow: str, params: Any) -> str:
    """Return params as they are stored, as JSON text. Raises `InvalidParamsError`, `UnknownWorkflowError`."""
    definition = app.definition(workflow)
    if params is None and not definition.has_params:
        return "null"
    stored, _ = Codec(app.hooks).coder(definition.params).accept(params)
    return stored if isinstance(stored, str) else repr(stored)


class Options(TypedDict, total=False):
    """Options of `Remote.create` beside params and id."""

    at_ms: int | None
    run_timeout_s: float | None
    tags: list[str] | None
    event: EventBody | None
    retention: Retention | None
    priority: int


def read_options(
    *,
    at: str | None,
    timeout: str | None,
    tags: Sequence[str],
    event: tuple[str, str] | None,
    retention: str | None,
    priority: int = 0,
) -> Options:
    """Return the options of a creation as they were written on a command line.

    `at` is ISO 8601 with a time zone; `event` a type and its payload as JSON text; `retention` a duration
    for all outcomes, or a JSON object of `Retention`'s fields. Raises `InvalidArgumentError`.
    """
    if event is not None:
        check_event_type(event[0])
    return Options(
        at_ms=None if at is None else _moment(at),
        run_timeout_s=None if timeout is None else seconds(timeout),
        tags=list(tags) or None,
        event=None if event is None else EventBody(type=event[0], payload=event[1]),
        retention=None if retention is None else _retention(retention),
        priority=priority,
    )


def _moment(text: str) -> int:
    try:
        return point_in_time(datetime.fromisoformat(text))
    except ValueError as error:
        raise InvalidArgumentError(
            f"{text!r} is not a point in time: write ISO 8601 with a time zone, as in 2030-01-31T09:00+01:00"
        ) from error


def _retention(text: str) -> Retention | None:
    if not text.lstrip().startswith("{"):
        return retention_of(text, "retention")
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
        return Retention(**fields)
    except (msgspec.MsgspecError, TypeError) as error:
        raise InvalidArgumentError(
            f"retention {text}: {error}; its fields are complete, errored, terminated and archive"
        ) from error
