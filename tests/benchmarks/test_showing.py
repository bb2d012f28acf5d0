"""Results as Markdown and as pictures."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from perdure import InvalidArgumentError
from perdure.benchmarks import page, plot, suite
from perdure.benchmarks.results import Measure, PeerFigure, Result, Results

CHAIN = Measure(
    key="chain/full",
    what="a <chain>",
    unit="steps/s",
    value=5_000.0,
    target=10_000.0,
    share=0.9,
    share_target=0.6,
    figures={"µs per step": 200.0},
    peers=[
        PeerFigure(peer="A", value=1_000.0, source="measured here"),
        PeerFigure(peer="A", value=9_000.0, source="recorded"),
        PeerFigure(peer="B", value=None, source="measured here", missing="not installed: pip install b"),
    ],
)
LATENCY = Measure(
    key="latency", what="latency", unit="ms", value=0.5, better="less", target=1.0,
    peers=[PeerFigure(peer="A", value=2.0, source="recorded")],
)  # fmt: skip
MISSING = Measure(key="w", what="workers", unit="times", value=None, target=1.7, missing="one worker only")
RESULT = Result(
    benchmark="chain", about="", rounds=3, seconds=1.0, checksum="c", measures=[CHAIN, LATENCY, MISSING]
)
FAILED = Result(
    benchmark="large", about="", rounds=3, seconds=1.0, checksum=None, measures=[], error="no room"
)
RESULTS = Results(size="quick", environment={"processors": 2}, results=[RESULT, FAILED])


def test_a_row_has_measured_target_and_share() -> None:
    text = page.tables(RESULTS)

    assert "| `chain` | a <chain> | 5,000 steps/s | ≥ 10,000 | ✗ | 90 % | ≥ 60 % |" in text
    assert "| `chain` | latency | 0.50 ms | ≤ 1.00 | ✓ |  |  |" in text
    assert "| `chain` | a <chain> | 200 µs per step |" in text


def test_what_was_not_measured_says_why() -> None:
    text = page.tables(RESULTS)

    assert "not measured: one worker only" in text
    assert "| `large` |  | not measured: no room |" in text
    assert "B: not installed: pip install b" in text


def test_a_peer_stands_with_its_source_and_how_it_compares() -> None:
    text = page.tables(RESULTS)

    assert "A 1,000 (measured here, 5.00 times as good)" in text
    assert "A 2.00 (recorded, 4.00 times as good)" in text


def test_a_peer_measured_here_stands_for_its_figure_on_record() -> None:
    best = page.best_peer(CHAIN)

    assert best is not None
    assert 1_000.0 == best.value


def test_an_svg_is_drawn_with_a_bar_for_each_target(tmp_path: Path) -> None:
    file = tmp_path / "results.svg"
    plot.draw(RESULTS, file)
    shapes = ET.parse(file).getroot()  # noqa: S314 - our own file
    texts = [element.text or "" for element in shapes.iter() if element.tag.endswith("text")]

    assert ["0.50 of the target", "1.50 of the target", "2.00 of the target"] == [
        text for text in texts if text.endswith("of the target")
    ]
    assert "chain  a <chain>: 5,000 steps/s" in texts


def test_a_png_is_drawn_where_pillow_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    file = tmp_path / "results.png"
    plot.draw(RESULTS, file)

    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["results.pdf", "results", "no folder/results.svg"])
def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="--plot"):
        plot.check(tmp_path / name)


def test_tables_are_put_between_the_marks_of_a_page() -> None:
    before, after = "# Page\n" + page.BEGIN, page.END + "\nthe end\n"
    once = page.inserted(before + after, RESULTS)

    assert once.startswith(before)
    assert once.endswith(after)
    assert page.tables(RESULTS) in once
    assert once == page.inserted(once, RESULTS)


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="no lines"):
        page.inserted("# Page", RESULTS)


@pytest.mark.checkout
def test_the_tables_of_the_documentation_are_those_of_the_results_beside_it() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    results = suite.read(docs / "benchmarks.json")
    text = (docs / "benchmarks.md").read_text("utf-8")

    assert page.inserted(text, results) == text
    assert plot.svg(plot.picture(results)) == (docs / "images" / "benchmarks.svg").read_text("utf-8")


@pytest.mark.checkout
def test_the_documentation_tells_of_every_benchmark() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md").read_text("utf-8")

    assert [] == [name for name in suite.BENCHMARKS if f"| `{name}` | " not in text]
