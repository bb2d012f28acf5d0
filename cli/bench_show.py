"""How `perdure bench` looks: the list, one line of progress, and a table of what was found."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Mapping
from typing import Final

import click
from rich.table import Table
from rich.text import Text

from perdure.benchmarks.page import best_peer, settings
from perdure.benchmarks.peers.comparison import HERE
from perdure.benchmarks.results import Measure, Results, figure, percents
from perdure.cli import render

PEERS_WIDTH_MIN: Final = 120
"""A terminal at least this wide has room for the peers in the table; their figures stand below it, too."""


def listing(benchmarks: Mapping[str, str], *, as_json: bool) -> None:
    """Print what there is to run."""
    if as_json:
        render.print_json([{"benchmark": name, "about": about} for name, about in benchmarks.items()])
        return
    table = render.table("benchmark", "what it measures")
    for name, about in benchmarks.items():
        table.add_row(name, about)
    render.console().print(table)
    click.echo(
        "\nperdure bench NAME... runs some, --all every one; --quick takes a few seconds each", err=True
    )


@contextlib.contextmanager
def progress(*, quiet: bool) -> Generator[Callable[[str], object], None, None]:
    """Give what shows a line of progress on stderr: in place on a terminal, line by line elsewhere."""
    console = render.console(sys.stderr)
    began_s = time.monotonic()
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        with console.status("starting") as status:
            yield lambda text: status.update(f"{render.duration(time.monotonic() - began_s)}  {text}")
    else:
        yield lambda text: click.echo(text, err=True)


def show(results: Results) -> None:
    """Print everything as one table, then what explains it."""
    console = render.console()
    console.print(Text(settings(results), style="dim"), soft_wrap=True)
    console.print()
    console.print(_table(results, peers=console.width >= PEERS_WIDTH_MIN))
    for result in results.results:
        if result.error is not None:
            console.print(
                Text(f"{result.benchmark}: not measured: {result.error}", style="red"), soft_wrap=True
            )
    _explain(results)


def _table(results: Results, *, peers: bool) -> Table:
    """Return the table. Where there is little room words are wrapped and peers left out; no figure is cut."""
    names = ["benchmark", "what", "Perdure", "target", "of the bare loop", *(["best peer", "times"] * peers)]
    table = render.table(*names, right=("target", "times"))
    for column in table.columns:
        if column.header in ("what", "best peer"):
            column.no_wrap, column.overflow = False, "fold"
    for result in results.results:
        for number, measure in enumerate(result.measures):
            cells = _cells(measure)
            table.add_row(result.benchmark if number == 0 else "", *(cells if peers else cells[:4]))
    return table


def _cells(measure: Measure) -> list[Text | str]:
    if measure.value is None:
        why = Text.assemble(f"{measure.what}: ", (measure.missing or "not measured", "dim"))
        return [why, "-", "", "", "", ""]
    mark = {None: ("", ""), True: (" ✓", "green"), False: (" ✗", "red")}[measure.reached]
    sign = "≤" if measure.better == "less" else "≥"
    share = "" if measure.share is None else percents(measure.share)
    peer = best_peer(measure)
    return [
        measure.what,
        Text.assemble(f"{figure(measure.value)} {measure.unit}", mark),
        "" if measure.target is None else f"{sign} {figure(measure.target)}",
        share if measure.share_target is None else f"{share} (≥ {percents(measure.share_target)})",
        "" if peer is None else f"{peer.peer}, {peer.source}: {figure(peer.value)}",
        "" if peer is None or (times := measure.times(peer)) is None else figure(times),
    ]


def _explain(results: Results) -> None:
    console = render.console()
    for result in results.results:
        lines = [
            f"{measure.what}: "
            + ", ".join(f"{figure(value)} {name}" for name, value in measure.figures.items())
            for measure in result.measures
            if measure.figures
        ]
        lines += result.notes
        lines += [
            f"{measure.what}: {peer.peer}, {peer.source}: {figure(peer.value)} {measure.unit}"
            for measure in result.measures
            for peer in measure.peers
            if peer.source == HERE and peer.value is not None
        ]
        missing = {
            f"{peer.peer}: {peer.missing}" for each in result.measures for peer in each.peers if peer.missing
        }
        lines += sorted(missing)
        checksum = f", checksum {result.checksum}" if result.checksum else ""
        console.print()
        console.print(
            Text(f"{result.benchmark}", style="bold")
            + Text(f"  {result.rounds} rounds{checksum}", style="dim")
        )
        for line in lines:
            console.print(Text(f"  {line}"), soft_wrap=True)
