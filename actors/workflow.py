"""What users subclass, and what the runtime knows of a subclass.

`WorkflowEntrypoint` holds no machinery: the runtime gives it `ctx` and `env` and calls `run`.
`define` reads a class once: its name, and the annotations that decide how params are checked
and how the result is stored.

Invariants:
    A class is constructed anew for each run of `run()`; nothing on `self` survives.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeGuard, get_args, get_origin

import msgspec

from perdure.actors.concurrency import Concurrency, read_concurrency
from perdure.actors.durations import Duration
from perdure.actors.limiting import check_limits
from perdure.actors.methods import methods_of
from perdure.actors.retention import Retention, retention_of
from perdure.actors.schedules import Recurrence, read_schedules
from perdure.actors.storage_api import ActorStorage
from perdure.errors import InvalidArgumentError
from perdure.limits import WorkflowLimits
from perdure.storage.codec import Codec
from perdure.storage.names import check_workflow_name
from perdure.storage.records import Stored

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Env = TypeVar("Env", default=Any)
    P = TypeVar("P", covariant=True, default=Any)
else:  # the default is for type checkers alone, so that nobody needs typing_extensions at run time
    from typing import TypeVar

    Env = TypeVar("Env")
    P = TypeVar("P", covariant=True)

OnDivergence = Literal["fail", "warn", "ignore"]
StepLibrary = Literal["trio", "asyncio"]


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Why a scheduled instance was created: the expression of its schedule, the moment meant, and its id."""

    cron: str
    scheduled_at: datetime
    id: str = ""


class WorkflowEvent(msgspec.Struct, Generic[P], frozen=True, kw_only=True):
    """What started an instance: the params it was created with, when, and under which name.

    `payload` is `params` decoded to the annotation; `timestamp` is the time of creation, aware,
    in UTC.
    """

    payload: P
    timestamp: datetime
    instance_id: str
    workflow_name: str
    schedule: Schedule | None = None


class ActorContext:
    """What `self.ctx` gives to a workflow: who it is, its own tables, and the runtime it lives in."""

    def __init__(
        self,
        *,
        workflow: str,
        instance_id: str,
        runtime: Any,
        storage: Callable[[], ActorStorage],
        receive: Callable[[str, Any], None],
    ) -> None:
        self.workflow = workflow
        self.instance_id = instance_id
        self.runtime = runtime
        """The `Runtime`, to reach and create other instances inside steps."""
        self._storage = storage
        self._receive = receive

    @functools.cached_property
    def storage(self) -> ActorStorage:
        """The instance's own tables, for its methods; `run()` writes to them by `step.transaction`."""
        return self._storage()

    def send_event(self, type_: str, payload: Any = None) -> None:
        """Send the instance an event from one of its own methods, in the same commit as what that writes.

        >>> await order.call(Order.approve, "Ada")  # self.ctx.send_event("approved", {"by": "Ada"})
        >>> await order.result()
        'shipped to 1 Kay Street, approved by Ada'
        """
        self._receive(type_, payload)


class WorkflowEntrypoint(Generic[Env]):
    """The base class of a workflow. Write `run`; name each unit of work with `step.do`.

    Class attributes: `name` (default: the class's name), `version`, `on_divergence`,
    `step_library`, `retention`, `schedules`, `concurrency`, `limits`.

    >>> class Greet(WorkflowEntrypoint):
    ...     async def run(self, event, step):
    ...         return await step.do("greet", lambda: f"hello {event.payload}")
    >>> define(Greet).name
    'Greet'
    """

    name: ClassVar[str]
    version: ClassVar[str | None] = None
    on_divergence: ClassVar[OnDivergence | None] = None
    """None: another kind of step under a recorded name fails, lesser differences warn."""
    step_library: ClassVar[StepLibrary] = "trio"
    limits: ClassVar[WorkflowLimits | None] = None
    """What its instances may take; what is None here is as the app's `Limits` say."""
    retention: ClassVar[Retention | Duration | None] = None
    """How long an instance is kept once it has ended; None: as long as the `App` says."""
    schedules: ClassVar[Sequence[Recurrence]] = ()
    """When instances are created by themselves: `Cron` and `Every`."""
    concurrency: ClassVar[Concurrency | None] = None
    """How many instances may run at a time, in all or for each key, and how many start in a while."""

    run: Callable[..., Any]
    """`async def run(self, event: WorkflowEvent[P], step: WorkflowStep) -> R`, given by the subclass."""

    def __init__(self, ctx: ActorContext, env: Env) -> None:
        self.ctx = ctx
        self.env = env


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What the runtime knows of one workflow class."""

    cls: Any
    name: str
    version: str | None
    params: Any
    result: Any
    has_params: bool
    on_divergence: OnDivergence | None
    step_library: StepLibrary
    limits: WorkflowLimits | None
    retention: Retention | None
    schedules: tuple[Recurrence, ...]
    concurrency: Concurrency | None
    methods: dict[str, Any]
    """Of `Method`: what can be called from outside, by name."""


def accept_params(definition: Definition, params: Any, *, codec: Codec) -> Stored:
    """Return params as they are stored. Raises `InvalidParamsError` where they do not fit."""
    if params is None and not definition.has_params:
        return "null"
    return codec.coder(definition.params).accept(params)[0]


def is_workflow(value: object) -> TypeGuard[type[WorkflowEntrypoint[Any]]]:
    """Tell whether this is a workflow class."""
    return isinstance(value, type) and issubclass(value, WorkflowEntrypoint)


@functools.lru_cache(maxsize=4096)
def define(cls: Any) -> Definition:
    """Read a workflow class. Raises `InvalidArgumentError` where it is not one, saying why."""
    if not is_workflow(cls):
        raise InvalidArgumentError(f"{cls!r} is not a workflow: subclass perdure.WorkflowEntrypoint")
    run: Any = getattr(cls, "run", None)
    if run is None:
        raise InvalidArgumentError(
            f"{cls.__qualname__} has no run(): write `async def run(self, event, step)`"
        )
    if not inspect.iscoroutinefunction(run):
        raise InvalidArgumentError(f"{cls.__qualname__}.run must be `async def run(self, event, step)`")
    if len(inspect.signature(run).parameters) != len(("self", "event", "step")):
        raise InvalidArgumentError(
            f"{cls.__qualname__}.run takes {inspect.signature(run)}; it must take (self, event, step)"
        )
    name = getattr(cls, "name", cls.__name__)
    check_workflow_name(name)
    for attribute, allowed in (("on_divergence", OnDivergence), ("step_library", StepLibrary)):
        if getattr(cls, attribute) not in (*get_args(allowed), None):
            raise InvalidArgumentError(
                f"{cls.__qualname__}.{attribute} is {getattr(cls, attribute)!r}; it must be one of"
                f" {get_args(allowed)}"
            )
    params, result, has_params = _annotations(run)
    return Definition(
        cls=cls,
        name=name,
        version=cls.version,
        params=params,
        result=result,
        has_params=has_params,
        on_divergence=cls.on_divergence,
        step_library=cls.step_library,
        limits=check_limits(cls.limits, f"{cls.__qualname__}.limits"),
        retention=retention_of(cls.retention, f"{cls.__qualname__}.retention"),
        schedules=read_schedules(cls),
        concurrency=read_concurrency(cls),
        methods=methods_of(cls, WorkflowEntrypoint),
    )


def _annotations(run: Callable[..., Any]) -> tuple[Any, Any, bool]:
    try:
        hints = typing.get_type_hints(run, include_extras=True)
    except Exception:  # noqa: BLE001 - an annotation that only a type checker can resolve
        return Any, Any, False
    event_parameter = list(inspect.signature(run).parameters)[1]
    event = hints.get(event_parameter)
    params: Any = Any
    has_params = False
    if get_origin(event) is WorkflowEvent:
        (params,) = get_args(event)
        has_params = not isinstance(params, TypeVar) and params is not Any
        if not has_params:
            params = Any
    result = hints.get("return", Any)
    return params, result, has_params
