"""Introspection: what a test changes of a workflow or an instance, and how it waits for them.

Made by `perdure.testing.introspect`, in a runtime of the test kit alone. The changes are `Rules`,
which the actors of that runtime ask (`actors/modifiers.py`); the waiting stands here. Prior art: the
`cloudflare:test` module of Cloudflare's Vitest integration.

Invariants:
    A mock that could never be met with is refused where it is made.
    While a waiter looks, the clock does not jump over what it is waiting for.
"""

from __future__ import annotations

from typing import Any, Final, Self

import trio

from perdure.actors.modifiers import Failing, Modifiers
from perdure.engine.access import Access
from perdure.engine.bulk import check_status
from perdure.engine.instance import Instance
from perdure.engine.status import InstanceStatus
from perdure.errors import (
    InstanceFinishedError,
    InstanceNotFoundError,
    InvalidArgumentError,
    InvalidNameError,
    StepNotFoundError,
)
from perdure.storage.failure import restore_failure
from perdure.storage.names import check_event_type, check_instance_id
from perdure.storage.query import QueryHost
from perdure.storage.records import FINISHED, Key

LOOK_S: Final = 0.0005
"""How often a waiter looks whether the instance exists by now."""
ENDED: Final = (*FINISHED, "dead")
STEP: Final = (
    "SELECT seq, status, output, error, attempts FROM steps WHERE name = ? AND count = ? AND kind = 'do'"
)


class Introspection:
    """Changes what steps, sleeps and waits do, of one instance or of all of a workflow. A context manager.

    The changes hold inside the block, from the next attempt, sleep or wait on, through restarts of the
    instance. Steps go by their recorded names (`read source[3]`, `charge[order-1]`).
    """

    def __init__(
        self, access: Access, queries: QueryHost, modifiers: Modifiers, workflow: str, id_: str | None
    ) -> None:
        if id_ is not None:
            check_instance_id(id_)
        self._access = access
        self._queries = queries
        self._modifiers = modifiers
        self._workflow = workflow
        self._id = id_
        self._rules = modifiers.add(workflow, id_)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Change nothing from now on. Leaving the block does it."""
        self._modifiers.remove(self._rules)

    # -- steps -----------------------------------------------------------------------------

    def mock_step_result(self, name: str, value: Any, *, count: int | None = None) -> None:
        """Have the step return `value` instead of running, recorded as if it had: by its annotation.

        `count` is which use of the name is meant; None: each. For a step that yields, `value` is the list
        of what it yields. Raises `InvalidArgumentError` where the step has such a mock already.
        """
        place = _place(name, count)
        if place in self._rules.results:
            raise InvalidArgumentError(f"step {name!r} has a mocked result already")
        self._refuse_unreachable(place)
        self._rules.results[place] = value

    def mock_step_error(
        self, name: str, error: BaseException, *, times: int | None = None, count: int | None = None
    ) -> None:
        """Have attempts of the step raise `error` instead of running: the next `times` of them, or all.

        What comes after them is the next failure that was said, then the mocked result, then the step's
        own function. Raises `InvalidArgumentError`.
        """
        if not isinstance(error, Exception):
            raise InvalidArgumentError(f"mock_step_error: {error!r} is no exception that a step could raise")
        self._fail(name, count, Failing(error, times))

    def force_step_timeout(self, name: str, *, times: int | None = None, count: int | None = None) -> None:
        """Have attempts of the step time out at once instead of running; otherwise as `mock_step_error`."""
        self._fail(name, count, Failing(None, times))

    def _fail(self, name: str, count: int | None, failing: Failing) -> None:
        place = _place(name, count)
        if failing.times is not None and (type(failing.times) is not int or failing.times < 1):
            raise InvalidArgumentError(f"times={failing.times!r}: it must be a whole number, 1 or more")
        if failing.times is None and place in self._rules.results:
            raise InvalidArgumentError(
                f"step {name!r} has a mocked result, never met: give times=, of how many fail first"
            )
        self._refuse_unreachable(place)
        self._rules.failures.setdefault(place, []).append(failing)

    def _refuse_unreachable(self, place: tuple[str, int | None]) -> None:
        if any(failing.times is None for failing in self._rules.failures.get(place, ())):
            raise InvalidArgumentError(
                f"every attempt of step {place[0]!r} fails already, so this is never met: give that times="
            )

    # -- time and events -------------------------------------------------------------------

    def disable_sleeps(self, *names: str) -> None:
        """Have the sleeps of these names take no time; all sleeps where none is named."""
        if not names:
            self._rules.sleeps = None
        elif self._rules.sleeps is not None:
            self._rules.sleeps.update(names)

    def disable_retry_delays(self, *names: str) -> None:
        """Have the next attempt of these steps come at once; of all steps where none is named."""
        if not names:
            self._rules.delays = None
        elif self._rules.delays is not None:
            self._rules.delays.update(names)

    def mock_event(self, type: str, payload: Any = None) -> None:  # noqa: A002 - as in send_event
        """Have an event come to each instance once, as soon as a wait asks for its type.

        Raises `InvalidNameError` and `EncodingError`.
        """
        check_event_type(type)
        stored, _ = self._access.codec.coder(Any).record(payload)
        self._rules.events.append((type, stored))

    def force_event_timeout(self, name: str) -> None:
        """Have the wait of that name time out at once, whatever has come."""
        self._rules.timeouts.add(name)

    # -- waiting ---------------------------------------------------------------------------

    async def instances(self) -> list[Instance[Any]]:
        """Return the instances there are that these changes are of, oldest first."""
        rows = self._access.catalog.select(workflow=self._workflow, status=None, limit=None)
        return [self._handle(row.id) for row in reversed(rows) if self._id in (None, row.id)]

    async def wait_for_step_result(
        self,
        name: str,
        *,
        count: int = 1,
        id: str | None = None,  # noqa: A002 - as in create
        returns: Any = Any,
    ) -> Any:
        """Wait until the step has completed, and return its result; at once where it has by now.

        `id` names the instance where a whole workflow is introspected; it need not exist yet. `returns`
        is the annotation to decode by, where plain JSON is not meant.

        Raises the step's error, restored, where it failed, and `StepNotFoundError` where the instance
        has ended without it.
        """
        key = self._key(id)
        while True:
            change = await self._change_of(key)
            with self._modifiers.holding():
                ended = self._access.has_ended(key)
                rows = await self._handle(key.id).sql(STEP, name, count, reveal=True)
            row = rows[0] if rows else None
            if row is not None and row.status == "completed":
                output = "null" if row.output is None else row.output
                return self._access.codec.coder(returns).decode(output)
            if row is not None and row.status == "failed":
                raise restore_failure(row.error, step=name, attempt=row.attempts, codec=self._access.codec)
            if ended:
                raise StepNotFoundError(f"{key} has ended without step {name!r} (use {count})", step=name)
            await change.wait()

    async def wait_for_status(self, status: str, *, id: str | None = None) -> InstanceStatus:  # noqa: A002 - as in create
        """Wait until the instance has that status, and return where it stands; for "queued", until it exists.

        Raises `InstanceFinishedError` where it has ended with another, so that it could wait for ever.
        """
        check_status(status)
        key = self._key(id)
        while True:
            change = await self._change_of(key)
            with self._modifiers.holding():
                ended = self._access.has_ended(key)
                stands = await self._handle(key.id).status()
            if status in (stands.status, "queued"):
                return stands
            if ended and stands.status in ENDED:
                raise InstanceFinishedError(
                    f"{key} has ended as {stands.status}, so it will not be {status}",
                    workflow=key.workflow,
                    instance_id=key.id,
                )
            await change.wait()

    async def _change_of(self, key: Key) -> trio.Event:
        """Return what is set at the next change of the instance, once there is one."""
        while True:
            try:
                self._access.require(key)
            except InstanceNotFoundError:
                await trio.sleep(LOOK_S)
            else:
                return self._access.change_of(key)

    def _key(self, id_: str | None) -> Key:
        found = self._id if id_ is None else id_
        if found is None:
            raise InvalidArgumentError(f"which instance of {self._workflow} is to be waited for? Give id=")
        if self._id not in (None, found):
            raise InvalidArgumentError(f"id={found!r}: this introspection is of {self._workflow}/{self._id}")
        return Key(self._workflow, found)

    def _handle(self, id_: str) -> Instance[Any]:
        definition = self._access.app.definitions.get(self._workflow)
        return Instance(Key(self._workflow, id_), self._access, self._queries, definition)


def _place(name: str, count: int | None) -> tuple[str, int | None]:
    if not name:
        raise InvalidNameError("a step has a name: '' is none")
    if count is not None and (type(count) is not int or count < 1):
        raise InvalidArgumentError(f"count={count!r}: it must be a whole number, 1 or more")
    return name, count
