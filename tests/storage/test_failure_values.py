"""What an error carries comes back with its classes, as far as they are imported here."""

from __future__ import annotations

import decimal
import enum
import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import NonRetryableError
from perdure.storage.codec import Codec, TypeHook
from perdure.storage.failure import TRACEBACK_ATTRIBUTE, describe_failure, restore_failure


class Order(msgspec.Struct):
    number: int
    total: decimal.Decimal


class Mood(enum.Enum):
    CALM = "calm"


def round_trip(error: BaseException) -> BaseException:
    return restore_failure(describe_failure(error, Codec()), step="charge", attempt=2)


def test_a_value_whose_class_is_not_imported_is_its_data() -> None:
    text = describe_failure(ValueError(Order(1, decimal.Decimal("2.0"))), Codec()).replace(
        f"{__name__}:", "gone:"
    )
    assert ({"number": 1, "total": "2.0"},) == restore_failure(text, step="s", attempt=1).args


def test_a_value_of_a_class_with_a_hook_comes_back_through_it() -> None:
    hook = TypeHook(
        matches=lambda cls: cls is complex,
        encode=lambda value: [value.real, value.imag],
        decode=lambda cls, data: cls(*data),
    )
    codec = Codec(hooks=[hook])
    text = describe_failure(ValueError(1 + 2j), codec)
    assert (1 + 2j,) == restore_failure(text, step="s", attempt=1, codec=codec).args
    assert "[1.0, 2.0]" == str(restore_failure(text, step="s", attempt=1).args[0])


@pytest.mark.parametrize("value", [True, 1, 2**70, "a", None, [1, [2]], {"a": {"b": 1}}])
def test_plain_values_stand_in_the_text_as_they_are(value: Any) -> None:
    assert [value] == json.loads(describe_failure(ValueError(value), Codec()))["args"]


def test_keys_and_dollar_names_in_a_field_come_back() -> None:
    value = {"$class": "builtins:dict", "a": {1: "x", (2,): {"$repr": 3}}}
    assert (value,) == round_trip(ValueError(value)).args


def test_a_huge_integer_comes_back() -> None:
    assert (10**5000, -(10**5000)) == round_trip(ValueError(10**5000, -(10**5000))).args


def test_an_error_inside_an_error_comes_back_as_an_error() -> None:
    (inner,) = round_trip(RuntimeError(KeyError("a"))).args
    assert isinstance(inner, KeyError)
    assert ("a",) == inner.args


def test_nothing_is_imported_because_a_file_says_so() -> None:
    program = (
        "import sys, types, importlib.util\n"
        "from perdure.storage.failure import restore_failure\n"
        "lazy = types.ModuleType('lazy')\n"
        "lazy.__getattr__ = lambda name: sys.exit('a module was asked to import')\n"
        "sys.modules['lazy'] = lazy\n"
        'value = \'{"$class": "colorsys:Thing", "value": 1}\'\n'
        "for module in ('lazy', 'colorsys'):\n"
        '    text = \'{"class": "E", "module": "%s", "message": "m", "args": [%s]}\' % (module, value)\n'
        "    restore_failure(text, step='s', attempt=1)\n"
        "print('colorsys' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ("False\n", "") == (done.stdout, done.stderr)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.dates()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.sampled_from(Mood)
    | st.builds(Order, number=st.integers(), total=st.decimals(allow_nan=False)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.just("$class"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.lists(VALUES, max_size=3),
    st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), VALUES, max_size=3),
)
def test_arguments_and_fields_survive(args: list[Any], fields: dict[str, Any]) -> None:
    error = NonRetryableError(*args)
    vars(error).update(fields)
    restored = round_trip(error)
    assert type(restored) is NonRetryableError
    assert repr(error.args) == repr(restored.args)
    kept = {name: value for name, value in vars(restored).items() if name != TRACEBACK_ATTRIBUTE}
    assert repr(fields) == repr(kept)
    assert str(error) == str(restored)
