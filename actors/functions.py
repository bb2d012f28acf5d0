"""How one step function is run: in the loop, in a thread, on asyncio, or in a child process.

The function host owns the worker threads' limit, the asyncio loop and the child processes of one
runtime; nobody else starts a thread or a process for a user's function.

Four kinds, and nothing is guessed beyond what the function itself says: a coroutine function is of
the step library, a plain one blocks and so gets a thread, and the two decorators say the rest.

Invariants:
    A call returns, or raises, only when the function has ended, cancelled or not (law 5).
    What a cancelled call returned or raised is dropped: Cancelled goes on in its place.
    Closing the host leaves no thread, process or task behind, and the interpreter as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, Final, Literal, ParamSpec, TypeGuard, TypeVar, assert_never, overload

import msgspec
import trio

from perdure.actors.asyncio_host import AsyncioHost
from perdure.actors.process_child import find
from perdure.actors.processes import ProcessPool, Target, refuse_while_main_loads
from perdure.actors.retry import qualified_name
from perdure.actors.switching import SWITCH_INTERVAL
from perdure.errors import InvalidArgumentError, NonRetryableError, RuntimeClosedError

Kind = Literal["trio", "plain", "asyncio", "process"]
Library = Literal["trio", "asyncio"]

P = ParamSpec("P")
T = TypeVar("T")

_KIND: Final = "__perdure_kind__"
"""The attribute by which the two decorators mark their wrappers; `functools.wraps` hands it on."""

_GENERATES: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_UNUSUAL: Final = _GENERATES | inspect.CO_ITERABLE_COROUTINE

# Text as type, for want of anything better: these have no class of their own.
_NEEDS_ASYNCIO: Final = (
    "trio.run received unrecognized yield message",
    "no running event loop",
    "There is no current event loop",
    "should be used inside a task",
    # Once a query has loaded trio-asyncio, asyncio's loop is None under trio: what asks it for these fails.
    "'NoneType' object has no attribute 'create_",
    "'NoneType' object has no attribute 'call_",
    "'NoneType' object has no attribute 'run_in_executor'",
)
_ITS_ERRORS: Final = (TypeError, RuntimeError, AttributeError)


# -- saying how a function runs ------------------------------------------------------------


@overload
def asyncio_step(fn: Callable[P, AsyncIterator[T]]) -> Callable[P, AsyncIterator[T]]: ...
@overload
def asyncio_step(fn: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]: ...


def asyncio_step(fn: Callable[P, Any]) -> Callable[P, Any]:
    """Make a step function of one that needs asyncio. A decorator, or used in the call itself.

    Such functions share one asyncio loop, so a connection pool made in one step serves the next.
    An async generator is iterated on asyncio. Raises InvalidArgumentError for what cannot be called.

    >>> @asyncio_step
    ... async def rest() -> str:
    ...     await asyncio.sleep(0.1)
    ...     return "rested"
    >>> classify(rest)
    'asyncio'
    """
    _require_function(fn)

    @functools.wraps(fn)
    async def in_asyncio(*args: P.args, **kwargs: P.kwargs) -> Any:
        return await fn(*args, **kwargs)

    @functools.wraps(fn)
    def yielding(*args: P.args, **kwargs: P.kwargs) -> Any:
        return fn(*args, **kwargs)

    made: Callable[P, Any] = yielding if generates(fn) else in_asyncio
    vars(made)[_KIND] = "asyncio"
    return made


def process_step(fn: Callable[P, T]) -> Callable[P, T]:
    """Make a step function that runs in a child process. A decorator, or used in the call itself.

    For CPU-bound work, and for what must be killed at its timeout. The child finds the function by
    module and name; arguments and result are pickled. Called directly, it runs where it is called.
    Raises InvalidArgumentError for what a child could not find, async functions and generators.

    >>> from math import factorial
    >>> classify(process_step(factorial))
    'process'
    """
    _require_function(fn)
    if _is_async(fn):
        raise InvalidArgumentError(
            f"{fn!r} is async and cannot be a process step: a child has no loop. "
            f"Give a plain function, which may call trio.run or asyncio.run."
        )
    if generates(fn):
        raise InvalidArgumentError(f"{fn!r} is a generator, and what it yields cannot leave a child process.")
    locate(fn, being_defined=True)

    @functools.wraps(fn)
    def in_process(*args: P.args, **kwargs: P.kwargs) -> T:
        return fn(*args, **kwargs)

    vars(in_process)[_KIND] = "process"
    return in_process


def classify(fn: Callable[..., Any], library: Library = "trio") -> Kind:
    """Return how a step function runs; `library` is the one of its workflow's coroutine functions.

    Raises InvalidArgumentError for what cannot be called, and for a process step that a child could
    not find.

    >>> classify(len), classify(trio.sleep)
    ('plain', 'trio')
    """
    # Not cached: for nearly every function this costs less than a look into a cache, and a cache
    # keyed by functions keeps lambdas, and what they close over, alive.
    if type(fn) is FunctionType and not fn.__dict__:
        flags = fn.__code__.co_flags
        if flags & inspect.CO_COROUTINE:
            return library
        if not flags & _UNUSUAL:
            return "plain"
    return _classify_slowly(fn, library)


def _classify_slowly(fn: Callable[..., Any], library: Library) -> Kind:
    _require_function(fn)
    marked = fn
    while _is_partial(marked):
        marked = marked.func
    marks: tuple[object, ...] = (getattr(marked, _KIND, None), getattr(type(marked).__call__, _KIND, None))
    if "asyncio" in marks:
        return "asyncio"
    if "process" in marks:
        locate(fn)
        return "process"
    return library if _is_async(fn) else "plain"


def _is_async(fn: Callable[..., Any]) -> bool:
    base = unfold(fn).fn
    if inspect.iscoroutinefunction(base) or inspect.iscoroutinefunction(type(base).__call__):
        return True
    # What `types.coroutine` makes, and async generators, which are iterated where coroutines run.
    return bool(_flags(base) & (inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR))


def generates(fn: object) -> bool:
    """Tell whether calling `fn` gives a generator, so that it runs only while somebody iterates."""
    marked = getattr(fn, _KIND, None) == "asyncio"
    inner: Any = getattr(fn, "__wrapped__", fn) if marked else fn
    return _flags(unfold(inner).fn) & _UNUSUAL in (inspect.CO_GENERATOR, inspect.CO_ASYNC_GENERATOR)


def _flags(fn: Any) -> int:
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    return getattr(code, "co_flags", 0)


def _require_function(fn: object) -> None:
    if inspect.iscoroutine(fn):
        fn.close()  # or Python warns that nobody awaited it
        raise InvalidArgumentError(
            f"A step takes a function and its arguments, and {fn.__qualname__} was called already: "
            f"write step.do(name, {fn.__name__}, ...) with the arguments behind it."
        )
    if not callable(fn):
        raise InvalidArgumentError(f"A step takes a function and its arguments; {fn!r} cannot be called.")


# -- finding a function from another process -----------------------------------------------


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call without the partials around its function."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def locate(fn: Callable[..., Any], *, being_defined: bool = False) -> Target:
    """Return where a child finds a function. Raises InvalidArgumentError where it could not.

    `being_defined` is for decorators: the function's name does not mean anything yet.

    >>> locate(Path.home).qualname
    'Path.home'
    """
    fn = unfold(fn).fn
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    owner = getattr(fn, "__self__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise _unfindable(fn, "it has no module and name of its own")
    if "<lambda>" in qualname:
        raise _unfindable(fn, "it is a lambda")
    if "<locals>" in qualname:
        raise _unfindable(fn, "it is defined inside a function")
    if owner is not None and not isinstance(owner, type) and type(owner).__name__ != "module":
        raise _unfindable(fn, f"it is a method of a {type(owner).__qualname__} object")
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if module == "__main__" and file is None:
        raise _unfindable(fn, "it is defined in an interactive session or on the command line")
    if not being_defined:
        try:
            found = find(loaded, qualname)
        except AttributeError:
            raise _unfindable(fn, f"there is no {module}.{qualname}") from None
        if not _same(fn, found):
            raise _unfindable(fn, f"{module}.{qualname} is another object by now")
    return Target(module=module, qualname=qualname, file=str(Path(file).absolute()) if file else None)


def unfold(fn: Callable[..., Any], args: tuple[Any, ...] = ()) -> Call:
    """Take a function out of its partials, a partial within a wrapper included."""
    kwargs: dict[str, Any] = {}
    while True:
        wrapped = getattr(fn, "__wrapped__", None)
        partial = wrapped if _is_partial(wrapped) else fn
        if not _is_partial(partial):
            return Call(fn=fn, args=args, kwargs=kwargs)
        fn, args, kwargs = partial.func, partial.args + args, partial.keywords | kwargs


def _is_partial(fn: object) -> TypeGuard[functools.partial[Any]]:
    return isinstance(fn, functools.partial)


def _unfindable(fn: Callable[..., Any], reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{fn!r} cannot be a process step: a child process finds functions by module and name, and {reason}. "
        f"Define it with `def` at the top of a module, and pass what it needs as arguments."
    )


def _same(fn: Callable[..., Any], found: Any) -> bool:
    """Tell whether a name leads to a function, through decorators on either side."""
    # By equality: each access of a class method makes another object.
    return any(fn == layer for layer in _layers(found)) or any(found == layer for layer in _layers(fn))


def _layers(fn: Any) -> Iterator[Any]:
    seen: set[int] = set()
    while fn is not None and id(fn) not in seen:
        seen.add(id(fn))
        yield fn
        fn = getattr(fn, "__wrapped__", None)


# -- running it ----------------------------------------------------------------------------


class FunctionStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a function host is doing.

    `threads_busy`, `asyncio_busy` and `processes_busy` count work outside the loop, which a clock that
    jumps does not see. `calls` counts all that were started since the host was opened.
    """

    threads_busy: int
    asyncio_busy: int
    processes_alive: int
    processes_busy: int
    calls: int


class FunctionHost:
    """Runs step functions. Made by `open_function_host`."""

    def __init__(
        self, *, threads_max: int, processes_max: int, asyncio_loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._turns = trio.CapacityLimiter(threads_max)
        # Whose turn it is has been decided by the time a thread is asked for.
        self._threads = trio.CapacityLimiter(math.inf)
        self._asyncio = AsyncioHost(asyncio_loop)
        self._processes = ProcessPool(processes_max)
        self._calls = 0
        self._closed = False

    async def call(
        self,
        kind: Kind,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        *,
        library: Library = "trio",
        on_cancel: Callable[[], None] | None = None,
        still_counts: Callable[[], bool] | None = None,
        on_beat: Callable[[Any], None] | None = None,
    ) -> Any:
        """Run `fn(*args)` and return what it returns, once it has ended.

        `kind` comes from `classify`; `library` says who awaits the awaitable that a plain function
        returned, as a lambda often does. `on_cancel` is called in the loop, once, when the call is
        cancelled while a plain function runs, which nothing else can tell it; `still_counts` is asked when
        that has then returned, whether its value is to be returned all the same. `on_beat` gets what a
        process step says by `StepContext.heartbeat`. Context variables are carried over, except to a process.

        Raises what the function raises; NonRetryableError when it needs asyncio and is not run
        there; StepError when its process died or its asyncio task was cancelled by others;
        EncodingError when an argument or the result cannot cross to a process; RuntimeClosedError.
        """
        if self._closed:
            raise RuntimeClosedError("The runtime has ended: no step function can be started.")
        self._calls += 1
        match kind:
            case "trio":
                return await self._in_loop(fn, args)
            case "plain":
                return await self._in_thread(fn, args, library, on_cancel, still_counts)
            case "asyncio":
                return await self._asyncio.call(fn, args)
            case "process":
                call = unfold(fn, args)
                return await self._processes.call(locate(call.fn), call.args, call.kwargs, on_beat)
            case _:
                assert_never(kind)

    def call_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run a coroutine function that never waits, here and now; it needs no task switch.

        Raises as `call` does.
        """
        if self._closed:
            raise RuntimeClosedError("The runtime has ended: no step function can be started.")
        self._calls += 1
        try:
            fn(*args).send(None)
        except StopIteration as ended:
            return ended.value
        except _ITS_ERRORS as error:
            _explain(fn, error, "trio")
            raise
        raise AssertionError(f"{fn!r} waits, though nothing in its code does")

    def statistics(self) -> FunctionStatistics:
        """Return what the host is doing."""
        return FunctionStatistics(
            threads_busy=self._turns.borrowed_tokens,
            asyncio_busy=self._asyncio.busy,
            processes_alive=self._processes.alive,
            processes_busy=self._processes.busy,
            calls=self._calls,
        )

    async def close(self) -> None:
        """Refuse further calls, end what asyncio and the children still do, and wait for it."""
        self._closed = True
        await self._processes.close()
        await self._asyncio.close()

    async def _in_loop(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        try:
            return await fn(*args)
        except _ITS_ERRORS as error:
            _explain(fn, error, "trio")
            raise

    async def _in_thread(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        library: Library,
        on_cancel: Callable[[], None] | None,
        still_counts: Callable[[], bool] | None,
    ) -> Any:
        # Ours first: a call that is cancelled while it waits for a thread has not begun.
        call = Box(fn, args)
        await self._turns.acquire_on_behalf_of(call)
        try:
            await call.run(self._threads, on_cancel)
        finally:
            self._turns.release_on_behalf_of(call)
        is_done = call.error is None and not inspect.isawaitable(call.value)
        if not (is_done and still_counts is not None and still_counts()):
            await trio.lowlevel.checkpoint_if_cancelled()
        if call.error is not None:
            _explain(fn, call.error, "a worker thread")
            raise call.error
        if not inspect.isawaitable(call.value):
            return call.value
        awaited = _Awaited(call.value, fn)
        return await (self._in_loop(awaited, ()) if library == "trio" else self._asyncio.call(awaited, ()))


@contextlib.asynccontextmanager
async def open_function_host(
    *, threads_max: int, processes_max: int, asyncio_loop: asyncio.AbstractEventLoop | None = None
) -> AsyncGenerator[FunctionHost]:
    """Open what step functions run in; threads, asyncio and processes start when first needed.

    `asyncio_loop` is the loop in which trio runs as a guest. While a host is open, the interpreter
    switches threads more often, for the sake of the loop (`SWITCH_INTERVAL_S`).

    >>> async def main() -> int:
    ...     async with open_function_host(threads_max=4, processes_max=1) as host:
    ...         return await host.call("plain", max, (1, 2))
    >>> trio.run(main)
    2
    """
    refuse_while_main_loads()
    host = FunctionHost(threads_max=threads_max, processes_max=processes_max, asyncio_loop=asyncio_loop)
    with SWITCH_INTERVAL:
        try:
            yield host
        finally:
            with trio.CancelScope(shield=True):
                await host.close()


class Box:
    """A call in a worker thread: trio would refuse a bare coroutine as its result."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._fn = fn
        self._args = args
        self._ended = False

    async def run(self, threads: trio.CapacityLimiter, on_cancel: Callable[[], None] | None) -> None:
        """Run the call and return when it has ended. The caller looks for cancellation then."""
        async with trio.open_nursery() as nursery:
            if on_cancel is not None:
                nursery.start_soon(self._tell, on_cancel)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._capture, limiter=threads)
            self._ended = True
            nursery.cancel_scope.cancel()

    async def _tell(self, on_cancel: Callable[[], None]) -> None:
        # Cancelled ends here, or the nursery would make a group of it.
        with contextlib.suppress(trio.Cancelled):
            await trio.sleep_forever()
        if not self._ended:
            on_cancel()

    def _capture(self) -> None:
        try:
            self.value = self._fn(*self._args)
        except BaseException as error:  # noqa: BLE001  # raised again in the loop
            self.error = error


class _Awaited:
    """A step function that awaits what a plain one returned, under its name."""

    def __init__(self, value: Awaitable[Any], fn: Callable[..., Any]) -> None:
        self._value = value
        self.__wrapped__ = fn

    async def __call__(self) -> Any:
        return await self._value


def _explain(fn: Callable[..., Any], error: BaseException, where: str) -> None:
    """Raise a sentence in place of what an asyncio-only call says where asyncio does not run."""
    text = str(error) if isinstance(error, _ITS_ERRORS) else ""
    if not any(sign in text for sign in _NEEDS_ASYNCIO):
        return
    name = qualified_name(getattr(fn, "__wrapped__", fn))
    # Not retried: the next attempt would fail in the same way, minutes later.
    raise NonRetryableError(
        f"The step function {name} called something that needs asyncio, and it runs in {where}"
        f" ({text.rstrip('.')}). Give the step asyncio_step({name.rpartition('.')[2]}), "
        f"or set step_library = 'asyncio' on the workflow."
    ) from error
