"""The methods of a workflow that can be called from outside, and how a call and its reply travel.

Every public `async def` of a subclass is one, but `run`. Arguments and results cross by the codec
even within a process, so that a caller and an instance never share a mutable value.

Invariants:
    A call that does not fit its method's signature is refused before it leaves the caller.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from perdure.errors import InvalidArgumentError
from perdure.storage.codec import Codec
from perdure.storage.failure import describe_failure, restore_failure
from perdure.storage.records import Stored

UNTYPED: Final = inspect.Parameter.empty


class MethodCall(msgspec.Struct, frozen=True, array_like=True):
    """A call on its way: the method's name, and each argument as it is stored."""

    method: str
    args: list[Any] = []  # of `Stored`: on its way, text and bytes are told apart only so
    kwargs: dict[str, Any] = {}
    who: str | None = None
    token: str | None = None
    """With one it stands in the instance's history, and is never carried out a second time."""


class MethodReply(msgspec.Struct, frozen=True, array_like=True):
    """How a call ended: the stored result, or the described error."""

    value: Any = None  # `Stored` or None
    error: str | None = None


class Method:
    """One method as callers and the instance see it."""

    __slots__ = ("hints", "name", "returns", "signature")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        try:
            self.hints: dict[str, Any] = typing.get_type_hints(function, include_extras=True)
        except Exception:  # noqa: BLE001 - an annotation that only a type checker can resolve
            self.hints = {}
        self.name = name
        self.returns = self.hints.get("return", Any)
        signature = inspect.signature(function)
        self.signature = signature.replace(parameters=list(signature.parameters.values())[1:])

    def annotation(self, parameter: str) -> Any:
        """Return what decides how an argument is stored."""
        return self.hints.get(parameter, Any)

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], codec: Codec) -> MethodCall:
        """Return a call as it travels. Raises `InvalidArgumentError` and its kinds."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArgumentError(f"{self.name}{self.signature}: {error}") from None
        stored: list[Stored] = []
        named: dict[str, Stored] = {}
        for name, value in bound.arguments.items():
            kind = self.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                stored += [self._stored(name, each, codec) for each in value]
            elif kind is inspect.Parameter.VAR_KEYWORD:
                named |= {key: self._stored(name, each, codec) for key, each in value.items()}
            elif kind is inspect.Parameter.KEYWORD_ONLY:
                named[name] = self._stored(name, value, codec)
            else:
                stored.append(self._stored(name, value, codec))
        return MethodCall(self.name, stored, named)

    def arguments(self, call: MethodCall, codec: Codec) -> tuple[list[Any], dict[str, Any]]:
        """Return the decoded arguments of a call. Raises `InvalidArgumentError` where they do not fit."""
        try:
            bound = self.signature.bind(*call.args, **call.kwargs)
        except TypeError as error:
            raise InvalidArgumentError(f"{self.name}{self.signature}: {error}") from None
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = self.signature.parameters[name].kind
            coder = codec.coder(self.annotation(name))
            if kind is inspect.Parameter.VAR_POSITIONAL:
                args += [coder.decode(each) for each in value]
            elif kind is inspect.Parameter.VAR_KEYWORD:
                kwargs |= {key: coder.decode(each) for key, each in value.items()}
            elif kind is inspect.Parameter.KEYWORD_ONLY:
                kwargs[name] = coder.decode(value)
            else:
                args.append(coder.decode(value))
        return args, kwargs

    def _stored(self, name: str, value: Any, codec: Codec) -> Stored:
        coder = codec.coder(self.annotation(name))
        try:
            stored, _ = coder.record(value)
            coder.decode(stored)
        except InvalidArgumentError as error:
            error.add_note(f"in argument {name!r} of {self.name}")
            raise
        return stored


def methods_of(cls: type, base: type) -> dict[str, Method]:
    """Return the methods of a class that can be called from outside, by name."""
    found: dict[str, Method] = {}
    for name in dir(cls):
        if name.startswith("_") or name == "run" or hasattr(base, name):
            continue
        function = inspect.getattr_static(cls, name)
        if inspect.iscoroutinefunction(function):
            found[name] = Method(name, function)
    return found


def method_of(methods: Mapping[str, Method], workflow: str, name: str) -> Method:
    """Return a method by its name. Raises `InvalidArgumentError`, which says which there are."""
    method = methods.get(name)
    if method is None:
        known = ", ".join(sorted(methods)) or "none: a public `async def` of the class is one"
        raise InvalidArgumentError(f"{workflow} has no method {name!r} to call; it has: {known}")
    return method


def untyped_call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], codec: Codec) -> MethodCall:
    """Return a call of a method that is not known here; its instance checks the arguments."""
    coder = codec.coder(Any)
    return MethodCall(
        name,
        [coder.record(value)[0] for value in args],
        {key: coder.record(value)[0] for key, value in kwargs.items()},
    )


def failed_reply(error: BaseException, codec: Codec) -> MethodReply:
    """Return the reply that carries an error."""
    return MethodReply(error=describe_failure(error, codec))


def result_of(reply: MethodReply, returns: Any, codec: Codec) -> Any:
    """Return what a call returned, or raise what it raised (law 12)."""
    if reply.error is not None:
        raise restore_failure(reply.error, step="", attempt=0, codec=codec)
    return codec.coder(returns).decode("null" if reply.value is None else reply.value)
