"""What the runtime knows of a step function: how it runs, its context parameter, its result type.

Read once per code object: a lambda made anew on every replay costs a dictionary look-up.
"""

from __future__ import annotations

import inspect
import typing
import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any, Final

from perdure.actors.context import StepContext
from perdure.actors.functions import Kind, classify
from perdure.actors.identity import function_identity
from perdure.actors.workflow import StepLibrary
from perdure.errors import InvalidArgumentError
from perdure.storage.codec import return_annotation


class Callee:
    """One step function as the runtime sees it.

    `position` is where `StepContext` goes among the positional arguments, `keyword` the name
    of a keyword-only parameter for it; both None where the function takes none.
    """

    __slots__ = ("identity", "keyword", "kind", "position", "returns")

    def __init__(self, fn: Callable[..., Any], library: StepLibrary) -> None:
        self.identity = function_identity(fn)
        self.kind: Kind = classify(fn, library)
        self.returns = return_annotation(fn)
        self.position, self.keyword = _context_parameter(fn)

    def arguments(
        self, args: tuple[Any, ...], context: StepContext
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments to call with, the context among them where the function wants it."""
        if self.position is not None:
            return (*args[: self.position], context, *args[self.position :]), {}
        if self.keyword is not None:
            return args, {self.keyword: context}
        return args, {}


_CACHE: Final[weakref.WeakKeyDictionary[CodeType, dict[StepLibrary, Callee]]] = weakref.WeakKeyDictionary()


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
    by_library = _CACHE.get(code)
    if by_library is None:
        by_library = _CACHE[code] = {}
    callee = by_library.get(library)
    if callee is None:
        callee = by_library[library] = Callee(fn, library)
    return callee


def _context_parameter(fn: Callable[..., Any]) -> tuple[int | None, str | None]:
    """Find the parameter annotated `StepContext`; a name alone never counts."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a built-in without a signature
        return None, None
    target: Any = inspect.unwrap(fn)
    while hasattr(target, "func"):
        target = target.func
    try:
        hints = typing.get_type_hints(target if hasattr(target, "__annotations__") else type(target).__call__)
    except Exception:  # an annotation that only a type checker can resolve: fall back to texts
        hints = {name: parameter.annotation for name, parameter in parameters.items()}
    for position, (name, parameter) in enumerate(parameters.items()):
        if hints.get(name) in (StepContext, "StepContext", "perdure.StepContext"):
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                return None, name
            return position, None
    return None, None
