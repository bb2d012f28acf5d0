"""An error keeps its identity in storage (law 12), and nothing about it can stop it being stored."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import types
from typing import Any, ClassVar, Final, NoReturn, Self, cast

import attrs
import msgspec
import pytest

from perdure.errors import EncodingError, NonRetryableError, StepFailedError, StepTimeoutError
from perdure.storage.codec import Codec
from perdure.storage.failure import (
    ERRORS_MAX,
    FAILURE_BYTES_MAX,
    TRACEBACK_ATTRIBUTE,
    describe_failure,
    failure_summary,
    restore_failure,
)

NOON: Final = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


class Order(msgspec.Struct):
    number: int
    total: decimal.Decimal


class Mood(enum.Enum):
    CALM = "calm"


class Card:
    def __str__(self) -> str:
        return "a card"

    def __repr__(self) -> str:
        return "<Card>"


class DeclinedError(NonRetryableError):
    def __init__(self, order: Order, *, at: dt.datetime, card: Card | None = None) -> None:
        super().__init__(f"order {order.number} declined")
        self.order = order
        self.at = at
        self.message = "declined"
        self.card = card


class SlottedError(Exception):
    __slots__ = ("code", "never_set")

    def __init__(self, code: tuple[int, ...]) -> None:
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    mood: Mood
    items: list[int]


@attrs.define
class AttrsError(Exception):
    when: dt.date


class ResponseError(Exception):
    def __init__(self, response: Any) -> None:
        self.response = response

    def __str__(self) -> str:
        return f"status {self.response.status}"


class BrokenError(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")

    __repr__ = __str__


class BothError(KeyError, OSError):
    pass


class WithNewError(Exception):
    def __new__(cls, *args: object) -> Self:
        raise AssertionError(f"the constructor was called with {args}")


class GroupOfOursError(ExceptionGroup[Exception]):
    pass


class Outer:
    class InnerError(Exception):
        pass


def decode_error() -> UnicodeDecodeError:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    return caught.value


def validation_error() -> msgspec.ValidationError:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(b"1", type=str)
    return caught.value


def with_new_error() -> BaseException:
    error: BaseException = BaseException.__new__(WithNewError)
    error.args = ("made", 1)
    return error


def round_trip(error: BaseException) -> BaseException:
    return restore_failure(describe_failure(error, Codec()), step="charge", attempt=2)


ERRORS: list[BaseException] = [
    ValueError("no tide"),
    ValueError(),
    ValueError("a", 1, (2, [3]), {"k": {4}}, None, 1.5, float("inf"), b"raw", 2**70, "\ud800"),
    KeyError("a"),
    KeyError((1, NOON)),
    FileNotFoundError(2, "No such file", "/tide"),
    FileNotFoundError(2, "No such file", "/tid\udce9", None, {"\udce9": 1}),
    OSError("plain"),
    OSError(28, "full", "a", None, "b"),
    BlockingIOError(11, "again"),
    decode_error(),
    UnicodeEncodeError("ascii", "ü", 0, 1, "no"),
    validation_error(),
    SystemExit(3),
    KeyboardInterrupt(),
    StopIteration({"a": 1}),
    ImportError("gone", name="tides", path="/x"),
    SyntaxError("bad", ("f.py", 1, 2, "x =", 1, 3)),
    AttributeError("none", name="n", obj=Card()),
    DeclinedError(Order(7, decimal.Decimal("1.10")), at=NOON),
    SlottedError((1, 2)),
    FrozenError(Mood.CALM, [1]),
    AttrsError(dt.date(2026, 3, 1)),
    BothError("both"),
    with_new_error(),
    Outer.InnerError("inner"),
    EncodingError("refused", path="$.a"),
    StepTimeoutError("late", step="charge", attempt=1),
    ExceptionGroup("two", [ValueError("a"), ExceptionGroup("deeper", [KeyError("b")])]),
    BaseExceptionGroup("exits", [SystemExit(1)]),
    GroupOfOursError("ours", [ValueError("a")]),
    ValueError(Card()),
    ValueError(Card(), 1),
    ValueError(int),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_with_its_class_and_its_text(error: BaseException) -> None:
    restored = round_trip(error)
    assert type(error) is type(restored)
    assert str(error) == str(restored)
    assert len(error.args) == len(restored.args)


def test_fields_come_back_with_their_types() -> None:
    restored = round_trip(DeclinedError(Order(7, decimal.Decimal("1.10")), at=NOON))
    assert isinstance(restored, DeclinedError)
    assert (Order(7, decimal.Decimal("1.10")), NOON, "declined") == (
        restored.order,
        restored.at,
        restored.message,
    )

    slotted = round_trip(SlottedError((1, 2)))
    assert isinstance(slotted, SlottedError)
    assert (1, 2) == slotted.code
    assert not hasattr(slotted, "never_set")

    frozen = round_trip(FrozenError(Mood.CALM, [1]))
    assert isinstance(frozen, FrozenError)
    assert (Mood.CALM, [1]) == (frozen.mood, frozen.items)

    missing = round_trip(FileNotFoundError(2, "No such file", "/tide"))
    assert isinstance(missing, FileNotFoundError)
    assert (2, "No such file", "/tide") == (missing.errno, missing.strerror, missing.filename)

    bad = round_trip(decode_error())
    assert isinstance(bad, UnicodeDecodeError)
    assert (b"\xff", 0, 1) == (bad.object, bad.start, bad.end)

    ended = round_trip(SystemExit(3))
    assert isinstance(ended, SystemExit)
    assert 3 == ended.code


def test_a_field_that_cannot_be_encoded_is_its_repr_and_reads_as_it_did() -> None:
    restored = round_trip(DeclinedError(Order(7, decimal.Decimal(1)), at=NOON, card=Card()))
    assert isinstance(restored, DeclinedError)
    card: Any = restored.card
    assert "<Card>" == card
    assert ("<Card>", "a card", "a card") == (repr(card), str(card), f"{card}")
    again: Any = round_trip(restored)
    assert ("<Card>", "a card") == (repr(again.card), str(again.card))


def test_an_error_whose_text_needs_a_lost_field_keeps_its_text_and_is_still_caught_by_class() -> None:
    restored = round_trip(ResponseError(types.SimpleNamespace(status=502)))
    assert "status 502" == str(restored)
    assert isinstance(restored, ResponseError)
    assert "ResponseError" == type(restored).__name__
    again = round_trip(restored)
    assert "status 502" == str(again)
    assert isinstance(again, ResponseError)


def test_an_error_whose_text_raises_is_stored_and_restored_all_the_same() -> None:
    restored = round_trip(BrokenError("a", BrokenError()))
    assert type(restored) is BrokenError
    text = describe_failure(BrokenError(), Codec())
    assert "whose str raised RuntimeError" in failure_summary(text)[1]


# -- what stands behind an error -------------------------------------------------------------


def chained() -> ValueError:
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error
    except ValueError as error:
        return error


def test_the_cause_comes_back() -> None:
    restored = round_trip(chained())
    assert isinstance(restored.__cause__, KeyError)
    assert restored.__context__ is restored.__cause__
    assert restored.__suppress_context__


def test_the_context_comes_back() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904 (the missing `from` is what is tested)
    except ValueError as error:
        restored = round_trip(error)
    assert isinstance(restored.__context__, KeyError)
    assert (None, False) == (restored.__cause__, restored.__suppress_context__)


def test_notes_and_traceback_come_back() -> None:
    error = chained()
    error.add_note("in step charge")
    restored = round_trip(error)
    assert ["in step charge"] == restored.__notes__
    text = getattr(restored, TRACEBACK_ATTRIBUTE)
    assert text.startswith("Traceback (most recent call last):\n")
    assert "in chained\n" in text
    assert text.endswith("ValueError: second\n")
    assert restored.__traceback__ is None


def test_a_restored_error_that_is_raised_again_keeps_the_first_traceback() -> None:
    with pytest.raises(ValueError, match="second") as caught:
        raise round_trip(chained())
    text = getattr(round_trip(caught.value), TRACEBACK_ATTRIBUTE)
    assert text.index("in chained\n") < text.index("in test_a_restored_error_that_is_raised_again")


def test_the_members_of_a_group_come_back() -> None:
    group = ExceptionGroup(
        "two",
        [ValueError("a"), ExceptionGroup("deeper", [DeclinedError(Order(1, decimal.Decimal(2)), at=NOON)])],
    )
    group.add_note("noted")
    restored = round_trip(group)
    assert isinstance(restored, ExceptionGroup)
    declined, rest = cast("ExceptionGroup[Exception]", restored).split(DeclinedError)
    assert declined is not None
    assert rest is not None
    assert "two (2 sub-exceptions)" == f"{restored}"
    assert ["noted"] == restored.__notes__


# -- bounds ----------------------------------------------------------------------------------


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    first.args = ("first", second)
    restored = round_trip(first)
    assert isinstance(restored.__cause__, KeyError)
    assert restored.__cause__.__cause__ is None


def test_a_long_chain_is_cut() -> None:
    error = ValueError(0)
    for number in range(1, 1000):
        error, error.__cause__ = ValueError(number), error
    length, behind = 0, round_trip(error)
    while behind.__cause__ is not None:
        length, behind = length + 1, behind.__cause__
    assert ERRORS_MAX - 1 == length


def test_a_huge_error_is_bounded() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    error = ValueError("x" * 10**6, list(range(10**5)), loop)
    for _ in range(100):
        error.add_note("n" * 10**5)
    text = describe_failure(error, Codec())
    assert len(text.encode()) < FAILURE_BYTES_MAX
    assert isinstance(restore_failure(text, step="s", attempt=1), ValueError)


def test_a_huge_message_is_cut_alike_in_text_and_argument() -> None:
    restored = round_trip(ValueError("x" * 10**6))
    assert type(restored) is ValueError
    assert str(restored).endswith("more characters)")


# -- classes that are not here ---------------------------------------------------------------


def test_a_class_that_is_not_imported_comes_back_as_step_failed_error_with_all_of_it() -> None:
    error = DeclinedError(Order(7, decimal.Decimal("1.10")), at=NOON, card=Card())
    error.add_note("noted")
    error.__cause__ = KeyError("why")
    text = describe_failure(error, Codec()).replace(f'"module":"{__name__}"', '"module":"not_imported.shop"')
    restored = restore_failure(text, step="charge", attempt=2)
    assert isinstance(restored, StepFailedError)
    assert ("charge", 2) == (restored.step, restored.attempt)
    assert "not_imported.shop.DeclinedError" == restored.error_class
    assert "order 7 declined" == restored.error_message
    assert "not_imported.shop.DeclinedError: order 7 declined (of step 'charge'" in str(restored)
    fields = {
        "order": {"number": 7, "total": "1.10"},
        "at": "2026-03-01T12:00:00Z",
        "message": "declined",
        "card": "<Card>",
    }
    assert fields == restored.fields
    assert ["noted"] == restored.__notes__
    assert isinstance(restored.__cause__, KeyError)


def test_a_group_that_is_not_imported_has_its_members_behind_it() -> None:
    error = GroupOfOursError("ours", [ValueError("a")])
    error.__cause__ = KeyError("why")
    text = describe_failure(error, Codec()).replace("GroupOfOurs", "Unknown")
    restored = restore_failure(text, step="s", attempt=1)
    assert isinstance(restored, StepFailedError)
    group = cast("BaseExceptionGroup[Exception]", restored.__cause__)
    assert [ValueError] == [type(member) for member in group.exceptions]
    assert isinstance(group.__cause__, KeyError)


def test_a_class_inside_a_function_comes_back_as_step_failed_error() -> None:
    class LocalError(Exception):
        pass

    assert isinstance(round_trip(LocalError("x")), StepFailedError)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "int"),
        ("builtins", "print"),
        ("json", "decoder"),
        ("os", "path.join"),
        ("", ""),
        (__name__, "Order"),
    ],
)
def test_only_an_error_class_is_looked_up(module: str, name: str) -> None:
    text = json.dumps({"class": name, "module": module, "message": "m"})
    assert isinstance(restore_failure(text, step="s", attempt=1), StepFailedError)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"class": 1}', "x" * 100, "[" * 10**5])
def test_a_text_that_cannot_be_read_is_still_an_error(text: str) -> None:
    restored = restore_failure(text, step="charge", attempt=1)
    assert isinstance(restored, StepFailedError)
    assert "cannot be read" in str(restored)
    assert "" == failure_summary(text)[0]


# -- for people ------------------------------------------------------------------------------


def test_the_text_reads_well_in_sql() -> None:
    described = json.loads(describe_failure(chained(), Codec()))
    assert {
        "class": "ValueError",
        "module": "builtins",
        "message": "second",
        "args": ["second"],
    }.items() <= described.items()
    assert "KeyError" == described["cause"]["class"]


def test_the_summary_names_class_and_message() -> None:
    codec = Codec()
    assert ("ValueError", "x") == failure_summary(describe_failure(ValueError("x"), codec))
    inner = failure_summary(describe_failure(Outer.InnerError("x"), codec))
    assert (f"{__name__}.Outer.InnerError", "x") == inner


class Hostile(Exception):  # noqa: N818 (it is not about an error: it is one, at every touch)
    """Raises wherever it is looked at."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise RuntimeError(name)

    __str__ = __repr__ = __bool__ = __eq__ = __hash__ = __len__ = cast(Any, __getattribute__)


def test_an_error_that_raises_at_every_touch_is_stored_and_restored() -> None:
    error = Hostile("a", 1)
    BaseException.__setattr__(error, "__notes__", "not a list")
    described = json.loads(describe_failure(ExceptionGroup("g", [error]), Codec()))["members"][0]
    assert ("Hostile", ["a", 1]) == (described["class"], described["args"])
    assert type(round_trip(error)) is Hostile


def test_a_class_made_to_tell_a_stored_text_is_not_seen_by_the_users_own_code() -> None:
    before = list(Registered.seen)
    restored = round_trip(RegisteredResponseError(types.SimpleNamespace(status=1)))
    assert "status 1" == str(restored)
    assert before == Registered.seen


class Registered:
    seen: ClassVar[list[str]] = []

    def __init_subclass__(cls) -> None:
        cls.seen.append(cls.__name__)


class RegisteredResponseError(ResponseError, Registered):
    pass
