"""What a generated program is made of, and how it reads.

A program computes one number. Each node folds what it finds into it, and branches and loops go by it.
A node's name is its place in the program, so that the runtime and the expectation agree on names.
"""

from __future__ import annotations

import textwrap
import zlib
from typing import Literal, cast

import msgspec

MODULUS = 1_000_003
PIECES = 70_000
"""Characters of a large result: more than stands in a step's row."""

Undo = Literal["ok", "flaky", "stuck"]
Ending = Literal["fine", "final", "exhausted"]


class Node(msgspec.Struct, frozen=True, tag=True):
    """One thing that a program does."""


Block = tuple["AnyNode", ...]


class Do(Node, frozen=True):
    """A step that fails `fails` times first; in the end it succeeds, or fails for good."""

    fails: int = 0
    ending: Ending = "fine"
    plain: bool = False
    large: bool = False
    undo: Undo | None = None


class Sleep(Node, frozen=True):
    """A sleep of some milliseconds."""

    ms: int = 1


class Wait(Node, frozen=True):
    """A wait for an event that somebody sends; `picky` ones take by predicate what is meant for them."""

    picky: bool = False


class Missing(Node, frozen=True):
    """A wait for an event that nobody sends: it times out."""


class Chance(Node, frozen=True):
    """A random number, and a step that is given it: a replay must give it the same."""


class Write(Node, frozen=True):
    """A transaction that writes a row of the instance's own."""


class Raise(Node, frozen=True):
    """An error raised by `run()` itself."""


class If(Node, frozen=True):
    """One of two blocks, by the number."""

    then: Block
    otherwise: Block


class Loop(Node, frozen=True):
    """A block, from no time to `most` times, by the number; `named` rounds give steps names of their own."""

    body: Block
    most: int
    named: bool = False


class Try(Node, frozen=True):
    """A block whose failure is caught."""

    body: Block


class Par(Node, frozen=True):
    """Blocks that run at the same time, in a nursery; the failure of each is caught."""

    branches: tuple[Block, ...]


class Gather(Node, frozen=True):
    """`step.gather` of steps."""

    parts: tuple[Do, ...]


class Map(Node, frozen=True):
    """`step.map` over some items; the steps fail some times first."""

    items: int
    fails: int = 0
    limit: int | None = None


class Race(Node, frozen=True):
    """`step.race`, with one part that can win and others that never end."""

    winner: Literal["do", "sleep", "event"]
    losers: tuple[Literal["sleep", "event", "slow"], ...]
    fails: int = 0


class Deadline(Node, frozen=True):
    """`step.move_on_after`, around what never ends or around a step that does."""

    strikes: bool


class Child(Node, frozen=True):
    """`step.child` of a program."""

    body: Block


class Brood(Node, frozen=True):
    """`step.children` of programs."""

    bodies: tuple[Block, ...]
    limit: int | None = None


AnyNode = (
    Do | Sleep | Wait | Missing | Chance | Write | Raise | If | Loop | Try | Par | Gather | Map | Race
    | Deadline | Child | Brood
)  # fmt: skip

Parts = Block | tuple[Block, ...]
"""What a field of a node holds that has others inside it."""


class Program(msgspec.Struct, frozen=True):
    """What one instance does: a block for each generation, each but the last ends by `continue_as_new`."""

    generations: tuple[Block, ...]
    number: int = 0
    generation: int = 0
    shared: bool = False
    """Whether it is a child."""


def fold(number: int, found: int) -> int:
    """Return the number after something was found."""
    return (number * 31 + found) % MODULUS


def digest(text: str) -> int:
    """Return the number that stands for a text."""
    return zlib.crc32(text.encode())


def meant(name: str, count: int) -> int:
    """Return the payload of the event that a wait must get."""
    return digest(f"{name}#{count}")


def show(program: Program) -> str:
    """Return a program as people read it."""
    lines = [f"number = {program.number}"]
    for index, block in enumerate(program.generations):
        lines += [f"generation {index}:", _indented(_block(block, f"g{index}"))]
    return "\n".join(lines)


def _indented(text: str) -> str:
    return textwrap.indent(text, "  ")


def _block(block: Block, path: str) -> str:
    return "\n".join(_node(node, f"{path}.{index}") for index, node in enumerate(block)) or "nothing"


def _node(node: AnyNode, path: str) -> str:
    options: list[str] = []
    inside: list[tuple[str, Parts]] = []
    for field in node.__struct_fields__:
        value: Parts | tuple[str, ...] | str | int | None = getattr(node, field)
        if isinstance(value, tuple) and not all(isinstance(each, str) for each in value):
            inside.append((field, cast("Parts", value)))
        elif value not in (None, False, 0, "fine"):
            options.append(field if value is True else f"{field}={value}")
    text = " ".join([path, type(node).__name__.lower(), *options])
    for field, value in inside:
        text += "\n" + _indented(f"{field}:\n" + _indented(_parts(field, value, path)))
    return text


def _parts(field: str, value: Parts, path: str) -> str:
    if all(isinstance(each, tuple) for each in value):
        blocks = [each for each in value if isinstance(each, tuple)]
        return "\n--\n".join(_block(each, f"{path}.{index}") for index, each in enumerate(blocks)) or "none"
    nodes = tuple(each for each in value if not isinstance(each, tuple))
    return _block(nodes, path if field in {"parts", "body"} else f"{path}.{field}")
