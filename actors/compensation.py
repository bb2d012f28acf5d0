"""What a step registers with `rollback=`: its handler, and what that will be told.

The handler is a function of `run()`, so it exists only once the step's call has been made in this
process: each call registers its handler with the run, a replayed call as any other. The row of
the step says that it has one, so that after the loss of the process it is known which are missing
(`rollback.py` carries them out, and has `run()` replayed to register them again).

Invariants:
    A step that may have to be undone says so in the row that records its start (law 4).
    A handler that cannot be called is refused at the call of its step, before any effect.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any, Final, Generic, TypeVar

import msgspec

from perdure.actors.callee import Callee, annotations_of
from perdure.actors.context import StepContext
from perdure.actors.do import DoCall
from perdure.actors.durations import Duration
from perdure.actors.retry import Retries, StepConfig, qualified_name, resolve_config
from perdure.actors.workflow import StepLibrary
from perdure.errors import InvalidArgumentError
from perdure.storage.codec import Codec, Coder
from perdure.storage.failure import restore_failure
from perdure.storage.records import ROLLBACK_DETAIL

T = TypeVar("T", covariant=True)
CONTEXTS: Final = (
    "RollbackContext",
    "perdure.RollbackContext",
    "StepContext",
    "perdure.StepContext",
)
"""The names of what a handler is given, where its annotation is only known as text."""


class RollbackContext(StepContext, Generic[T]):
    """One attempt of a rollback handler: a `StepContext`, and what there is to undo.

    `error` is why the instance ends: what `run()` raised, or an `InstanceTerminatedError`. `output`
    is what the step returned, None where it never finished: then look outside, by `step_key`, for
    what it may have done. `step_key` is the `idempotency_key` that the step's own attempts had; the
    handler has an `idempotency_key` of its own. `args` are the arguments of the step, as `run()`
    gives them today. `step` names the step; `attempt`, `config` and the deadline are the handler's.

    >>> async def refund(context: RollbackContext[str]) -> None:
    ...     if context.output is not None:
    ...         await bank.refund(context.output, key=context.idempotency_key)
    """

    __slots__ = ("args", "error", "error_text", "output", "step_key")

    error: BaseException
    error_text: str
    output: T | None
    args: tuple[Any, ...]
    step_key: str

    @classmethod
    def of(
        cls,
        base: StepContext,
        *,
        error_text: str,
        output: Any,
        args: tuple[Any, ...],
        step_key: str,
        codec: Codec | None = None,
    ) -> RollbackContext[Any]:
        """Return `base` with what there is to undo besides."""
        made: RollbackContext[Any] = cls.__new__(cls)
        for name in StepContext.__slots__:
            setattr(made, name, getattr(base, name))
        made.error_text = error_text
        made.error = restore_failure(error_text, step="", attempt=0, codec=codec)
        made.output = output
        made.args = args
        made.step_key = step_key
        return made

    @property
    def name(self) -> str:
        """The name of the step to undo."""
        return self.step.name

    @property
    def count(self) -> int:
        """Which use of that name the step was, from 1."""
        return self.step.count

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross to the child of a process step; the error as its text, as many errors do not pickle."""
        base = super().__reduce__()[:2]
        names = ("error_text", "output", "args", "step_key")
        return _in_child, (base, {name: getattr(self, name) for name in names})


def _in_child(base: tuple[Any, Any], undone: dict[str, Any]) -> RollbackContext[Any]:
    make, given = base
    return RollbackContext[Any].of(make(*given), **undone)


class Rollback(msgspec.Struct, frozen=True):
    """A rollback handler with options of its own: how often it is retried, and how long it may take.

    `handler` gets a `RollbackContext` in a parameter annotated with it, or in its only one.
    Raises `InvalidArgumentError`, and `InvalidDurationError` for a duration.

    >>> forget = Rollback(print, retries=2, timeout="1 minute")
    >>> await step.do("fetch levels", fetch_levels, "Cork", rollback=forget)
    [0.4, 3.1]
    """

    handler: Callable[..., Any]
    retries: Retries | int | None = None
    timeout: Duration | None = None

    def __post_init__(self) -> None:
        if not callable(self.handler):
            raise InvalidArgumentError(f"rollback={self.handler!r}: it must be a function")
        resolve_config(self.retries, self.timeout)

    @property
    def config(self) -> StepConfig:
        """The handler's options, none missing."""
        return resolve_config(self.retries, self.timeout)


RollbackOption = Callable[..., Any] | Rollback
"""What `rollback=` takes: a handler, or one with options."""


class Handler(Callee):
    """A rollback handler as the runtime sees it: where its context goes."""

    __slots__ = ()

    def __init__(self, fn: Callable[..., Any], library: StepLibrary) -> None:
        super().__init__(fn, library)
        self.position, self.keyword = _context_parameter(fn)
        self.wants_context = self.position is not None or self.keyword is not None
        self.never_waits = self.never_waits and not self.wants_context


_CACHE: Final[dict[tuple[int, type, StepLibrary], tuple[CodeType, dict[str, Any], Handler]]] = {}
HANDLERS_MAX: Final = 1_024
"""Code objects remembered, as for step functions."""


def handler_of(fn: Any, library: StepLibrary) -> Handler:
    """Return what is known of a handler. Raises `InvalidArgumentError` where it cannot be one."""
    code = None if hasattr(fn, "__wrapped__") else getattr(fn, "__code__", None)
    if code is None:
        if not callable(fn):
            raise InvalidArgumentError(f"rollback={fn!r}: it must be a function, not the result of one")
        return Handler(fn, library)
    key = (id(code), fn.__class__, library)
    known = _CACHE.get(key)
    if known is not None and known[1] == fn.__annotations__:
        return known[2]
    handler = Handler(fn, library)
    if len(_CACHE) >= HANDLERS_MAX:
        _CACHE.clear()
    _CACHE[key] = code, dict(fn.__annotations__), handler
    return handler


def _context_parameter(fn: Callable[..., Any]) -> tuple[int | None, str | None]:
    """Find where the context goes: to the parameter annotated with it, else to the only one there is."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a built-in without a signature
        return 0, None
    annotations = annotations_of(fn, parameters)
    named = [name for name in parameters if _is_context(annotations.get(name))]
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    target = named[0] if named else required[0] if len(required) == 1 else None
    if required not in ([], [target]):
        raise InvalidArgumentError(
            f"the rollback handler {qualified_name(fn)}{inspect.signature(fn)} is called with the"
            " RollbackContext alone: give its other parameters a value by functools.partial"
        )
    if target is None:
        return None, None
    positional = parameters[target].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return (0, None) if positional and next(iter(parameters)) == target else (None, target)


def _is_context(annotation: Any) -> bool:
    annotation = getattr(annotation, "__origin__", annotation)
    if isinstance(annotation, str):
        return annotation.partition("[")[0] in CONTEXTS
    return annotation in (RollbackContext, StepContext)


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """A handler that this process can run, with what is known of its step besides the journal."""

    fn: Callable[..., Any]
    handler: Handler
    config: StepConfig
    coder: Coder | None
    args: tuple[Any, ...]
    sensitive: bool


class Undo:
    """What `rollback=` says, checked; registers it for the calls of a step."""

    __slots__ = ("config", "fn", "handler")

    def __init__(self, option: RollbackOption, library: StepLibrary) -> None:
        self.fn = option.handler if isinstance(option, Rollback) else option
        self.handler = handler_of(self.fn, library)
        self.config = option.config if isinstance(option, Rollback) else resolve_config()

    def register(self, call: DoCall[Any], former: tuple[str, ...] = ()) -> DoCall[Any]:
        """Give the run the handler of a call that has been made, and the step's row its mark.

        `former` are the names that the step had before.
        """
        if former:
            call.adopt(former)
        run, record = call.run, call.record
        if record is not None and record.detail is None:  # the code has had it only since
            run.journal.set_detail(record, ROLLBACK_DETAIL)
        step = call if record is None else record  # which may have another name, where one was renamed
        registered = Registered(
            fn=self.fn,
            handler=self.handler,
            config=self.config,
            coder=call.coder,
            args=call.args,
            sensitive=call.config.sensitive in ("output", "both"),
        )
        run.register((call.kind, step.name, step.count), registered)
        return call


class CompensatedCall(DoCall[Any]):
    """A call of `step.do` with `rollback=`: its row says so."""

    __slots__ = ()

    detail = ROLLBACK_DETAIL

    def give(self, args: tuple[Any, ...]) -> None:
        """Set the arguments, which the handler is told too, where they come from other steps."""
        super().give(args)
        step = self if self.record is None else self.record
        identity = self.kind, step.name, step.count
        handlers = self.run.handlers
        if identity in handlers:
            handlers[identity] = msgspec.structs.replace(handlers[identity], args=args)
