"""Annotations: what a function promises to return, and what that means for stored bytes.

Prior art asks `typing.get_type_hints` for everything, so one unresolvable parameter loses the
return type as well. Here only the return annotation is resolved, and one that cannot be is
`Any` with the reason attached, so that a later refusal can name the misspelt class.

Nobody else may touch the cache of this module. It remembers pure facts about functions, weakly.

Invariants:
    Resolving an annotation never raises and never calls the function.
    A function that is garbage leaves nothing behind.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final
from weakref import WeakKeyDictionary

import msgspec
from msgspec import inspect as minspect

__all__ = [
    "AnnotationShape",
    "UnresolvedAnnotation",
    "annotation_text",
    "is_plain",
    "return_annotation",
    "shape_of",
    "types_within",
]

WRAPPERS_DEEP_MAX: Final = 100
"""A function wrapped more often than this wraps itself."""

BLOB_TYPES: Final[tuple[object, ...]] = (bytes, bytearray)

OPEN_ANNOTATIONS: Final[tuple[object, ...]] = (
    Any,
    object,
    inspect.Signature.empty,
    typing.NoReturn,
    typing.Never,
)
"""Annotations that say nothing about the value."""

PLAIN_TYPES: Final[tuple[type[minspect.Type], ...]] = (
    minspect.AnyType,
    minspect.NoneType,
    minspect.BoolType,
    minspect.IntType,
    minspect.FloatType,
    minspect.StrType,
    minspect.ListType,
    minspect.DictType,
    minspect.VarTupleType,
    minspect.TupleType,
    minspect.SetType,
    minspect.FrozenSetType,
    minspect.LiteralType,
    minspect.UnionType,
    minspect.TypedDictType,
)


class UnresolvedAnnotation(msgspec.Struct, frozen=True, kw_only=True):
    """An annotation that names something which does not exist where it stands."""

    text: str
    reason: str


class AnnotationShape(msgspec.Struct, frozen=True, kw_only=True):
    """How values of one annotation are stored: as JSON text, as bytes, or either."""

    json: Any
    """What JSON text is decoded to; `NoReturn` where only bytes are possible."""
    blobs: dict[type, Any]
    """`bytes` and `bytearray`, each with its own annotation, where the value may be one."""
    unresolved: UnresolvedAnnotation | None


_resolved: WeakKeyDictionary[types.FunctionType, Any] = WeakKeyDictionary()


def return_annotation(fn: object) -> Any:
    """Return what a call of `fn` gives, resolved; `Any` where nothing is said.

    Looks through partials, methods, callables and `__wrapped__`. For a plain function that
    returns a coroutine, the annotation of the coroutine's result. An annotation that cannot be
    resolved is `Any` too, marked with an `UnresolvedAnnotation`.

    >>> async def fetch(topic: str) -> list[str]: ...
    >>> return_annotation(functools.partial(fetch, "tides"))
    list[str]
    """
    if not isinstance(fn, types.FunctionType):
        inner = _unwrap(fn)
        if isinstance(inner, type):
            return inner
        if not isinstance(inner, types.FunctionType):
            return Any
        fn = inner
    try:
        return _resolved[fn]
    except KeyError:
        annotation = _resolved[fn] = _resolve(_unwrap(fn))
        return annotation


def _unwrap(fn: object) -> object:
    """Return the function in which the annotation was written."""
    for _ in range(WRAPPERS_DEEP_MAX):
        if isinstance(fn, type):
            return fn
        if isinstance(fn, functools.partial):
            fn = typing.cast("functools.partial[object]", fn).func
        elif isinstance(fn, types.MethodType):
            fn = fn.__func__
        elif (inner := inspect.getattr_static(fn, "__wrapped__", None)) is not None:
            fn = inner
        elif isinstance(fn, types.FunctionType):
            return fn
        else:  # an instance whose class defines __call__
            fn = inspect.getattr_static(type(fn), "__call__", None)
            if not isinstance(fn, types.FunctionType):
                return None
    return None


def _resolve(fn: object) -> Any:
    if isinstance(fn, type):
        return fn
    if not isinstance(fn, types.FunctionType) or "return" not in fn.__annotations__:
        return Any
    written: object = fn.__annotations__["return"]
    holder = types.SimpleNamespace(__annotations__={"return": written})
    try:
        names = _local_names(fn)
        hints = typing.get_type_hints(holder, globalns=fn.__globals__, localns=names, include_extras=True)
        annotation: Any = hints["return"]
    except Exception as error:  # noqa: BLE001 (evaluating text may raise anything; it is kept as the reason)
        reason = f"{type(error).__name__}: {error}"
        return Annotated[Any, UnresolvedAnnotation(text=str(written), reason=reason)]
    origin = typing.get_origin(annotation)
    if inspect.iscoroutinefunction(fn) or origin not in (
        collections.abc.Coroutine,
        collections.abc.Awaitable,
    ):
        return annotation
    return typing.get_args(annotation)[-1]


def _local_names(fn: types.FunctionType) -> dict[str, object]:
    """Names that an annotation in text form may use beside the module's own."""
    names: dict[str, object] = {p.__name__: p for p in getattr(fn, "__type_params__", ())}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    return names


def annotation_text(annotation: object) -> str:
    """Return how an annotation is written in error texts.

    >>> annotation_text(int), annotation_text(dict[str, typing.Any])
    ('int', 'dict[str, Any]')
    """
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return annotation.__qualname__
    return repr(annotation).replace("typing.", "")


def shape_of(annotation: object) -> AnnotationShape:
    """Take an annotation apart into what is stored as JSON and what is stored as bytes."""
    if annotation is None:
        annotation = type(None)
    unresolved = next((m for m in _metadata(annotation) if isinstance(m, UnresolvedAnnotation)), None)
    bare = _bare(annotation)
    if isinstance(bare, typing.TypeVar) or any(bare is each for each in OPEN_ANNOTATIONS):
        return AnnotationShape(json=Any, blobs={bytes: bytes}, unresolved=unresolved)
    members = list(_members(annotation))
    blobs = {typing.cast(type, _bare(m)): m for m in members if _bare(m) in BLOB_TYPES}
    if not blobs:
        return AnnotationShape(json=annotation, blobs={}, unresolved=None)
    # msgspec refuses `str | bytes`, because in JSON both are text; here the column tells them apart.
    rest = [m for m in members if _bare(m) not in BLOB_TYPES]
    joined: Any = functools.reduce(_either, rest) if rest else typing.NoReturn
    return AnnotationShape(json=joined, blobs=blobs, unresolved=None)


def _either(left: Any, right: Any) -> Any:
    return typing.Union[left, right]  # noqa: UP007 (the operands are values, known only here)


def _metadata(annotation: object) -> tuple[object, ...]:
    return getattr(annotation, "__metadata__", ()) if typing.get_origin(annotation) is Annotated else ()


def _bare(annotation: Any) -> Any:
    """Return the annotation without `Annotated`, `NewType` and `type X = ...` around it."""
    while True:
        if typing.get_origin(annotation) is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":  # in typing since 3.12
            annotation = getattr(annotation, "__value__", Any)
        else:
            return annotation


def _members(annotation: object) -> Iterator[object]:
    bare = _bare(annotation)
    if typing.get_origin(bare) in (typing.Union, types.UnionType):
        for member in typing.get_args(bare):
            yield from _members(member)
    else:
        yield annotation


def types_within(annotation: Any) -> list[minspect.Type]:
    """Return the msgspec description of an annotation and of everything inside it.

    Raises what msgspec raises for an annotation that it cannot decode to.
    """
    found: dict[int, minspect.Type] = {}
    waiting: list[object] = [minspect.type_info(annotation)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, tuple):
            waiting.extend(typing.cast("tuple[object, ...]", item))
        elif isinstance(item, minspect.Field):
            waiting.append(item.type)
        elif isinstance(item, minspect.Type) and id(item) not in found:  # types may be recursive
            found[id(item)] = item
            waiting.extend(getattr(item, name) for name in item.__struct_fields__)
    return list(found.values())


def is_plain(within: list[minspect.Type], is_opaque: Callable[[type[Any]], bool]) -> bool:
    """Say whether values of these types are made of built-in scalars and containers only."""
    return all(
        isinstance(each, PLAIN_TYPES) or (isinstance(each, minspect.CustomType) and is_opaque(each.cls))
        for each in within
    )
