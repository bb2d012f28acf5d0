"""Where the microseconds of a step go: a chain of steps, sampled, as a table and as a flame graph.

A timer interrupts the loop's thread every half a millisecond and the Python stack of that moment is
counted. What C code takes (SQLite, the codec) is counted for the Python function that called it,
because an interrupt is taken up where a call returns. A sample costs some ten microseconds, so
shares are right to a percent or so; the time of a step is measured in a run of its own, unsampled.

    python benchmarks/profile_step.py [--steps N] [--rounds N] [--replay] [--durability full] [--svg FILE]

Invariants:
    Shares add up to the whole: every sample is counted once, at its innermost frame.
    The pictures are drawn here, with nothing but text; a frame's width is its share of the samples.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import html
import signal
import statistics
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal

import trio

import perdure
from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep

Stack = tuple[str, ...]
INTERVAL_S: Final = 0.0005
TEXT: Final = "x" * 100
ROWS_SHOWN: Final = 32
WIDTH: Final = 1_200
ROW_HEIGHT: Final = 17
NARROWEST: Final = 0.4
CHAR_WIDTH: Final = 6.2
COLOURS: Final = {
    "storage": "#7fb069",
    "actors": "#e6aa68",
    "engine": "#c98bb9",
    "trio": "#8fb8de",
    "": "#c8c8c8",
}
"""A floor's frames have one colour; whatever else runs is grey."""


class Sampler:
    """Counts stacks while `on`. One per process, for signals belong to the process."""

    def __init__(self) -> None:
        self.stacks: collections.Counter[Stack] = collections.Counter()

    def _take(self, _signal: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None and frame.f_code.co_name != "unrolled_run":
            stack.append(label(frame))
            frame = frame.f_back
        stack.append("trio: the scheduler")
        self.stacks[tuple(reversed(stack))] += 1

    @contextlib.contextmanager
    def on(self) -> Generator[None]:
        """Sample what is done inside."""
        before = signal.signal(signal.SIGALRM, self._take)
        wakeup = signal.set_wakeup_fd(-1)  # or each sample would wake a task of trio's
        signal.setitimer(signal.ITIMER_REAL, INTERVAL_S, INTERVAL_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGALRM, before)


def label(frame: FrameType) -> str:
    """Return what a frame is called: its floor, file and function."""
    parts = frame.f_globals.get("__name__", "?").split(".")
    name = frame.f_code.co_qualname.replace(".<locals>", "")
    if parts[0] == "perdure" and len(parts) > 2:
        return f"{parts[1]}/{parts[-1]}: {name}"
    return f"{parts[0]}: {name}"


class Watch:
    """The workflow's `env`: times a stretch of it, sampled where there is a sampler."""

    def __init__(self, sampler: Sampler | None) -> None:
        self.seconds = 0.0
        self.taken = trio.Event()
        self._sampler = sampler

    @contextlib.contextmanager
    def stretch(self) -> Generator[None]:
        """Measure what is done inside."""
        with self._sampler.on() if self._sampler else contextlib.nullcontext():
            began_s = time.perf_counter()
            yield
            self.seconds = time.perf_counter() - began_s
        self.taken.set()


async def small_value(number: int) -> dict[str, int | str]:
    """Return what a step of ordinary size returns."""
    return {"i": number, "text": TEXT}


class Profiled(WorkflowEntrypoint[Watch]):
    """A chain of as many steps as its params say, and then a wait, so that it can be replayed."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> None:
        """Run the chain, or replay it."""
        with self.env.stretch():
            for number in range(event.payload):
                await step.do(f"step {number}", small_value, number)
        await step.wait_for_event("the end", type="end", timeout="1 day")


async def stretch_s(
    folder: Path, steps: int, sampler: Sampler | None, durability: Literal["full", "process"]
) -> float:
    """Run the chain in a new folder, or replay the one that is there; return the seconds it took."""
    watch = Watch(sampler)
    async with perdure.open_runtime(
        folder, workflows=[Profiled], durability=durability, env=watch
    ) as runtime:
        if not await runtime.list(Profiled):
            await runtime.create(Profiled, params=steps, id="chain")
        await watch.taken.wait()
    return watch.seconds


def measure(root: Path, options: Any) -> tuple[float, collections.Counter[Stack]]:
    """Return the seconds of one step, unsampled, and the stacks of as many sampled rounds."""
    sampler = Sampler()
    took: list[float] = []
    for number in range(options.rounds):
        for sampled in (None, sampler):
            folder = root / f"{number} {sampled is None}"
            if options.replay:
                trio.run(stretch_s, folder, options.steps, None, options.durability)
            seconds = trio.run(stretch_s, folder, options.steps, sampled, options.durability)
            if sampled is None:
                took.append(seconds / options.steps)
    return statistics.median(took), sampler.stacks


# -- the table and the picture -----------------------------------------------------------------


def table(step_s: float, stacks: collections.Counter[Stack]) -> str:
    """Return the floors, and the functions that take most by themselves, in microseconds of a step."""
    alone: collections.Counter[str] = collections.Counter()
    for stack, count in stacks.items():
        alone[stack[-1]] += count
    whole = stacks.total()
    floors: collections.Counter[str] = collections.Counter()
    for name, count in alone.items():
        floors[floor_of(name) or "whatever else runs, the user's code included"] += count
    lines: list[str] = []
    for title, counts in (("floor", floors), ("function, without what it calls in Python", alone)):
        lines.append(f"{'µs per step':>11}  {'share':>6}  {title}")
        lines += [
            f"{step_s * 1e6 * count / whole:11.2f}  {count / whole:6.1%}  {name}"
            for name, count in counts.most_common(ROWS_SHOWN)
        ]
        lines.append("")
    return "\n".join(lines[:-1])


def floor_of(name: str) -> str:
    """Return the floor that a frame's label belongs to; empty for what is on none."""
    return next(floor for floor in COLOURS if name.startswith(floor))


class Node:
    """A frame of the flame graph: its samples, and the frames above it."""

    def __init__(self) -> None:
        self.count = 0
        self.above: dict[str, Node] = {}


def tree(stacks: collections.Counter[Stack]) -> Node:
    """Return the stacks as one tree."""
    root = Node()
    for stack, count in stacks.items():
        at = root
        at.count += count
        for name in stack:
            at = at.above.setdefault(name, Node())
            at.count += count
    return root


def depth(node: Node) -> int:
    """Return how many frames stand above one another."""
    return 1 + max(map(depth, node.above.values()), default=0)


def flame(title: str, step_s: float, root: Node) -> str:
    """Return the flame graph as SVG; a frame's title says its share in microseconds of a step."""
    height = (depth(root) + 2) * ROW_HEIGHT
    scale = WIDTH / root.count
    shapes: list[str] = []

    def draw(node: Node, left: float, level: int) -> None:
        for name, child in sorted(node.above.items()):
            width = child.count * scale
            if width >= NARROWEST:
                us = step_s * 1e6 * child.count / root.count
                shapes.append(_shape(name, us, left, height - level * ROW_HEIGHT, width))
                draw(child, left, level + 1)
            left += width

    draw(root, 0.0, 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="#ffffff"/><text x="6" y="14">{html.escape(title)}</text>'
        + "".join(shapes)
        + "</svg>\n"
    )


def _shape(name: str, us: float, left: float, top: float, width: float) -> str:
    colour = COLOURS[floor_of(name)]
    shown = name if len(name) * CHAR_WIDTH < width else name[: max(0, int(width / CHAR_WIDTH) - 1)]
    text = (
        f'<text x="{left + 2:.1f}" y="{top + 12:.1f}">{html.escape(shown)}</text>' if len(shown) > 2 else ""
    )
    return (
        f"<g><title>{html.escape(name)}: {us:.2f} µs</title>"
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{ROW_HEIGHT - 1}" fill="{colour}"/>'
        f"{text}</g>"
    )


def main() -> None:
    """Measure, print the table, and write the picture where one is wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5_000, help="length of the chain")
    parser.add_argument("--rounds", type=int, default=5, help="how many chains are run and sampled")
    parser.add_argument("--replay", action="store_true", help="profile the replay of recorded steps instead")
    parser.add_argument("--durability", choices=("process", "full"), default="process")
    parser.add_argument("--svg", type=Path, help="write a flame graph to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="perdure-profile-") as root:
        step_s, stacks = measure(Path(root), options)
    what = "a recorded step, replayed" if options.replay else f"a step, durability={options.durability!r}"
    title = f"{what}: {step_s * 1e6:.1f} µs; {stacks.total():,} samples of chains of {options.steps:,}"
    print(f"{title}\n\n{table(step_s, stacks)}")
    if options.svg is not None:
        options.svg.write_text(flame(title, step_s, tree(stacks)), "utf-8")


if __name__ == "__main__":
    main()
