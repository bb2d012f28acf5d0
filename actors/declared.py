"""`@step.do(...)`: steps that are declared where they are used, and run one another's results.

Declaring does nothing. Calling a declared step makes the call; parameters that no argument was given
for, and that bear the name of a step declared before, are its dependencies: their steps run first,
and their results are passed. Prior art: Cloudflare's Python Workflows.

All names of a call, its dependencies' included, are claimed where the call is made, in order, so that
nothing depends on the order in which parallel dependencies happen to run (law 10).

Invariants:
    A step that is called without arguments runs once in a run of `run()`, however many calls share it.
    A dependent whose dependency failed never runs.
    A parameter that nothing can be passed for is refused at the call, before any effect.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any, Final, Generic, TypeVar

import msgspec
import trio

from perdure.actors.callee import Callee
from perdure.actors.calls import Place, StepCall, caller
from perdure.actors.compose import GroupCall
from perdure.actors.do import DoCall
from perdure.actors.run import Run
from perdure.errors import AmbiguousStepError, InvalidArgumentError, UnknownDependencyError, WorkflowCodeError

T = TypeVar("T", covariant=True)
Make = Callable[[tuple[Any, ...]], DoCall[Any]]
"""Makes the call of the step with these arguments, with all options of its declaration."""

EMPTY: Final = inspect.Parameter.empty
BY_POSITION: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Declared(Generic[T]):
    """A declared step. Call it, and await the call.

    With arguments each call is a step of its own; without, all calls share one.
    """

    def __init__(
        self, run: Run, name: str | None, fn: Callable[..., Any], callee: Callee, make: Callable[..., Make],
        *, concurrent: bool,
    ) -> None:  # fmt: skip
        own_name = getattr(fn, "__name__", None)
        if name is None and own_name is None:
            raise InvalidArgumentError(f"{fn!r} has no name of its own: declare it by step.do(name)(fn)")
        self.name: str = name or str(own_name)
        self._run = run
        self._concurrent = concurrent
        self._make = make(self.name, fn)
        self._parameters = _parameters(self.name, fn, callee)
        # Those declared before this one, so that there are no circles.
        self._known: dict[str, Declared[Any]] = {
            name: run.declared[name] for name in self._parameters if name in run.declared
        }
        self._declared = sorted(run.declared)
        self._shared: Shared[Any] | None = None
        self._with_arguments: list[Shared[Any]] = []
        for each in (own_name, self.name):
            if each is not None:
                run.declared[each] = self

    def __call__(self, *args: Any) -> StepCall[T]:
        """Make the call; await what it returns. Raises `UnknownDependencyError`."""
        return DeclaredCall(self.shared(args), caller(1))

    def shared(self, args: tuple[Any, ...]) -> Shared[T]:
        """Return what carries out a call with these arguments, with its name and dependencies claimed."""
        if not args and self._shared is not None:
            return self._shared
        rest = self._rest(args)
        needs = [need if isinstance(need, Given) else need.needed_by(self.name) for need in rest]
        call = self._make(args)
        self._run.open_calls.pop(call, None)  # a handle stands for it when a forgotten await is told
        shared: Shared[T] = Shared(call, args, needs, concurrent=self._concurrent)
        if args:
            self._with_arguments.append(shared)
        else:
            self._shared = shared
        return shared

    def needed_by(self, name: str) -> Shared[T]:
        """Return what carries out this step for a dependent."""
        if self._shared is None and len(self._with_arguments) == 1:
            return self._with_arguments[0]
        if self._shared is None and self._with_arguments:
            raise AmbiguousStepError(
                f"step {name!r} depends on {self.name!r}, which was called {len(self._with_arguments)} times"
                " with arguments: pass the result that is meant as an argument"
            )
        return self.shared(())

    def _rest(self, args: tuple[Any, ...]) -> list[Declared[Any] | Given]:
        """Return what is to be passed behind the arguments: declared steps, and defaults before them."""
        rest = list(self._parameters.items())[len(args) :]
        while rest and rest[-1][0] not in self._known and rest[-1][1] is not EMPTY:
            rest.pop()  # left to the function
        for name, default in rest:
            if name not in self._known and default is EMPTY:
                hint = ", annotated StepContext where that is meant" if name in ("ctx", "context") else ""
                raise UnknownDependencyError(
                    f"step {self.name!r} takes {name!r}, which is no argument of this call and no step"
                    f" declared before it (there are: {', '.join(self._declared) or 'none'}): pass it, or"
                    f" declare a step {name!r} first{hint}"
                )
        return [self._known.get(name) or Given(default) for name, default in rest]


class Given(msgspec.Struct, frozen=True):
    """A default of the function that is passed because something behind it is."""

    value: Any


class Shared(Generic[T]):
    """One run of a declared step, for all calls that share it."""

    __slots__ = ("_args", "_begun", "_concurrent", "_done", "_error", "_needs", "_value", "call")

    def __init__(
        self, call: DoCall[T], args: tuple[Any, ...], needs: list[Need], *, concurrent: bool
    ) -> None:
        self.call = call
        self._args = args
        self._needs = needs
        self._concurrent = concurrent
        self._begun = False
        self._done = trio.Event()
        self._value: Any = None
        self._error: Exception | None = None

    async def get(self) -> T:
        """Return the result, or raise the error; whoever asks first has it carried out."""
        run = self.call.run
        if self._begun:
            if not self._done.is_set():
                await run.park_until(None, self._done)
            if self._error is not None:
                raise self._error
            value: T = self._value
            return value
        self._begun = True
        try:
            if self._needs:
                self.call.give((*self._args, *await self._needed()))
            self._value = value = await self.call
        except Exception as error:
            self._error = error
            raise
        except BaseException:
            self._error = WorkflowCodeError(
                f"step {self.call.name!r} was cancelled in the branch that called it first, so it has no"
                " result for the others that share it"
            )
            raise
        finally:
            if run.stopping is None:
                self._done.set()
        return value

    async def _needed(self) -> list[Any]:
        where = self.call.where
        calls = {id(need): DeclaredCall(need, where) for need in self._needs if not isinstance(need, Given)}
        if self._concurrent:
            group = GroupCall(self.call.run, self.call.name, list(calls.values()), list, depth=1)
            values = dict(zip(calls, await group, strict=True))
        else:
            values = {place: await call for place, call in calls.items()}
        return [need.value if isinstance(need, Given) else values[id(need)] for need in self._needs]


class DeclaredCall(StepCall[T]):
    """One call of a declared step."""

    __slots__ = ("_shared",)

    kind = "do"

    def __init__(self, shared: Shared[T], where: Place) -> None:  # what it asks for, its DoCall has claimed
        call = shared.call
        self.run = call.run
        self.awaited = False
        self.name, self.count, self.coder, self.record = call.name, call.count, call.coder, call.record
        self.where = where
        self._shared = shared
        self.run.open_calls[self] = None

    def __await__(self) -> Generator[Any, Any, T]:
        if self.awaited:
            raise WorkflowCodeError(
                f"the call of step {self.name!r} was awaited twice: keep its result in a variable"
            )
        self.awaited = True
        return (yield from self._drive().__await__())

    async def perform(self) -> T:
        """Have the step and its dependencies carried out, where nobody has done so before."""
        return await self._shared.get()


Need = Shared[Any] | Given


def _parameters(name: str, fn: Callable[..., Any], callee: Callee) -> dict[str, Any]:
    """Return what `fn` takes by position, with the defaults, without the `StepContext`."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # a built-in without a signature
        return {}
    if callee.position is not None:
        del parameters[callee.position]
    for each in parameters:
        keyword_only = each.kind is inspect.Parameter.KEYWORD_ONLY and each.default is EMPTY
        if keyword_only and each.name != callee.keyword:
            raise InvalidArgumentError(
                f"step {name!r} takes {each.name!r} by keyword alone; what a declared step takes is passed by"
                " position: write it before the *"
            )
    return {each.name: each.default for each in parameters if each.kind in BY_POSITION}
