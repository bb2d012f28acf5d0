"""Any arguments can be described, and the same ones have the same digest everywhere."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from typing import Any

import msgspec

from perdure.storage.codec import Codec


class Order(msgspec.Struct):
    items: list[int]


@dataclasses.dataclass
class Box:
    content: Any


class Opaque:
    def __repr__(self) -> str:
        raise AssertionError("a repr of the user's was called")


def test_no_arguments_are_an_empty_list() -> None:
    text, digest = Codec().describe_input((), bytes_max=100)
    assert digest is not None
    assert ("[]", 32) == (text, len(digest))


def test_what_cannot_be_encoded_stands_as_its_type() -> None:
    opaque = f'{{"$type":"{__name__}.Opaque"}}'
    text, _ = Codec().describe_input((1, Opaque(), {"a": Opaque()}, Order(items=[])), bytes_max=999)
    assert f'[1,{opaque},{{"a":{opaque}}},{{"items":[]}}]' == text


def test_describing_never_fails() -> None:
    class Hostile:
        __slots__ = ()

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("hostile")

        def __hash__(self) -> int:
            return 1

    loop: list[Any] = [1]
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    args = (
        Hostile(),
        {Hostile(): 1, 2: 3},
        loop,
        deep,
        "\ud800",
        10**5000,
        {1, "a", (2,)},
        math.nan,
        Box(loop),
    )
    text, digest = Codec().describe_input(args, bytes_max=10**6)
    assert text is not None
    assert (text, digest) == Codec().describe_input(args, bytes_max=10**6)
    described = json.loads(text)
    assert [1, {"$type": "list"}] == described[2]
    assert ["\\ud800", {"$type": "int"}] == described[4:6]
    assert {"content": [1, {"$type": "list"}]} == described[8]


def test_a_text_beyond_the_bound_is_left_out_and_its_digest_kept() -> None:
    codec = Codec()
    assert None is codec.describe_input(("x" * 100,), bytes_max=100)[0]
    assert (
        codec.describe_input(("x" * 100,), bytes_max=100)[1]
        == codec.describe_input(("x" * 100,), bytes_max=999)[1]
    )


def test_a_changed_argument_changes_the_digest() -> None:
    codec = Codec()
    items = [1]
    before = codec.describe_input((items,), bytes_max=100)
    items.append(2)
    assert before != codec.describe_input((items,), bytes_max=100)


def test_a_digest_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from perdure.storage.codec import Codec\n"
        "args = ({'a', 'b', 'c', 'd'}, {1, 'a', None}, {'k': {'x', 'y', 'z'}, 2: 3})\n"
        "print(Codec().describe_input(args, bytes_max=1000))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert 1 == len(seen)


def test_a_short_text_stands_for_itself_and_has_no_digest() -> None:
    codec = Codec()
    assert ('["low"]', None) == codec.describe_input(("low",), bytes_max=100, digest_above=7)
    text, digest = codec.describe_input(("lower",), bytes_max=100, digest_above=7)
    assert ('["lower"]', 32) == (text, len(digest or ""))
