"""What type checkers see of the step methods, where one signature cannot say it.

A step function may be a coroutine function or a plain one, and may take the attempt's
`StepContext` first or last; a call's arguments and its result are inferred in each of these. The
order of overloads matters: a plain function is whatever returns no awaitable.

Nothing here runs but the definitions of the types. `tests/typing/` holds what users see inferred.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeVar, TypeVarTuple, overload

from perdure.actors.calls import StepCall
from perdure.actors.compensation import RollbackOption
from perdure.actors.context import StepContext
from perdure.actors.durations import Duration
from perdure.actors.retry import Retries, Sensitive

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    D = TypeVarWithDefault("D", default=Any)
else:  # the default is for type checkers alone, so that nobody needs typing_extensions at run time
    D = TypeVar("D")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Result = TypeVar("Result", covariant=True)


class AttemptOptions(TypedDict, total=False):
    """How a step is attempted."""

    retries: Retries | int | None
    timeout: Duration | None
    heartbeat_timeout: Duration | None
    was: str | tuple[str, ...] | None
    sensitive: Sensitive | None
    rollback: RollbackOption | None


class StepOptions(AttemptOptions, total=False):
    """What `step.do` takes by name beside `returns`."""

    key: object


class MapOptions(AttemptOptions, total=False):
    """What `step.map` takes by name beside `returns`."""

    limit: int | None


Yields: TypeAlias = AsyncIterator[T] | Iterator[T] | Awaitable[AsyncIterator[T]]
"""What a step function returns whose result is a stream."""

CallOrAsync: TypeAlias = StepCall[T] | Callable[[], Awaitable[T]]
"""A part of `step.gather` or `step.race`, where each is a call or a coroutine function."""

CallOrAny: TypeAlias = StepCall[T] | Callable[[], Awaitable[T]] | Callable[[], T]
"""A part where some are plain functions."""

CallOrOther: TypeAlias = CallOrAny[D] | StepCall[object] | Callable[[], object]
"""A part among parts of several kinds, for which mypy finds no common type: then it is Any."""


class DeclaredStep(Protocol[*Ts, Result]):
    """A step that was declared by a decorator: calling it makes the step call.

    Without arguments the results of the steps it depends on are passed.
    """

    @overload
    def __call__(self, /) -> StepCall[Result]: ...
    @overload
    def __call__(self, /, *args: *Ts) -> StepCall[Result]: ...


class Declaration(Protocol):
    """What `step.do(name, ...)` gives without a function: a decorator.

    The step that it declares is called without the `StepContext`, which the runtime puts in.
    """

    @overload
    def __call__(self, fn: Callable[[StepContext, *Ts], Awaitable[T]], /) -> DeclaredStep[*Ts, T]: ...
    @overload
    def __call__(self, fn: Callable[[*Ts, StepContext], Awaitable[T]], /) -> DeclaredStep[*Ts, T]: ...
    @overload
    def __call__(self, fn: Callable[[*Ts], Awaitable[T]], /) -> DeclaredStep[*Ts, T]: ...
    @overload
    def __call__(self, fn: Callable[[StepContext, *Ts], T], /) -> DeclaredStep[*Ts, T]: ...
    @overload
    def __call__(self, fn: Callable[[*Ts, StepContext], T], /) -> DeclaredStep[*Ts, T]: ...
    @overload
    def __call__(self, fn: Callable[[*Ts], T], /) -> DeclaredStep[*Ts, T]: ...
