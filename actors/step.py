"""`WorkflowStep`: what `run()` is given to name its units of work.

Every method checks and registers its call and returns an awaitable; nothing happens before the
`await`, and a call that is never awaited fails the run with its line (law 8).
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, TypeVarTuple, overload
from uuid import UUID

from perdure.actors.callee import callee_of
from perdure.actors.calls import StepCall
from perdure.actors.compose import DeadlineCall, GroupCall, RaceCall
from perdure.actors.do import DoCall, known_of
from perdure.actors.durations import Duration, point_in_time, seconds
from perdure.actors.identity import function_identity, keyed
from perdure.actors.instant import TransactionCall, ValueCall
from perdure.actors.patch import PatchCall
from perdure.actors.retry import DEFAULT_CONFIG
from perdure.actors.signatures import (
    CallOrAny,
    CallOrAsync,
    CallOrOther,
    D,
)
from perdure.actors.step_do import DoSteps
from perdure.actors.step_family import FamilySteps
from perdure.actors.streams import WritableCall
from perdure.actors.waiting import EventCall, SleepCall, StepEvent
from perdure.errors import InvalidArgumentError
from perdure.storage.names import check_event_type
from perdure.storage.sql import Sql

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K", bound=str)
I = TypeVar("I")  # noqa: E741 - the type of an item of step.map
Ts = TypeVarTuple("Ts")


class WorkflowStep(FamilySteps, DoSteps):
    """The step methods of one run. Prior art: Cloudflare Workflows' `WorkflowStep`."""

    __slots__ = ()

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that is quiet while recorded steps are replayed."""
        return self._run.log

    # -- waiting ---------------------------------------------------------------------------

    def sleep(self, name: str, duration: Duration) -> StepCall[None]:
        """Sleep for `duration`: "5 seconds", a timedelta, or a number of seconds. Costs nothing meanwhile.

        >>> await step.sleep("until the tide is in", "6 hours")
        """
        return SleepCall(self._run, name, seconds=seconds(duration), until_ms=None, depth=2)

    def sleep_until(self, name: str, when: datetime) -> StepCall[None]:
        """Sleep until the wall clock shows `when`, an aware datetime; a past one is over at once.

        >>> await step.sleep_until("new year", datetime(2031, 1, 1, tzinfo=UTC))
        """
        return SleepCall(self._run, name, seconds=None, until_ms=point_in_time(when), depth=2)

    @overload
    def wait_for_event(
        self,
        name: str,
        *,
        type: str,
        timeout: Duration | None = "24 hours",
        where: Callable[[Any], bool] | None = None,
    ) -> StepCall[StepEvent[Any]]: ...
    @overload
    def wait_for_event(
        self,
        name: str,
        *,
        type: str,
        timeout: Duration | None = "24 hours",
        where: Callable[[R], bool] | None = None,
        returns: builtins.type[R],
    ) -> StepCall[StepEvent[R]]: ...
    @overload
    def wait_for_event(
        self,
        name: str,
        *,
        type: str,
        timeout: Duration | None = "24 hours",
        where: Callable[[Any], bool] | None = None,
        returns: object,
    ) -> StepCall[StepEvent[Any]]: ...

    def wait_for_event(
        self,
        name: str,
        *,
        type: str,  # noqa: A002 - the name that the overloads and the peer use
        timeout: Duration | None = "24 hours",
        where: Callable[[Any], bool] | None = None,
        returns: object = Any,
    ) -> StepCall[StepEvent[Any]]:
        """Wait for an event of `type`, the oldest that no wait has got yet and that `where` accepts.

        `returns` is what its payload is decoded to. With `timeout=None` it waits for ever. The
        await raises `EventTimeoutError` when none came in time.

        >>> approval = await step.wait_for_event("approval", type="approve", timeout="3 days")
        >>> approval.payload
        {'by': 'Ada'}
        """
        check_event_type(type)
        timeout_s = None if timeout is None else seconds(timeout)
        call: EventCall[Any] = EventCall(
            self._run, name, type_=type, timeout_s=timeout_s, where=where, returns=returns, depth=2
        )
        return call

    # -- parallel parts --------------------------------------------------------------------

    @overload
    def gather(self, name: str, parts: Mapping[K, CallOrAsync[T]]) -> GroupCall[dict[K, T]]: ...
    @overload
    def gather(self, name: str, parts: Mapping[K, CallOrAny[T]]) -> GroupCall[dict[K, T]]: ...
    @overload
    def gather(  # pyright: ignore[reportOverlappingOverload]  # mypy alone needs this one
        self, name: str, parts: Mapping[K, CallOrOther[D]]
    ) -> GroupCall[dict[K, D]]: ...

    def gather(
        self, name: str, parts: Mapping[Any, StepCall[Any] | Callable[[], Any]]
    ) -> GroupCall[dict[Any, Any]]:
        """Run the parts at the same time and return their results under the same keys.

        A part is a step call (`step.sleep(...)`), or a function of no arguments, which becomes
        the step `name[key]`.

        >>> parts = {"nap": step.sleep("nap", 1), "levels": step.do("fetch", fetch_levels, "Brest")}
        >>> await step.gather("both", parts)
        {'nap': None, 'levels': [0.4, 3.1]}
        """
        with self._run.declaring():
            calls = self._parts(name, parts)
        return GroupCall(
            self._run,
            name,
            list(calls.values()),
            lambda results: dict(zip(calls, results, strict=True)),
            depth=2,
        )

    @overload
    def race(self, name: str, parts: Mapping[K, CallOrAsync[T]]) -> StepCall[tuple[K, T]]: ...
    @overload
    def race(self, name: str, parts: Mapping[K, CallOrAny[T]]) -> StepCall[tuple[K, T]]: ...
    @overload
    def race(  # pyright: ignore[reportOverlappingOverload]  # mypy alone needs this one
        self, name: str, parts: Mapping[K, CallOrOther[D]]
    ) -> StepCall[tuple[K, D]]: ...

    def race(
        self, name: str, parts: Mapping[Any, StepCall[Any] | Callable[[], Any]]
    ) -> StepCall[tuple[Any, Any]]:
        """Run the parts at the same time; the first to finish decides, the others are cancelled.

        Returns (key of the winner, its result), or raises its error. The decision is recorded.
        Parts as in `gather`.

        >>> await step.race("shorter nap", {"a": step.sleep("a", "1 hour"), "b": step.sleep("b", 1)})
        ('b', None)
        """
        with self._run.declaring():
            race: RaceCall[Any] = RaceCall(self._run, name, depth=2)
            race.enter(self._parts(name, parts))
        return race

    def _parts(
        self, name: str, parts: Mapping[str, StepCall[Any] | Callable[[], Any]]
    ) -> dict[str, StepCall[Any]]:
        if not isinstance(parts, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
            raise InvalidArgumentError(f"{name!r} has {parts!r} for its parts: give a dict of them")
        if not parts:
            raise InvalidArgumentError(f"{name!r} has no parts: give at least one")
        calls: dict[str, StepCall[Any]] = {}
        for key, part in parts.items():
            if isinstance(part, StepCall):
                calls[key] = part
            else:
                # Each part has a function of its own, so its name is the whole `name[key]`.
                known = known_of(self._run, part, None)
                calls[key] = DoCall(self._run, keyed(name, key), part, (), known, DEFAULT_CONFIG, None, 3)
        return calls

    @overload
    def writable(
        self, name: str, *, of: type[R], key: object = None, sensitive: bool = False
    ) -> WritableCall[R]: ...
    @overload
    def writable(
        self, name: str, *, of: object = Any, key: object = None, sensitive: bool = False
    ) -> WritableCall[Any]: ...

    def writable(
        self, name: str, *, of: object = Any, key: object = None, sensitive: bool = False
    ) -> WritableCall[Any]:
        """`async with step.writable(name) as out:` opens a durable stream, which is read while it is written.

        Hand `out` to step functions: what they write is readable from `instance.stream(name)` once it is
        durable, and not written again on a replay; what a failed attempt wrote is superseded. `of` is
        the annotation of a chunk. The stream ends with the body; each name is opened once.

        Raises `InvalidNameError`, `AmbiguousStepError`, and `EncodingError` for an annotation that
        nothing restores.

        >>> async def ask(out: perdure.StreamWriter[str], question: str) -> None:
        ...     await out.write("at noon")
        >>> async with step.writable("answer") as out:
        ...     await step.do("ask", ask, out, "When is high water?")
        """
        return WritableCall(self._run, name, of=of, key=key, sensitive=sensitive, depth=2)

    def move_on_after(self, name: str, duration: Duration) -> DeadlineCall:
        """`async with step.move_on_after(name, duration) as scope:` ends its body after `duration`.

        A durable deadline: it runs on through crashes and hibernation, and what it decided is
        recorded; `scope.expired` says it afterwards.

        >>> async with step.move_on_after("office hours", "8 hours") as scope:
        ...     await step.sleep("night", "12 hours")
        >>> scope.expired
        True
        """
        return DeadlineCall(self._run, name, seconds(duration), depth=2)

    # -- changes of the code ---------------------------------------------------------------

    def patched(self, change: str) -> PatchCall:
        """Whether this instance takes the new path of a change of the code: `if await step.patched("id")`.

        True for an instance that had not come further than this when it first asked; False for one that
        has recorded steps which this run has still to ask for, and so was on the old path. The answer
        is recorded under the id and stays. Once no instance is on the old path any more, the call
        can be taken out of the code.

        Raises `InvalidNameError`.

        >>> await step.patched("levels from the new service")
        True
        """
        return PatchCall(self._run, change, depth=2)

    # -- instant ---------------------------------------------------------------------------

    def now(self, name: str = "now", *, key: object = None) -> StepCall[datetime]:
        """Return the time, aware, in UTC: the same on every replay."""
        clock = self._run.host.clock
        return ValueCall(
            self._run,
            name,
            lambda: datetime.fromtimestamp(clock.wall_ms() / 1000, UTC),
            datetime,
            key=key,
            depth=2,
        )

    def random(self, name: str = "random", *, key: object = None) -> StepCall[float]:
        """Return a random number from 0 up to 1: the same on every replay."""
        return ValueCall(self._run, name, self._run.host.clock.random, float, key=key, depth=2)

    def uuid(self, name: str = "uuid", *, key: object = None) -> StepCall[UUID]:
        """Return a random UUID (version 4): the same on every replay."""
        clock = self._run.host.clock
        return ValueCall(
            self._run, name, lambda: UUID(int=clock.random_bits(128), version=4), UUID, key=key, depth=2
        )

    @overload
    def transaction(
        self, name: str, fn: Callable[..., Any], /, *args: Any, returns: type[R], key: object = None
    ) -> StepCall[R]: ...
    @overload
    def transaction(
        self, name: str, fn: Callable[[Sql, *Ts], T], /, *args: *Ts, key: object = None
    ) -> StepCall[T]: ...
    @overload
    def transaction(
        self, name: str, fn: Callable[..., Any], /, *args: Any, returns: object, key: object = None
    ) -> StepCall[Any]: ...

    def transaction(  # type: ignore[misc]  # mypy takes *Ts for more than *args: Any
        self, name: str, fn: Callable[..., Any], /, *args: Any, returns: object = None, key: object = None
    ) -> StepCall[Any]:
        """Run `fn(sql, *args)` over the instance's own tables, exactly once.

        `fn` is plain and synchronous: its writes and this step's record are one transaction.

        >>> def count(sql: Sql, table: str) -> int:
        ...     return sql.exec("SELECT count(*) AS n FROM pragma_table_info(?)", table).one()["n"]
        >>> await step.transaction("count", count, "steps") > 10
        True
        """
        callee = callee_of(fn, "trio")
        if callee.kind != "plain" or callee.streams:
            raise InvalidArgumentError(
                f"step.transaction({name!r}) needs a plain function: it runs inside one transaction"
            )
        call: TransactionCall[Any] = TransactionCall(
            self._run, name, fn, args, returns=returns, key=key, function=function_identity(fn), depth=2
        )
        return call
