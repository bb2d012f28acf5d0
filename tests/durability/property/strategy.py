"""How programs are generated: small first, so that what fails shrinks to a few readable lines.

Invariants:
    A program comes to one end only, whatever the order in which trio runs its tasks.
    Children wait for no event: nobody could send them one before they exist.
"""

from __future__ import annotations

import functools

from hypothesis import strategies as st

from property import tree
from property.tree import AnyNode, Block, Do, Program

DEPTH_MAX = 3
Nodes = st.SearchStrategy[AnyNode]
Blocks = st.SearchStrategy[Block]

undos = st.sampled_from([None, None, "ok", "flaky"])
steps = st.builds(Do, fails=st.integers(0, 2), plain=st.booleans(), undo=undos)
doomed = st.builds(Do, ending=st.sampled_from(["final", "exhausted"]), undo=undos)
stuck = st.builds(Do, undo=st.just("stuck"))
large = st.builds(Do, large=st.just(True), fails=st.integers(0, 1))
waits = st.builds(tree.Wait, picky=st.booleans())


def programs() -> st.SearchStrategy[Program]:
    """Programs for an instance that is nobody's child."""
    generations = st.lists(blocks(DEPTH_MAX, child=False), min_size=1, max_size=2).map(tuple)
    return st.builds(Program, generations, number=st.integers(0, 5))


@functools.cache
def blocks(depth: int, *, child: bool) -> Blocks:
    """Sequences of nodes."""
    return st.lists(nodes(depth, child=child), min_size=1, max_size=4 if depth == DEPTH_MAX else 3).map(tuple)


@functools.cache
def nodes(depth: int, *, child: bool) -> Nodes:
    """Single nodes, with at most `depth` blocks around each other in them."""
    simple: list[Nodes] = [
        steps,
        steps,
        st.builds(tree.Sleep, ms=st.integers(1, 4)),
        st.builds(tree.Chance),
        st.builds(tree.Write),
        *([] if child else [waits, waits]),
        gathers(),
        st.builds(tree.Map, st.integers(1, 4), fails=st.integers(0, 1), limit=st.sampled_from([None, 1, 2])),
        races(child=child, alone=depth == DEPTH_MAX),
        st.builds(tree.Deadline, st.booleans()),
        st.one_of(doomed, stuck, large, st.builds(tree.Missing), st.builds(tree.Raise)),
    ]
    if depth == 0:
        return st.one_of(simple)
    return st.one_of(*simple, *nested(depth - 1, child=child))


def nested(depth: int, *, child: bool) -> list[Nodes]:
    """Nodes that hold blocks."""
    inner = blocks(depth, child=child)
    young = blocks(depth, child=True)
    return [
        st.builds(tree.If, inner, inner),
        st.builds(tree.Loop, inner, st.integers(1, 3), st.booleans()),
        st.builds(tree.Try, inner),
        st.builds(tree.Par, st.lists(inner, min_size=2, max_size=3).map(tuple)),
        st.builds(tree.Child, young),
        st.builds(
            tree.Brood, st.lists(young, min_size=1, max_size=3).map(tuple), st.sampled_from([None, 1, 2])
        ),
        st.builds(tree.Try, inner.map(lambda block: (*block, Do(ending="final", undo="ok")))),
    ]


def gathers() -> Nodes:
    """Parallel steps, of which some may fail for good."""
    part = st.one_of(steps, steps, doomed)
    return st.builds(tree.Gather, st.lists(part, min_size=1, max_size=3).map(tuple))


def races(*, child: bool, alone: bool) -> Nodes:
    """Races that one part alone can win; only one that is `alone` has a part that works for ever.

    With `replay="always"` what a branch beside it records keeps the rival of that part from starting.
    """
    quiet = st.lists(st.sampled_from(["sleep", "event"]), min_size=1, max_size=2).map(tuple)
    losers = ["sleep", "event", "slow"] if alone else ["sleep", "event"]
    busy = st.lists(st.sampled_from(losers), min_size=1, max_size=2).map(tuple)
    winners = ["do"] if child else ["do", "event"]
    return st.one_of(
        # Beside one that works for ever the virtual clock stands still, so nobody may have to wait.
        st.builds(tree.Race, st.sampled_from(winners), busy),
        st.builds(tree.Race, st.just("do"), quiet, st.integers(1, 2)),
        st.builds(tree.Race, st.just("sleep"), quiet),
    )
