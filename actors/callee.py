"""What the runtime knows of a step function: how it runs, its context parameter, its result type.

Read once per code object: a lambda made anew on every replay costs a dictionary look-up.
"""

from __future__ import annotations

import copy
import dis
import inspect
import typing
from collections import abc
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType
from typing import Annotated, Any, Final

from perdure.actors.context import StepContext
from perdure.actors.functions import Kind, classify, generates
from perdure.actors.identity import function_identity
from perdure.actors.workflow import StepLibrary
from perdure.errors import InvalidArgumentError
from perdure.storage.codec import return_annotation


class Callee:
    """One step function as the runtime sees it.

    `position` is where `StepContext` goes among the positional arguments, `keyword` the name
    of a keyword-only parameter for it; both None where the function takes none. `never_waits` says
    that nothing in its code awaits, so that it runs to its end wherever it is called. `streams` says
    that its result is taken chunk by chunk; `items` is the annotation of a chunk.
    """

    __slots__ = (
        "generates", "identity", "items", "keyword", "kind", "never_waits", "position", "returns", "streams",
        "wants_context",
    )  # fmt: skip

    def __init__(self, fn: Callable[..., Any], library: StepLibrary) -> None:
        self.identity = function_identity(fn)
        self.kind: Kind = classify(fn, library)
        self.returns = return_annotation(fn)
        self.position, self.keyword = _context_parameter(fn)
        self.wants_context = self.position is not None or self.keyword is not None
        self.never_waits = self.kind == "trio" and not self.wants_context and _never_waits(fn)
        self.generates = generates(fn)
        self.streams, self.items = self.generates, Any
        self.read_items(self.returns)

    def returning(self, returns: object) -> Callee:
        """Return what is known where a call says `returns=`, which takes the place of the annotation."""
        if returns is None or (not self.streams and items_of(returns) is None):
            return self
        other = copy.copy(self)
        other.read_items(returns)
        return other

    def read_items(self, annotation: Any) -> None:
        """Take the annotation of a chunk from that of the result, where it is one of an iterator.

        Raises `InvalidArgumentError` for a process step, and for another annotation of a generator.
        """
        items = items_of(annotation)
        if items is not None:
            self.streams, self.items = True, items
            self.never_waits = False
        elif self.generates and annotation is not Any and typing.get_origin(annotation) is not Annotated:
            raise InvalidArgumentError(
                f"a step function that yields returns an iterator, not {annotation!r}: annotate it, or give"
                " returns=, with AsyncIterator[...] or Iterator[...] of what it yields"
            )
        if self.streams and self.kind == "process":
            raise InvalidArgumentError(
                "a process step cannot return a stream, which would end with its process: return a value, or"
                " the name of a file"
            )

    def arguments(
        self, args: tuple[Any, ...], context: StepContext
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments to call with, the context among them where the function wants it."""
        if self.position is not None:
            return (*args[: self.position], context, *args[self.position :]), {}
        if self.keyword is not None:
            return args, {self.keyword: context}
        return args, {}


ITERATORS: Final = (abc.AsyncIterator, abc.AsyncGenerator, abc.AsyncIterable, abc.Iterator, abc.Generator)
"""Annotations of a result that say: this is to be taken chunk by chunk. A list is an `Iterable`."""


def items_of(annotation: Any) -> Any | None:
    """Return the annotation of the chunks where a result is annotated as an iterator, else None.

    >>> items_of(abc.AsyncIterator[bytes]), items_of(list[bytes])
    (<class 'bytes'>, None)
    """
    if annotation in ITERATORS:
        return Any
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) in ITERATORS else None


KINDS_OF_CODE: Final = (
    inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE
)

WAITING_CODE: Final = frozenset(
    ("GET_AWAITABLE", "SEND", "YIELD_VALUE", "YIELD_FROM", "GET_AITER", "GET_ANEXT", "BEFORE_ASYNC_WITH")
)
"""Instructions of which a coroutine has some where it awaits, in any version of Python."""

CALLEES_MAX: Final = 4_096
"""More code objects than any program has; what makes its step functions with `exec` starts over here."""

_CACHE: Final[dict[tuple[int, type, StepLibrary], tuple[CodeType, dict[str, Any], Callee]]] = {}
# By the code's identity, which the entry keeps alive: equal code elsewhere is another function. And by the
# class: a method that is bound has one parameter less.


def callee_of(fn: Callable[..., Any], library: StepLibrary) -> Callee:
    """Return what is known of `fn`. Raises `InvalidArgumentError` where it cannot be called."""
    code = None if hasattr(fn, "__wrapped__") else getattr(fn, "__code__", None)
    if code is None:  # a method, a partial, a decorated function, an object: rarer, and cheap enough
        if not callable(fn):
            raise InvalidArgumentError(
                f"a step needs a function, not {fn!r}: write step.do(name, fn, *args), without calling fn"
                + (" (a coroutine was given)" if inspect.iscoroutine(fn) else "")
            )
        return Callee(fn, library)
    key = (id(code), type(fn), library)
    known = _CACHE.get(key)
    # A function made inside another may have the same code and other annotations each time.
    if known is not None and known[1] == fn.__annotations__:
        return known[2]
    callee = Callee(fn, library)
    if len(_CACHE) >= CALLEES_MAX:
        _CACHE.clear()
    _CACHE[key] = code, dict(fn.__annotations__), callee
    return callee


def _never_waits(fn: Callable[..., Any]) -> bool:
    """Whether calling `fn` gives a coroutine that surely ends without a wait: its own code has none."""
    if type(fn) is not FunctionType or fn.__code__.co_flags & KINDS_OF_CODE != inspect.CO_COROUTINE:
        return False
    return WAITING_CODE.isdisjoint(instruction.opname for instruction in dis.get_instructions(fn))


def _context_parameter(fn: Callable[..., Any]) -> tuple[int | None, str | None]:
    """Find the parameter annotated `StepContext`; a name alone never counts."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a built-in without a signature
        return None, None
    hints = annotations_of(fn, parameters)
    for position, (name, parameter) in enumerate(parameters.items()):
        if hints.get(name) in (StepContext, "StepContext", "perdure.StepContext"):
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                return None, name
            return position, None
    return None, None


def annotations_of(fn: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the annotations of a function's parameters; as texts where they cannot be resolved here."""
    target: Any = inspect.unwrap(fn)
    while hasattr(target, "func"):
        target = target.func
    try:
        return typing.get_type_hints(target if hasattr(target, "__annotations__") else type(target).__call__)
    except Exception:  # noqa: BLE001 - an annotation that only a type checker can resolve: texts will do
        return {name: parameter.annotation for name, parameter in parameters.items()}
