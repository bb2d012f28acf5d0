"""`step.do` and `step.map`, with what type checkers are told of them.

A part of `WorkflowStep` that stands by itself because of its overloads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from types import FunctionType
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack, cast, overload

from perdure.actors.calls import StepCall
from perdure.actors.compensation import CompensatedCall, RollbackOption, Undo
from perdure.actors.compose import GroupCall
from perdure.actors.context import StepContext
from perdure.actors.declared import Declared
from perdure.actors.do import DoCall, known_of
from perdure.actors.durations import Duration
from perdure.actors.identity import parts_of
from perdure.actors.retry import DEFAULT_CONFIG, Retries, Sensitive, StepConfig, resolve_config
from perdure.actors.run import Run
from perdure.actors.signatures import (
    Declaration,
    MapOptions,
    StepOptions,
    Yields,
)
from perdure.actors.step_stream import StepStream
from perdure.errors import InvalidArgumentError

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K", bound=str)
I = TypeVar("I")  # noqa: E741 - the type of an item of step.map
Ts = TypeVarTuple("Ts")


new_call: Final = cast("Callable[[Any], DoCall[Any]]", object.__new__)
begin_call: Final = cast("Callable[..., None]", DoCall.__init__)  # pyright: ignore[reportUnknownMemberType]  # of any result type
"""Making a call in two steps costs half of what calling the class does, and a replay does little else."""


class DoSteps:
    """The step methods that run functions. `WorkflowStep` is one."""

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    # -- do --------------------------------------------------------------------------------

    @overload
    def do(
        self,
        name: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        returns: type[R],
        **options: Unpack[StepOptions],
    ) -> StepCall[R]: ...
    @overload
    def do(
        self, name: str, fn: Callable[[*Ts], Yields[T]], /, *args: *Ts, **options: Unpack[StepOptions]
    ) -> StepCall[StepStream[T]]: ...
    @overload
    def do(
        self,
        name: str,
        fn: Callable[[*Ts, StepContext], Yields[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> StepCall[StepStream[T]]: ...
    @overload
    def do(
        self,
        name: str,
        fn: Callable[[StepContext, *Ts], Yields[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> StepCall[StepStream[T]]: ...
    @overload
    def do(
        self, name: str, fn: Callable[[*Ts], Awaitable[T]], /, *args: *Ts, **options: Unpack[StepOptions]
    ) -> StepCall[T]: ...
    @overload
    def do(
        self,
        name: str,
        fn: Callable[[*Ts, StepContext], Awaitable[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> StepCall[T]: ...
    @overload
    def do(
        self,
        name: str,
        fn: Callable[[StepContext, *Ts], Awaitable[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> StepCall[T]: ...
    @overload
    def do(
        self, name: str, fn: Callable[[*Ts], T], /, *args: *Ts, **options: Unpack[StepOptions]
    ) -> StepCall[T]: ...
    @overload
    def do(
        self, name: str, fn: Callable[[*Ts, StepContext], T], /, *args: *Ts, **options: Unpack[StepOptions]
    ) -> StepCall[T]: ...
    @overload
    def do(
        self, name: str, fn: Callable[[StepContext, *Ts], T], /, *args: *Ts, **options: Unpack[StepOptions]
    ) -> StepCall[T]: ...
    @overload
    def do(
        self,
        name: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        returns: object,
        **options: Unpack[StepOptions],
    ) -> StepCall[Any]: ...
    @overload
    def do(
        self,
        name: str | None = None,
        /,
        *,
        returns: object = None,
        concurrent: bool = False,
        **options: Unpack[StepOptions],
    ) -> Declaration: ...

    def do(  # type: ignore[misc]  # mypy takes *Ts for more than *args: Any
        self,
        name: str | None = None,
        fn: Any = None,
        /,
        *args: Any,
        retries: Retries | int | None = None,
        timeout: Duration | None = None,
        heartbeat_timeout: Duration | None = None,
        returns: object = None,
        key: object = None,
        was: str | tuple[str, ...] | None = None,
        sensitive: Sensitive | None = None,
        concurrent: bool = False,
        rollback: RollbackOption | None = None,
    ) -> Any:
        """Run `fn(*args)` as the step `name`, once: its result is recorded and answers every replay.

        `fn` is a trio coroutine function, a plain function (it runs in a thread), or one made by
        `asyncio_step` or `process_step`. A generator, plain or async, or one that is annotated to return
        an iterator, gives a `StepStream`: what it yields is stored as it comes. Keyword arguments go
        through `functools.partial`. A parameter annotated `StepContext` gets the attempt. `retries`
        counts retries (attempts = limit + 1; 5 by default, 10 seconds apart at first, doubling);
        `timeout` is of one attempt (10 minutes by default), and so is `heartbeat_timeout`: how long it
        may be without a `StepContext.heartbeat`. `returns` replaces the function's return annotation,
        which decides what stored bytes are decoded to. `key` is part of the step's identity:
        `charge[order-1]`; `was` has the names that the step had before: what is recorded under them
        answers. `sensitive` ("input", "output", "both") keeps values out of everything that is shown.
        A function that crashes between its effect and the commit runs again: use
        `StepContext.idempotency_key` towards the outside. `rollback` undoes the step where the
        instance ends without success: a function that gets a `RollbackContext`, or a `Rollback`.

        Without `fn` it is a decorator that declares a step; calling the result runs it, and first,
        with `concurrent` at the same time, the steps whose names its parameters bear.

        Raises `InvalidArgumentError`, `AmbiguousStepError` and `DivergenceError` at the call; the
        await raises what the last attempt raised, `StepTimeoutError`, or `StepLostError`.

        >>> await step.do("fetch levels", fetch_levels, "Brest", retries=3, timeout="1 minute")
        [0.4, 3.1]
        """
        config = DEFAULT_CONFIG
        if (
            retries is not None
            or timeout is not None
            or heartbeat_timeout is not None
            or sensitive is not None
        ):
            config = resolve_config(retries, timeout, heartbeat_timeout, sensitive)
        run = self._run
        if fn is None:
            return self._declare(
                name, config, returns=returns, key=key, was=was, concurrent=concurrent, rollback=rollback
            )
        if name is None:
            raise InvalidArgumentError("a step needs a name: step.do(name, fn, *args)")
        if concurrent:
            raise InvalidArgumentError("concurrent= is for the decorator form, whose steps have dependencies")
        known = run.callees.get(fn) if returns is None and type(fn) is FunctionType else None
        former = () if was is None else run.names.former(was, name, key)
        known = known or known_of(run, fn, returns)
        if rollback is not None:
            undo = Undo(rollback, run.library)
            return undo.register(CompensatedCall(run, name, fn, args, known, config, key, 2), former)
        call = new_call(DoCall)
        begin_call(call, run, name, fn, args, known, config, key, 2)
        if former:
            call.adopt(former)
        return call

    def _declare(
        self, name: str | None, config: StepConfig, *, returns: object, key: object,
        was: str | tuple[str, ...] | None, concurrent: bool, rollback: RollbackOption | None,
    ) -> Callable[[Callable[..., Any]], Declared[Any]]:  # fmt: skip
        run = self._run
        undo = None if rollback is None else Undo(rollback, run.library)
        cls: type[DoCall[Any]] = DoCall if rollback is None else CompensatedCall

        def make(step_name: str, fn: Callable[..., Any]) -> Callable[[tuple[Any, ...]], DoCall[Any]]:
            def call(args: tuple[Any, ...]) -> DoCall[Any]:
                former = () if was is None else run.names.former(was, step_name, key)
                made: DoCall[Any] = cls(run, step_name, fn, args, known_of(run, fn, returns), config, key, 2)
                if undo is not None:
                    return undo.register(made, former)
                if former:
                    made.adopt(former)
                return made

            return call

        def declare(fn: Callable[..., Any]) -> Declared[Any]:
            return Declared(run, name, fn, known_of(run, fn, returns)[0], make, concurrent=concurrent)

        return declare

    @overload
    def map(
        self,
        name: str,
        fn: Callable[..., Any],
        items: Iterable[I],
        *,
        returns: type[R],
        **options: Unpack[MapOptions],
    ) -> GroupCall[list[R]]: ...
    @overload
    def map(
        self, name: str, fn: Callable[[I], Awaitable[T]], items: Iterable[I], **options: Unpack[MapOptions]
    ) -> GroupCall[list[T]]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[[I, StepContext], Awaitable[T]],
        items: Iterable[I],
        **options: Unpack[MapOptions],
    ) -> GroupCall[list[T]]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[[StepContext, I], Awaitable[T]],
        items: Iterable[I],
        **options: Unpack[MapOptions],
    ) -> GroupCall[list[T]]: ...
    @overload
    def map(
        self, name: str, fn: Callable[[I], T], items: Iterable[I], **options: Unpack[MapOptions]
    ) -> GroupCall[list[T]]: ...
    @overload
    def map(
        self, name: str, fn: Callable[[I, StepContext], T], items: Iterable[I], **options: Unpack[MapOptions]
    ) -> GroupCall[list[T]]: ...
    @overload
    def map(
        self, name: str, fn: Callable[[StepContext, I], T], items: Iterable[I], **options: Unpack[MapOptions]
    ) -> GroupCall[list[T]]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[..., Any],
        items: Iterable[I],
        *,
        returns: object,
        **options: Unpack[MapOptions],
    ) -> GroupCall[list[Any]]: ...

    def map(
        self,
        name: str,
        fn: Callable[..., Any],
        items: Iterable[Any],
        *,
        limit: int | None = None,
        retries: Retries | int | None = None,
        timeout: Duration | None = None,
        heartbeat_timeout: Duration | None = None,
        returns: object = None,
        was: str | tuple[str, ...] | None = None,
        sensitive: Sensitive | None = None,
        rollback: RollbackOption | None = None,
    ) -> GroupCall[list[Any]]:
        """Run `fn(item)` for each item as the steps `name[0]`, `name[1]` …, at most `limit` at a time.

        Returns the results in the order of the items. All parts run to their end; then one
        failure is raised as it is, several as an `ExceptionGroup`. Options as in `do`.

        >>> await step.map("fetch levels", fetch_levels, ["Brest", "Cork"], limit=8)
        [[0.4, 3.1], [0.4, 3.1]]
        """
        items = parts_of(name, items, limit)
        config = resolve_config(retries, timeout, heartbeat_timeout, sensitive)
        run = self._run
        known = known_of(run, fn, returns)
        undo = None if rollback is None else Undo(rollback, run.library)
        make: type[DoCall[Any]] = DoCall if rollback is None else CompensatedCall
        parts: list[StepCall[Any]] = []
        with run.declaring():
            for index, item in enumerate(items):
                former = () if was is None else run.names.former(was, name, index)
                part: DoCall[Any] = make(run, name, fn, (item,), known, config, index, 2)
                if undo is not None:
                    undo.register(part, former)
                elif former:
                    part.adopt(former)
                parts.append(part)
        return GroupCall(run, name, parts, list, limit=limit, depth=2)
