"""The codec: values of users on one side, what SQLite stores on the other.

A stored value is JSON text (`str`, a TEXT column) so that SQL can look into it, or `bytes` (a BLOB
column) for a value that is itself bytes. Which Python value comes back is decided by an annotation,
never by anything in the stored bytes: there is nothing here to unpickle or import.

Prior art stores what the serialiser accepts and lets the caller find out on replay that a tuple has
become a list. Here a value is decoded as soon as it is encoded, the two are compared exactly, and
what would come back different is refused while the code that made it is still on the stack.

One codec belongs to one runtime. Coders are shared by all its actors and hold no state of theirs.

Invariants:
    What `record` returns as decoded is what `decode` makes of the stored form, and shares no
    mutable part with the value that was given.
    A refused value has had no effect.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, cast, get_origin

import msgspec
from msgspec import inspect as minspect

from perdure.errors import DecodingError, EncodingError, InvalidParamsError
from perdure.limits import VALUE_BYTES_INLINE_MAX, VALUE_BYTES_MAX
from perdure.storage.codec_annotations import (
    BLOB_TYPES,
    AnnotationShape,
    annotation_text,
    is_plain,
    return_annotation,
    shape_of,
    types_within,
)
from perdure.storage.codec_compare import Comparer, Difference, class_name
from perdure.storage.codec_describe import Describer
from perdure.storage.codec_hooks import BUILT_IN_HOOKS, TypeHook, path_hook, pydantic_hook
from perdure.storage.codec_paths import locate_invalid, locate_unencodable
from perdure.storage.records import LongText, Stored

__all__ = ["Codec", "Coder", "Stored", "TypeHook", "path_hook", "pydantic_hook", "return_annotation"]

UNHASHABLE_MAX: Final = 256
"""Annotations that cannot be dictionary keys are remembered by identity; more than this are made anew
per call, and would only be piled up."""

# Byte-for-byte equality of what marshal writes is exact equality of class and content, for built-in
# classes only, at the speed of C; it refuses every other class. The bytes live for one comparison:
# nothing is stored as marshal, and nothing is ever loaded. Version 2 writes no references, so that
# sharing inside the value does not matter.
_fingerprint: Final[Callable[[Any, int], bytes]] = marshal.dumps
_FINGERPRINT_VERSION: Final = 2

ADVICE: Final = "To store it, annotate the function or give returns= with a type that restores it."

_JSON_BUILT_INS: Final = (dict, list, str, int, float, bool, type(None))


class Coder:
    """Stores and restores the values of one annotation. Made by `Codec.coder`.

    >>> Codec().coder(dict[int, str]).record({1: "spring"})
    ('{"1":"spring"}', {1: 'spring'})
    """

    __slots__ = ("_codec", "_decode", "_encode", "_plain", "_shape", "_takes_any_text", "annotation")

    def __init__(self, codec: Codec, annotation: Any, shape: AnnotationShape, *, plain: bool) -> None:
        self.annotation: Any = annotation
        self._codec = codec
        self._shape = shape
        self._plain = plain
        self._takes_any_text = shape.json is Any or shape.json is str
        self._encode: Callable[[Any], bytes] = codec.encoder.encode
        self._decode: Callable[[bytes | str], Any] = codec.decoder(shape.json)

    def __repr__(self) -> str:
        return f"<Coder of {annotation_text(self.annotation)}>"

    def record(self, value: object) -> tuple[Stored, Any]:
        """Encode a value; return its stored form and what that decodes to.

        Raises EncodingError, with the path, when the value cannot be encoded or would come back
        different.
        """
        stored, decoded = self.record_result(value)
        return stored.raw.decode() if isinstance(stored, LongText) else stored, decoded

    def record_result(self, value: object) -> tuple[Stored | LongText, Any]:
        """Do what `record` does, and leave a long text in the bytes that a file takes."""
        if type(value) in BLOB_TYPES:
            return self._record_blob(value)
        try:
            raw = self._encode(value)
        except Exception as error:
            found = locate_unencodable(value, error, self._encode, self._codec.hook_for)
            raise self._refusal(found) from error
        if len(raw) > VALUE_BYTES_INLINE_MAX:
            return self._record_long(value, raw)
        return raw.decode(), self._checked(value, raw)

    def _checked(self, value: object, raw: bytes) -> Any:
        """Return what `raw` decodes to; refuse what would come back different."""
        try:
            decoded = self._decode(raw)
        except Exception as error:
            raise self._refusal(locate_invalid(error, raw, self._decode)) from error
        if not (self._plain and _same_built_ins(value, decoded)):
            self._compare(value, decoded)
        return decoded

    def decode(self, stored: Stored) -> Any:
        """Return the value that was stored.

        Raises DecodingError when the stored form does not fit the annotation any more.
        """
        try:
            if isinstance(stored, str):
                return self._decode(stored)
            return self._decode_blob(stored)
        except Exception as error:
            raw = stored.encode() if isinstance(stored, str) else b""
            found = locate_invalid(error, raw, self._decode)
            raise DecodingError(
                f"what is stored does not fit {annotation_text(self.annotation)} any more, at ${found.path}: "
                f"{found.reason}. Let the annotation accept the old form too (a default for a new field, "
                "a union), or restart the instance from before this value was recorded."
            ) from error

    def accept(self, value: object) -> tuple[Stored, Any]:
        """Encode params: an instance of the annotation, or plain data that fits it.

        Raises InvalidParamsError, with the path.

        >>> Codec().coder(set[int]).accept([3, 3])
        ('[3]', {3})
        """
        try:
            return self.record(value)
        except EncodingError:
            pass  # it may still be plain data that fits
        try:
            fitted = self._fit(value)
        except Exception as error:
            found = locate_invalid(error, b"null", self._decode)
            raise self._misfit(found.path, found.reason) from error
        try:
            return self.record(fitted)
        except EncodingError as error:
            text = str(error).removesuffix(ADVICE)
            text = f"params: {text}Annotate the workflow's `event` with a type that restores it."
            raise InvalidParamsError(text) from error

    def accept_json(self, text: str | bytes) -> tuple[Stored, Any]:
        """Encode params that are given as JSON text. Raises InvalidParamsError, with the path."""
        try:
            data = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise self._misfit("", f"not JSON: {error}") from error
        return self.accept(data)

    # -- the parts ---------------------------------------------------------------------------

    def _record_long(self, value: object, raw: bytes) -> tuple[LongText, Any]:
        if len(raw) > VALUE_BYTES_MAX:
            raise self._refusal(Difference(reason=f"{len(raw)} bytes are more than {VALUE_BYTES_MAX}"))
        # ASCII in which nothing had to be escaped is stored letter by letter: decoding it would only copy
        # it, and text cannot be changed in place.
        is_verbatim = self._takes_any_text and type(value) is str and value.isascii()
        if is_verbatim and len(raw) == len(cast("str", value)) + 2:
            return LongText(raw), value
        return LongText(raw), self._checked(value, raw)

    def _record_blob(self, value: Any) -> tuple[Stored, Any]:
        stored = bytes(value)
        if len(stored) > VALUE_BYTES_MAX:
            raise self._refusal(Difference(reason=f"{len(stored)} bytes are more than {VALUE_BYTES_MAX}"))
        try:
            decoded = self._decode_blob(stored)
        except Exception as error:
            raise self._refusal(Difference(reason=str(error))) from error
        self._compare(value, decoded)
        return stored, decoded

    def _decode_blob(self, stored: bytes) -> Any:
        for annotation in self._shape.blobs.values():
            return msgspec.convert(stored, annotation)
        raise TypeError(f"bytes where {annotation_text(self.annotation)} is expected")

    def _compare(self, value: object, decoded: object) -> None:
        try:
            found = self._codec.comparer.difference(value, decoded)
        except Exception as error:  # the user's own __eq__, __getattr__ or hook
            reason = f"comparing it with its decoded form raised {class_name(type(error))}"
            raise self._refusal(Difference(reason=reason)) from error
        if found is not None:
            raise self._refusal(found)

    def _fit(self, value: object) -> Any:
        blobs = self._shape.blobs
        annotation = next(iter(blobs.values())) if self._shape.json is NoReturn else self._shape.json
        return msgspec.convert(value, annotation, str_keys=True, dec_hook=self._codec.decode_unknown)

    def _misfit(self, path: str, reason: str) -> InvalidParamsError:
        return InvalidParamsError(
            f"params do not fit {annotation_text(self.annotation)}, at ${path}: {reason}. "
            "The annotation of the workflow's `event` says what is expected."
        )

    def _refusal(self, found: Difference) -> EncodingError:
        text = f"the value at ${found.path} cannot be stored so that it comes back the same: {found.reason}. "
        if self._shape.unresolved is not None:
            text += f"Its annotation {self._shape.unresolved.text!r} could not be resolved "
            text += f"({self._shape.unresolved.reason}). "
        elif not self._is_open:
            text += f"The annotation here is {annotation_text(self.annotation)}. "
        text += ADVICE
        return EncodingError(text, path=f"${found.path}")

    @property
    def _is_open(self) -> bool:
        return self._shape.json is Any


class Codec:
    """Makes coders, one per annotation, and describes the inputs of steps.

    `hooks` teach it classes that msgspec does not know; they are asked before the built-in ones
    (paths, Pydantic models).
    """

    def __init__(self, hooks: Sequence[TypeHook] = ()) -> None:
        self._hooks = (*hooks, *BUILT_IN_HOOKS)
        self._hook_of_class: dict[type[Any], TypeHook | None] = {}
        self._coders: dict[Any, Coder] = {}
        self._unhashable: dict[int, Coder] = {}
        self._describer = Describer(self.hook_for)
        self.describe = self._describer.describe  # `describe_input` without the way to it
        self.encoder = msgspec.json.Encoder(enc_hook=self._encode_unknown)
        self.comparer = Comparer(self.hook_for)

    def coder(self, annotation: object) -> Coder:
        """Return the coder of an annotation; `Any` for a value that nothing is known of.

        Raises EncodingError for an annotation whose values could not be told apart in JSON, or
        that holds a class which nothing can restore: before the function has run.
        """
        try:
            coder = self._coders.get(annotation)
            if coder is None:
                coder = self._coders[annotation] = self._make(annotation)
            return coder
        except TypeError:  # unhashable
            coder = self._unhashable.get(id(annotation))
        if coder is None or coder.annotation is not annotation:
            coder = self._make(annotation)
            if len(self._unhashable) >= UNHASHABLE_MAX:
                self._unhashable.clear()
            self._unhashable[id(annotation)] = coder  # which keeps the annotation, and so its id, alive
        return coder

    def describe_input(
        self, args: tuple[object, ...], bytes_max: int, digest_above: int = -1
    ) -> tuple[str | None, str | None]:
        """Return the positional arguments as JSON text, and the digest of that text.

        The text is None when it is longer than `bytes_max`, the digest where the text is of at most
        `digest_above` bytes, and so is as good for a comparison. What cannot be encoded stands there
        as `{"$type": "module.Class"}`. Never fails. Sets and keys are sorted, so that the digest
        is the same in every process.

        >>> Codec().describe_input((1, object()), bytes_max=100)[0]
        '[1,{"$type":"object"}]'
        """
        return self._describer.describe(args, bytes_max, digest_above)

    def hook_for(self, cls: type[Any]) -> TypeHook | None:
        """Return the hook that stores a class, or None where there is none."""
        try:
            return self._hook_of_class[cls]
        except KeyError:
            hook = next((each for each in self._hooks if each.matches(cls)), None)
            self._hook_of_class[cls] = hook
            return hook

    def decoder(self, annotation: Any) -> Callable[[bytes | str], Any]:
        """Return the function that decodes JSON text to an annotation."""
        if annotation is NoReturn:
            return _refuse_text
        return msgspec.json.Decoder(annotation, dec_hook=self.decode_unknown).decode

    def decode_unknown(self, cls: Any, data: Any) -> Any:
        """Restore an instance of a class that msgspec does not know: its `dec_hook`."""
        plain: type = get_origin(cls) or cls
        hook = self.hook_for(plain)
        if hook is not None:
            return hook.decode(cls, data)
        if isinstance(data, plain):  # `object`, and abstract classes of built-in ones
            return data
        raise TypeError(f"Expected `{class_name(plain)}`, got `{type(data).__name__}`")

    def _encode_unknown(self, value: object) -> Any:
        hook = self.hook_for(type(value))
        if hook is None:
            raise NotImplementedError
        return hook.encode(value)

    def _make(self, annotation: object) -> Coder:
        shape = shape_of(annotation)
        if shape.json is NoReturn:
            return Coder(self, annotation, shape, plain=False)
        try:
            within = types_within(shape.json)
            for each in within:
                if isinstance(each, minspect.CustomType):
                    self._require_known(each.cls)
            return Coder(self, annotation, shape, plain=is_plain(within, self._is_opaque))
        except Exception as error:
            raise EncodingError(
                f"values of {annotation_text(annotation)} cannot be restored from JSON: {error}. "
                "Annotate the function, or give returns=, with a type that can be, or give the App a hook."
            ) from error

    def _require_known(self, cls: type[Any]) -> None:
        if self.hook_for(cls) is None and not self._is_opaque(cls):
            raise TypeError(f"nothing here knows how to store {class_name(cls)}")

    def _is_opaque(self, cls: type[Any]) -> bool:
        """Whether plain data passes through as it is: `object`, or an abstract class."""
        return self.hook_for(cls) is None and any(issubclass(each, cls) for each in _JSON_BUILT_INS)


def _refuse_text(_text: bytes | str) -> NoReturn:
    raise TypeError("a value in JSON where bytes are expected")


def _same_built_ins(value: Any, decoded: Any) -> bool:
    if type(value) is str:  # a large text, read at the speed of memory
        return type(decoded) is str and value == decoded
    try:
        return _fingerprint(value, _FINGERPRINT_VERSION) == _fingerprint(decoded, _FINGERPRINT_VERSION)
    except ValueError:  # another class somewhere inside
        return False
