"""The step methods that reach beyond one run: children, and the generation to come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, overload

from perdure.actors.calls import StepCall
from perdure.actors.children import ChildCall, ChildrenCall, OnCancel
from perdure.actors.compose import GroupCall
from perdure.actors.continuation import ContinueCall, WhichVersion
from perdure.actors.durations import Duration, seconds
from perdure.actors.identity import parts_of
from perdure.actors.run import Run
from perdure.actors.workflow import WorkflowEvent

P = TypeVar("P", contravariant=True)
Q = TypeVar("Q")
R = TypeVar("R", covariant=True)


class ChildClass(Protocol[P, R]):
    """The shape of a workflow class, for type checkers: params in, result out."""

    async def run(self, event: WorkflowEvent[P], step: Any, /) -> R:
        """Run the workflow."""
        ...


class BroodOptions(TypedDict, total=False):
    """What `step.children` takes by name."""

    limit: int | None
    on_cancel: OnCancel
    timeout: Duration | None
    tags: Sequence[str] | None


class ChildOptions(TypedDict, total=False):
    """What `step.child` takes by name."""

    name: str | None
    id: str | None
    key: object
    on_cancel: OnCancel
    timeout: Duration | None
    tags: Sequence[str] | None


class FamilySteps:
    """The step methods that start other instances, or this one anew. `WorkflowStep` is one."""

    __slots__ = ()

    _run: Run

    @overload
    def child(
        self, cls: type[ChildClass[None, R]], params: None = None, **options: Unpack[ChildOptions]
    ) -> StepCall[R]: ...
    @overload
    def child(
        self, cls: type[ChildClass[Q, R]], params: Q, **options: Unpack[ChildOptions]
    ) -> StepCall[R]: ...
    @overload
    def child(self, cls: str, params: Any = None, **options: Unpack[ChildOptions]) -> StepCall[Any]: ...

    def child(
        self,
        cls: Any,
        params: Any = None,
        *,
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - the word that instances have everywhere
        key: object = None,
        on_cancel: OnCancel = "terminate",
        timeout: Duration | None = None,
        tags: Sequence[str] | None = None,
    ) -> StepCall[Any]:
        """Start another instance as a child, once, and wait for its result. Meanwhile this one holds nothing.

        The step's `name` is the workflow's by default, the child's `id` this instance's id and the
        step's name (`order-1.Ship`). `timeout` is of the child's whole run, from its creation. Where
        the wait is cancelled, or this instance ends, `on_cancel` says what becomes of the child: it is
        terminated, durably, or left alone ("abandon").

        Raises `UnknownWorkflowError`, `InvalidParamsError` and `InvalidIdError` at the call; the await
        raises `ChildFailedError`, whose `__cause__` is the error that the child's `run()` raised,
        `ChildTerminatedError`, and `InstanceExistsError` where the id is somebody else's.

        >>> await step.child(Greet, "Ada", name="welcome")
        'hello Ada'
        """
        return ChildCall(
            self._run, cls, params, name=name, id_=id, key=key, on_cancel=on_cancel,
            timeout_s=None if timeout is None else seconds(timeout), tags=tags, depth=2,
        )  # fmt: skip

    @overload
    def children(
        self,
        name: str,
        cls: type[ChildClass[Q, R]],
        params: Iterable[Q],
        **options: Unpack[BroodOptions],
    ) -> GroupCall[list[R]]: ...
    @overload
    def children(
        self, name: str, cls: str, params: Iterable[Any], **options: Unpack[BroodOptions]
    ) -> GroupCall[list[Any]]: ...

    def children(
        self,
        name: str,
        cls: Any,
        params: Iterable[Any],
        *,
        limit: int | None = None,
        on_cancel: OnCancel = "terminate",
        timeout: Duration | None = None,
        tags: Sequence[str] | None = None,
    ) -> GroupCall[list[Any]]:
        """Start a child for each of `params`, at most `limit` at a time, and wait for all results.

        The steps are `name[0]`, `name[1]` … and the results come in that order. All children run to
        their end; then one failure is raised as it is, several as an `ExceptionGroup`. Ten thousand
        are no matter: they are created in batches, and one task waits for all. Otherwise as `child`.

        >>> await step.children("greet", Greet, ["Ada", "Grace"], limit=100)
        ['hello Ada', 'hello Grace']
        """
        params = parts_of(name, params, limit)
        timeout_s = None if timeout is None else seconds(timeout)
        run = self._run
        with run.declaring():
            calls: list[ChildCall[Any]] = [
                ChildCall(
                    run,
                    cls,
                    each,
                    name=name,
                    id_=None,
                    key=index,
                    on_cancel=on_cancel,
                    timeout_s=timeout_s,
                    tags=tags,
                    depth=2,
                )
                for index, each in enumerate(params)
            ]
        return ChildrenCall(run, name, calls, limit=limit, depth=2)

    def continue_as_new(self, params: Any = None, *, version: WhichVersion = "latest") -> ContinueCall:
        """End this run here and go on as the same instance, with new params and an empty journal.

        For runs without end: what was recorded goes, so the file does not grow. Events that no wait has
        got yet, the instance's own tables, its id, its deadline and its parent stay. `version="same"` keeps
        the recorded version and what `step.patched` has decided; "latest" takes the class's. Never
        returns. No step may be open; rollback handlers do not outlive the call.

        Raises `InvalidParamsError` at the call; the await raises `OpenStepError`.

        It stands at the end of `run()`: `return await step.continue_as_new(Game(number=2))`.
        """
        return ContinueCall(self._run, self._run.accept_params(params), version, depth=2)
