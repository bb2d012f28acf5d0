"""The codec gives back what it was given, or refuses it and says where and why."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import subprocess
import sys
import uuid
import zoneinfo
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import DecodingError, EncodingError, InvalidParamsError
from perdure.storage.codec import Codec, TypeHook

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"


class Mood(enum.StrEnum):
    CALM = "calm"


class Right(enum.IntFlag):
    READ = 1
    WRITE = 2


class Item(msgspec.Struct):
    name: str
    price: decimal.Decimal


class Order(msgspec.Struct, kw_only=True):
    items: list[Item]
    by_name: dict[str, Item] = {}
    note: str | None = None


class Base(msgspec.Struct):
    a: int


class Derived(Base):
    b: int = 0


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: list[str]


@dataclasses.dataclass
class Tide:
    at: dt.datetime
    metres: float = 0.0


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@attrs.define
class Berth:
    number: int
    boat: str | None = None


class Point(NamedTuple):
    x: int
    y: int


class Row(TypedDict):
    id: int
    tags: set[str]


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    at: dt.date
    size: int = pydantic.Field(default=1, alias="theSize")
    inner: Any = None


class Opaque:
    def __repr__(self) -> str:
        raise AssertionError("a repr of the user's was called")


WRONG: Any = None
"""What the type checkers would refuse, and a caller may do all the same."""

UserId = NewType("UserId", int)
NOON = dt.datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=dt.UTC)

RESTORED: list[tuple[Any, Any]] = [
    (Any, None),
    (Any, {"a": [1, 2.5, True, None, "x"]}),
    (None, None),
    (int, 2**70),
    (Any, [-(2**100), 2**64, 2**63, -(2**63) - 1]),
    (float, -0.0),
    (Order, Order(items=[Item("rope", decimal.Decimal("1.10"))], note="n")),
    (list[Cat | Dog], [Cat(9), Dog(["sit"])]),
    (Tide, Tide(NOON)),
    (Box[int], Box(3)),
    (Berth, Berth(4, "Ada")),
    (Point, Point(1, 2)),
    (Row, {"id": 1, "tags": {"a", "b"}}),
    (Colour, Colour.RED),
    (Mood | None, Mood.CALM),
    (Right, Right.READ | Right.WRITE),
    (dt.datetime, NOON),
    (dt.datetime, NOON.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30)))),
    (dt.date, dt.date(2026, 3, 1)),
    (dt.time, dt.time(1, 2, 3, 4)),
    (dt.timedelta, dt.timedelta(days=-3, microseconds=7)),
    (uuid.UUID, uuid.UUID(int=7)),
    (decimal.Decimal, decimal.Decimal("1.00")),
    (decimal.Decimal, decimal.Decimal("NaN")),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (dict[int, str], {1: "a", 2**70: "b"}),
    (dict[uuid.UUID, int], {uuid.UUID(int=1): 1}),
    (dict[str, bytes], {"a": b"\x00\xff"}),
    (dict[str, object], {"a": [1]}),
    (pathlib.Path, pathlib.Path("a/b")),
    (list[pathlib.Path] | None, [pathlib.Path("a")]),
    (Literal["a", "b"], "b"),
    (UserId, 3),
    (Annotated[list[int], {"un": "hashable"}], [1]),
    (bytes, b"\x00\xff"),
    (bytearray, bytearray(b"ab")),
    (Any, b"raw"),
    (str | bytes, "text"),
    (str | bytes, b"raw"),
    (bytes | None, None),
    (Annotated[bytes, msgspec.Meta(max_length=3)], b"abc"),
    (Model, Model(at=dt.date(2026, 3, 1), theSize=3)),
    (list[Model] | None, [Model(at=dt.date(2026, 3, 1))]),
]


@pytest.mark.parametrize(("annotation", "value"), RESTORED)
def test_a_value_comes_back_the_same_by_its_annotation(annotation: Any, value: Any) -> None:
    coder = Codec().coder(annotation)
    stored, decoded = coder.record(value)
    again = coder.decode(stored)
    assert type(value) is type(decoded) is type(again)
    assert value == decoded == again or value != value  # noqa: PLR0124 - a NaN is like nothing
    # What equals is not always the same, as 1 and True; the order of a set is by chance.
    assert sorted(repr(value)) == sorted(repr(decoded)) == sorted(repr(again))


@pytest.mark.parametrize(("annotation", "value"), RESTORED)
def test_a_value_that_is_bytes_is_stored_as_bytes_and_any_other_as_json(annotation: Any, value: Any) -> None:
    stored, _ = Codec().coder(annotation).record(value)
    if isinstance(value, bytes | bytearray):
        assert bytes(value) == stored
    else:
        assert isinstance(stored, str)
        json.loads(stored)


REFUSED: list[tuple[Any, Any, str, str]] = [
    (Any, {"items": [0, 1, 2, {"price": (1, 2)}]}, "$.items[3].price", "tuple would come back as list"),
    (Any, {"a": {1, 2}}, "$.a", "set would come back as list"),
    (Any, {1: "a"}, '$."1"', "as a key, int would come back as str"),
    (Any, [NOON], "$[0]", "datetime.datetime would come back as str"),
    (Any, [math.nan], "$[0]", "NaN and infinities have no form in JSON"),
    (float, math.inf, "$", "Expected `float`"),
    (Any, {"mood": Mood.CALM}, "$.mood", "Mood would come back as str"),
    (list[str], [Mood.CALM], "$[0]", "Mood would come back as str"),
    (Any, {"a b": b"x"}, '$."a b"', "bytes would come back as str"),
    (Any, Tide(NOON), "$", "Tide would come back as dict"),
    (Any, bytearray(b"x"), "$", "bytearray would come back as bytes"),
    (Any, ["\ud800"], "$[0]", "lone surrogate"),
    (Any, [10**5000], "$[0]", "too many digits"),
    (Any, {"a": [object()]}, "$.a[0]", "object cannot be stored"),
    (Any, {"a": {(1, 2): 3}}, "$.a", "a key of class tuple cannot be stored"),
    (Base, Derived(1), "$", "Derived would come back as"),
    (list[Base], [Base(1), Derived(1)], "$[1]", "Derived would come back as"),
    (list[int], (1, 2), "$", "tuple would come back as list"),
    (tuple[Any, ...], ((1, 2),), "$[0]", "tuple would come back as list"),
    (int, 1.0, "$", "Expected `int`"),
    (int, "x", "$", "Expected `int`"),
    (Order, Order(items=[Item("a", WRONG)]), "$.items[0].price", "Expected `decimal`"),
    (
        Order,
        Order(items=[], by_name={"a": Item("a", decimal.Decimal(1)), "b c": Item(WRONG, decimal.Decimal(1))}),
        '$.by_name."b c".name',
        "Expected `str`, got `null`",
    ),
    (Box[Any], Box((1,)), "$.content", "tuple would come back as list"),
    (Row, {"id": 1, "tags": set(), "more": 1}, "$", "3 keys would come back as 2"),
    (set[int], {1, Right.WRITE}, "$", ""),
    (dt.datetime, NOON.astimezone(zoneinfo.ZoneInfo("Europe/Berlin")), "$", "time zone"),
    (dt.datetime, NOON.astimezone(dt.timezone(dt.timedelta(seconds=3))), "$", ""),
    (Order, b"raw", "$", "bytes where Order is expected"),
    (Annotated[bytes, msgspec.Meta(max_length=3)], b"abcd", "$", "length <= 3"),
    (Model, Model(at=dt.date(2026, 3, 1), inner=(1,)), "$.inner", "tuple would come back as list"),
]


@pytest.mark.parametrize(("annotation", "value", "path", "reason"), REFUSED)
def test_a_value_that_would_come_back_different_is_refused_by_its_path(
    annotation: Any, value: Any, path: str, reason: str
) -> None:
    with pytest.raises(EncodingError) as caught:
        Codec().coder(annotation).record(value)
    assert caught.value.path.startswith(path) if path == "$" else path == caught.value.path
    assert f"the value at {caught.value.path} cannot be stored" in str(caught.value)
    assert reason in str(caught.value)
    assert "annotate the function or give returns=" in str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(EncodingError, match="contains itself"):
        Codec().coder(Any).record(loop)


def test_the_decoded_value_shares_nothing_mutable_with_the_original() -> None:
    inner = [1]
    value = {"a": inner, "b": inner}
    _, decoded = Codec().coder(Any).record(value)
    inner.append(2)
    decoded["a"].append(3)
    assert {"a": [1, 3], "b": [1]} == decoded


def test_an_int_where_a_float_is_promised_comes_back_as_the_equal_float() -> None:
    assert ("[1,0.5]", [1.0, 0.5]) == Codec().coder(list[float]).record([1, 0.5])
    with pytest.raises(EncodingError):
        Codec().coder(float).record(2**60 + 1)


def test_a_zone_with_one_fixed_offset_comes_back_as_that_offset() -> None:
    utc = dt.datetime(2026, 3, 1, tzinfo=zoneinfo.ZoneInfo("UTC"))
    assert ('"2026-03-01T00:00:00Z"', dt.datetime(2026, 3, 1, tzinfo=dt.UTC)) == Codec().coder(
        dt.datetime
    ).record(utc)


def test_keys_keep_their_order() -> None:
    _, decoded = Codec().coder(Any).record({"b": 1, "a": 2})
    assert ["b", "a"] == list(decoded)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_every_plain_value_survives_unannotated(value: Any) -> None:
    coder = Codec().coder(Any)
    stored, decoded = coder.record(value)
    assert repr(value) == repr(decoded) == repr(coder.decode(stored))


class Everything(msgspec.Struct):
    at: dt.datetime
    day: dt.date
    hour: dt.time
    gap: dt.timedelta
    key: uuid.UUID
    money: decimal.Decimal
    pairs: tuple[tuple[int, str], ...]
    members: frozenset[int]
    counts: dict[int, float]
    raw: bytes
    mood: Mood | None
    plain: Any


AWARE = st.datetimes(timezones=st.just(dt.UTC)).map(lambda at: at.replace(fold=0))


@given(
    st.builds(
        Everything,
        at=AWARE,
        day=st.dates(),
        hour=st.times().map(lambda hour: hour.replace(fold=0)),
        gap=st.timedeltas(),
        key=st.uuids(),
        money=st.decimals(allow_nan=False, allow_infinity=False),
        pairs=st.lists(st.tuples(st.integers(), st.text())).map(tuple),
        members=st.frozensets(st.integers()),
        counts=st.dictionaries(st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
        raw=st.binary(),
        mood=st.none() | st.sampled_from(Mood),
        plain=PLAIN,
    )
)
def test_every_annotated_value_survives(value: Everything) -> None:
    coder = Codec().coder(Everything)
    stored, decoded = coder.record(value)
    assert value == decoded == coder.decode(stored)


WILD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | AWARE
    | st.sampled_from(Mood),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(WILD)
def test_no_value_is_recorded_and_comes_back_different(value: Any) -> None:
    try:
        _, decoded = Codec().coder(Any).record(value)
    except EncodingError:
        return
    assert repr(value) == repr(decoded)


# -- annotations -----------------------------------------------------------------------------


def test_an_annotation_whose_values_json_cannot_tell_apart_is_refused_before_the_call() -> None:
    with pytest.raises(EncodingError, match="more than one dataclass"):
        Codec().coder(Tide | Berth)
    with pytest.raises(EncodingError, match="nothing here knows how to store .*Opaque"):
        Codec().coder(dict[str, Opaque])


def test_a_coder_is_made_once_for_each_annotation() -> None:
    codec = Codec()
    unhashable = Annotated[int, {"un": "hashable"}]
    assert codec.coder(dict[str, int]) is codec.coder(dict[str, int])
    assert codec.coder(unhashable) is codec.coder(unhashable)
    assert codec.coder(Literal[1]) is not codec.coder(Literal[True])


def test_a_type_hook_stores_a_class_of_the_user() -> None:
    hook = TypeHook(
        matches=lambda cls: issubclass(cls, complex),
        encode=lambda value: [value.real, value.imag],
        decode=lambda cls, data: cls(*data),
    )
    coder = Codec(hooks=[hook]).coder(list[complex])
    assert ("[[1.0,2.0]]", [1 + 2j]) == coder.record([1 + 2j])
    with pytest.raises(EncodingError, match=r"\$\[0\]"):
        coder.record([complex(math.nan, 1)])
    with pytest.raises(EncodingError, match="nothing here knows how to store complex"):
        Codec().coder(list[complex])


def test_a_hook_that_raises_refuses_the_value() -> None:
    def encode(value: Any) -> Any:
        raise OSError("gone")

    hook = TypeHook(matches=lambda cls: cls is complex, encode=encode, decode=lambda cls, data: cls(*data))
    codec = Codec(hooks=[hook])
    with pytest.raises(EncodingError, match=r"\$\[0\]"):
        codec.coder(list[complex]).record([1j])
    assert '[{"$type":"complex"}]' == codec.describe_input((1j,), bytes_max=99)[0]


def test_pydantic_is_not_imported_by_the_codec() -> None:
    program = "import sys, perdure.storage.codec as c; c.Codec().coder(int); print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "False\n" == done.stdout


# -- decoding --------------------------------------------------------------------------------


def test_a_stored_value_that_no_longer_fits_names_annotation_path_and_remedy() -> None:
    with pytest.raises(
        DecodingError, match=r"does not fit Order any more, at \$\.items\[0\]: .*`price`.*default"
    ):
        Codec().coder(Order).decode('{"items":[{"name":"rope"}]}')
    with pytest.raises(DecodingError, match="bytes where Order is expected"):
        Codec().coder(Order).decode(b"x")
    with pytest.raises(DecodingError, match="a value in JSON where bytes are expected"):
        Codec().coder(bytes).decode("1")
    with pytest.raises(DecodingError, match="malformed"):
        Codec().coder(Any).decode("{,")


# -- params ----------------------------------------------------------------------------------


def test_params_may_be_an_instance_or_plain_data_that_fits() -> None:
    coder = Codec().coder(Order)
    order = Order(items=[Item("rope", decimal.Decimal("1.1"))])
    expected = ('{"items":[{"name":"rope","price":"1.1"}],"by_name":{},"note":null}', order)
    assert expected == coder.accept(order)
    assert expected == coder.accept({"items": [{"name": "rope", "price": "1.1"}]})
    assert expected == coder.accept({"items": ({"name": "rope", "price": decimal.Decimal("1.1")},)})
    assert expected == coder.accept_json('{"items":[{"name":"rope","price":"1.1"}]}')


def test_params_of_an_unannotated_event_are_plain_data() -> None:
    assert ('{"a":1}', {"a": 1}) == Codec().coder(Any).accept({"a": 1})
    assert (b"raw", b"raw") == Codec().coder(Any).accept(b"raw")
    with pytest.raises(InvalidParamsError, match=r"\$\.a cannot be stored"):
        Codec().coder(Any).accept({"a": object()})


def test_params_fit_annotations_whose_json_form_is_another() -> None:
    codec = Codec()
    assert {1: {2}} == codec.coder(dict[int, set[int]]).accept_json(b'{"1":[2]}')[1]
    assert b"ab" == codec.coder(bytes).accept_json('"YWI="')[1]
    assert "ab" == codec.coder(str | bytes).accept_json('"ab"')[1]
    assert Model(at=dt.date(2026, 3, 1)) == codec.coder(Model).accept_json('{"at":"2026-03-01"}')[1]
    assert 2**70 == codec.coder(int).accept_json(str(2**70))[1]


@pytest.mark.parametrize(
    ("annotation", "params", "message"),
    [
        (
            Order,
            {"items": [{"name": 1, "price": "1"}]},
            r"do not fit Order, at \$\.items\[0\]\.name: Expected `str`",
        ),
        (
            Order,
            None,
            r"do not fit Order, at \$: Expected `object`, got `None`|Expected `object`, got `null`",
        ),
        (Order, Base(1), "do not fit Order"),
        (Base, Derived(1), "do not fit Base, at \\$: Expected `object`, got `Derived`"),
        (int, "5", "Expected `int`"),
        (float, math.nan, r"\$ cannot be stored"),
        (int, b"5", "do not fit int"),
        (Model, {"theSize": "many"}, "do not fit Model"),
    ],
)
def test_params_that_do_not_fit_are_refused_by_path(annotation: Any, params: Any, message: str) -> None:
    with pytest.raises(InvalidParamsError, match=message):
        Codec().coder(annotation).accept(params)


def test_params_that_are_not_json_are_refused() -> None:
    with pytest.raises(InvalidParamsError, match="not JSON"):
        Codec().coder(Any).accept_json("{,")
