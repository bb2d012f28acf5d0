"""Results as Markdown: the tables of docs/benchmarks.md, and the words that tables share.

`perdure bench --all --markdown` prints what stands there between the marks; `--page` puts it there.

Invariants:
    The same results make the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from perdure.benchmarks.results import Measure, PeerFigure, Result, Results, figure, percents
from perdure.errors import InvalidArgumentError

BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"


def settings(results: Results) -> str:
    """Return in one line what the figures depend on."""
    told = ", ".join(f"{key} {value}" for key, value in results.environment.items())
    return f"{told}; size {results.size}; medians"


def best_peer(measure: Measure) -> PeerFigure | None:
    """Return the peer that does best. A figure on record gives way to the same peer's measured here.

    >>> slow, fast = (PeerFigure(peer=str(value), value=value, source="s") for value in (1.0, 2.0))
    >>> best_peer(Measure(key="k", what="w", unit="steps/s", value=3.0, peers=[slow, fast])).peer
    '2.0'
    """
    known = [(peer.value, peer) for peer in newest(measure) if peer.value is not None]
    if not known:
        return None
    found = (
        min(known, key=lambda each: each[0])
        if measure.better == "less"
        else max(known, key=lambda each: each[0])
    )
    return found[1]


def newest(measure: Measure) -> list[PeerFigure]:
    """Return one figure of each peer that has any: the first that is known."""
    found: dict[str, PeerFigure] = {}
    for peer in measure.peers:
        if peer.value is not None:
            found.setdefault(peer.peer, peer)
    return list(found.values())


def inserted(text: str, results: Results) -> str:
    """Return a page with its tables replaced. Raises `InvalidArgumentError` for one without marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise InvalidArgumentError(f"the page has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{tables(results)}\n\n{end}{after}"


def tables(results: Results) -> str:
    """Return all tables: measured and target, then what explains them, then the peers."""
    return "\n\n".join(
        [
            f"Measured with {settings(results)} of the rounds. ✓ reaches its target, ✗ does not.",
            _main_table(results),
            "### What explains them",
            _figures(results),
            "### The peers",
            _peers_table(results),
        ]
    )


def _main_table(results: Results) -> str:
    rows = [_row(result, measure) for result in results.results for measure in result.measures]
    rows += [
        [f"`{result.benchmark}`", "", f"not measured: {result.error}", "", "", "", ""]
        for result in results.results
        if result.error
    ]
    head = ["benchmark", "what", "Perdure", "target", "", "of the bare loop", "its target"]
    return table(head, rows)


def _row(result: Result, measure: Measure) -> list[str]:
    sign = "≤" if measure.better == "less" else "≥"
    measured = (
        f"{figure(measure.value)} {measure.unit}"
        if measure.value is not None
        else f"not measured: {measure.missing}"
    )
    return [
        f"`{result.benchmark}`",
        measure.what,
        measured,
        "" if measure.target is None else f"{sign} {figure(measure.target)}",
        {None: "", True: "✓", False: "✗"}[measure.reached],
        "" if measure.share is None else percents(measure.share),
        "" if measure.share_target is None else f"≥ {percents(measure.share_target)}",
    ]


def _figures(results: Results) -> str:
    rows = [
        [
            f"`{result.benchmark}`",
            measure.what,
            ", ".join(f"{figure(value)} {name}" for name, value in measure.figures.items()),
        ]
        for result in results.results
        for measure in result.measures
        if measure.figures
    ]
    rows += [[f"`{result.benchmark}`", "", note] for result in results.results for note in result.notes]
    return table(["benchmark", "what", "figures"], rows)


def _peers_table(results: Results) -> str:
    measures = [
        (result.benchmark, measure)
        for result in results.results
        for measure in result.measures
        if measure.peers
    ]
    rows = [
        [
            f"`{benchmark}`",
            measure.what,
            f"{figure(measure.value)} {measure.unit}",
            "; ".join(_peer(measure, peer) for peer in measure.peers),
        ]
        for benchmark, measure in measures
    ]
    return table(["benchmark", "what", "Perdure", "peers"], rows)


def _peer(measure: Measure, peer: PeerFigure) -> str:
    if peer.value is None:
        return f"{peer.peer}: {peer.missing}"
    times = measure.times(peer)
    compared = "" if times is None else f", {figure(times)} times as good"
    return f"{peer.peer} {figure(peer.value)} ({peer.source}{compared})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
