"""`perdure bench`: the benchmarks, on the user's own machine and disk.

Progress goes to stderr, results to stdout. Without a name it lists what there is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from perdure import InvalidArgumentError
from perdure.benchmarks import page, plot, suite
from perdure.benchmarks.peers.comparison import Peers, adapters
from perdure.benchmarks.results import Results, Size
from perdure.cli import bench_show, exits, options

PEER_ROUNDS_MAX: Final = 3
"""A peer is measured this often at most: its figures are of another order, and it takes its time."""


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="Run every benchmark.")
@click.option("--quick", "size", flag_value="quick", help="Smaller sizes and fewer rounds: rougher figures.")
@click.option("--tiny", "size", flag_value="tiny", help="Only to see that they run.")
@click.option("--rounds", type=click.IntRange(min=1), help="How often each variant is measured.")
@click.option("--workers", type=click.IntRange(min=2), default=2, show_default=True, help="For `short`.")
@click.option(
    "--folder", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="Measure the disk that holds this folder. Default: the one for temporary files.",
)  # fmt: skip
@click.option("--peers/--no-peers", default=True, show_default=True, help="Measure the peers installed, too.")
@click.option(
    "--peer-python", default=sys.executable, metavar="PYTHON",
    help="The interpreter of the environment that has the peers. Default: this one.",
)  # fmt: skip
@click.option(
    "--from", "source", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="Show what --json has written before, instead of measuring.",
)  # fmt: skip
@options.json_option
@click.option("--markdown", is_flag=True, help="Print the tables of docs/benchmarks.md.")
@click.option(
    "--page", "page_file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="Put these tables between the marks of a Markdown page.",
)  # fmt: skip
@click.option(
    "--plot", "image", type=click.Path(path_type=Path), metavar="FILE", help="Draw FILE.svg or FILE.png."
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
@exits.traceback_option
def bench(
    *, names: tuple[str, ...], every: bool, size: Size | None, rounds: int | None, workers: int,
    folder: Path | None, peers: bool, peer_python: str, source: Path | None, as_json: bool, markdown: bool,
    page_file: Path | None, image: Path | None, quiet: bool,
) -> int:  # fmt: skip
    """Measure Perdure on this machine, beside bare sqlite3 and peers.

    A bare `sqlite3` loop writes the same rows; peers are measured where they are installed.

    Each benchmark says what it measures against: its target, a bare loop that writes the same rows with the
    same durability in the same rounds, and what other systems do. Without a NAME they are listed.

    \b
    perdure bench chain short --quick
    perdure bench --all --json > results.json
    perdure bench --from results.json --plot results.svg
    """
    if image is not None:
        plot.check(image)
    if source is not None:
        results = _read(source, names)
    else:
        chosen = _chosen(names, every=every)
        if not chosen:
            bench_show.listing(suite.BENCHMARKS, as_json=as_json)
            return exits.OK
        options_ = suite.Options(size=size or "full", rounds=rounds, folder=folder, workers=workers)
        beside = _peers(peer_python if peers else None, options_)
        with bench_show.progress(quiet=quiet) as say:
            results = suite.run(chosen, options_, beside, say)
    if page_file is not None:
        page_file.write_text(page.inserted(page_file.read_text("utf-8"), results), "utf-8")
    if image is not None:
        plot.draw(results, image)
    _print(results, as_json=as_json, markdown=markdown)
    return exits.FAILED if any(result.error for result in results.results) else exits.OK


def _chosen(names: Sequence[str], *, every: bool) -> list[str]:
    unknown = [name for name in names if name not in suite.BENCHMARKS]
    if unknown:
        raise InvalidArgumentError(
            f"there is no benchmark {unknown[0]!r}; there are: {', '.join(suite.BENCHMARKS)}"
        )
    return list(suite.BENCHMARKS) if every else list(dict.fromkeys(names))


def _peers(python: str | None, options_: suite.Options) -> Peers:
    found = [] if python is None else adapters(python)
    return Peers(found, options_.size, min(options_.rounds or PEER_ROUNDS_MAX, PEER_ROUNDS_MAX))


def _read(source: Path, names: Sequence[str]) -> Results:
    try:
        results = suite.read(source)
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidArgumentError(f"{source} is not what `perdure bench --json` writes: {error}") from error
    kept = [result for result in results.results if not names or result.benchmark in names]
    return msgspec.structs.replace(results, results=kept)


def _print(results: Results, *, as_json: bool, markdown: bool) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(results), indent=1).decode())
    elif markdown:
        click.echo(page.tables(results))
    else:
        bench_show.show(results)
