"""`perdure sql`: read-only SQL over one instance, over the catalog, or over all of a workflow."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import trio
from rich.console import Console
from rich.text import Text

from perdure import InvalidArgumentError
from perdure.cli import exits, options, render
from perdure.engine.remote import open_remote

CELL_CHARS_MAX: Final = 60
WIDTHS_MAX: Final = 1.5
"""A table wider than so many terminals shows too little of each column."""


class Answer(NamedTuple):
    """Rows, the names of their columns, and a line for each file that gave no answer."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    failures: Sequence[str]


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[INSTANCE] QUERY")
@click.option("--catalog", is_flag=True, help="Ask the catalog: its view is `instances`.")
@click.option(
    "--all", "workflow", metavar="WORKFLOW", help="Ask every instance of this workflow, and unite the rows."
)
@options.state_option
@options.json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=30.0,
              show_default=True, metavar="SECONDS", help="When a query is interrupted.")  # fmt: skip
@options.reveal_option
def sql(
    *, words: tuple[str, ...], catalog: bool, workflow: str | None, state: Path, as_json: bool, as_csv: bool,
    timeout_s: float, reveal: bool,
) -> None:  # fmt: skip
    """Ask instances with SQL. Only one statement that reads is run.

    The views of an instance are `instance`, `steps`, `attempts`, `events`, `streams` and `history`;
    your own tables are there too. QUERY may be @FILE, or - for stdin.

    \b
    perdure sql Hello/1f0c 'SELECT name, status, duration_ms FROM steps'
    perdure sql 1f0c "SELECT output ->> '$.title' AS title FROM instance"
    perdure sql --catalog 'SELECT workflow, status, count(*) FROM instances GROUP BY 1, 2'
    perdure sql --all Hello 'SELECT max(duration_ms) AS slowest FROM steps' --csv
    perdure sql 1f0c 'SELECT name, output FROM steps WHERE sensitive' --reveal
    """
    if as_json and as_csv:
        raise InvalidArgumentError("--json and --csv exclude each other")
    instance, query = _words(words, catalog=catalog, workflow=workflow)
    query = options.read_text(query, "QUERY")
    answer = trio.run(partial(_ask, state, instance, workflow, query, timeout_s=timeout_s, reveal=reveal))
    _show(answer, as_json=as_json, as_csv=as_csv)
    for failure in answer.failures:
        click.echo(f"perdure: {exits.one_line(failure)}", err=True)
    if answer.failures:
        raise SystemExit(exits.QUERY)


def _words(words: Sequence[str], *, catalog: bool, workflow: str | None) -> tuple[str | None, str]:
    """Return the instance, where one is named, and the query."""
    if catalog and workflow is not None:
        raise InvalidArgumentError("--catalog and --all exclude each other")
    if catalog or workflow is not None:
        if len(words) != 1:
            raise InvalidArgumentError("with --catalog or --all give one QUERY in quotes, and no INSTANCE")
        return None, words[0]
    if len(words) != 2:  # noqa: PLR2004 - two words: INSTANCE and QUERY
        raise InvalidArgumentError(
            "give an INSTANCE and one QUERY in quotes: perdure sql Hello/1f0c 'SELECT * FROM steps'"
        )
    return words[0], words[1]


async def _ask(
    state: Path, instance: str | None, workflow: str | None, query: str, *, timeout_s: float, reveal: bool
) -> Answer:
    async with open_remote(state) as remote:
        if workflow is not None:
            united = await remote.read_all(workflow, query, timeout_s=timeout_s, reveal=reveal)
            failures = [f"{workflow}/{each.label} gave no answer: {each.error}" for each in united.failures]
            aligned = [[_value(row, name) for name in united.columns] for row in united.rows]
            return Answer(united.columns, aligned, failures)
        if instance is not None:
            key = remote.resolve(instance)
            await remote.make_file(key)
            async with remote.read(key) as file:
                return _answer(await file.fetch(query, timeout_s=timeout_s, reveal=reveal))
        return _answer(await remote.read_catalog(query, timeout_s=timeout_s))


def _answer(rows: Sequence[Any]) -> Answer:
    return Answer(rows[0].keys() if rows else (), [tuple(row) for row in rows], ())


def _value(row: Any, name: str) -> Any:
    return row[name] if name in row.keys() else None  # noqa: SIM118 - `in row` would look at its values


def _show(answer: Answer, *, as_json: bool, as_csv: bool) -> None:
    if as_json:
        render.print_json([dict(zip(answer.columns, row, strict=True)) for row in answer.rows])
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        if answer.columns:
            writer.writerow(answer.columns)
        writer.writerows(answer.rows)
    elif not answer.columns:
        click.echo("(no rows)", err=True)
    else:
        _show_table(render.console(), answer)


def _show_table(console: Console, answer: Answer) -> None:
    """Print rows as a table or, where that would be cut to pieces, each row as a list of its values."""
    longest = CELL_CHARS_MAX if console.is_terminal else None
    rows = [[render.cell(value, chars_max=longest) for value in row] for row in answer.rows]
    widths = [
        max(len(name), *(row[place].cell_len for row in rows)) + 2
        for place, name in enumerate(answer.columns)
    ]
    if sum(widths) > console.width * WIDTHS_MAX:
        label = max(map(len, answer.columns)) + 2
        for number, row in enumerate(rows, 1):
            console.print(Text(f"row {number}", style="bold"))
            for name, value in zip(answer.columns, row, strict=True):
                console.print(Text.assemble((f"  {name:<{label}}", "dim"), value))
        return
    numbers = [
        name
        for place, name in enumerate(answer.columns)
        if all(row[place] is None or isinstance(row[place], int | float) for row in answer.rows)
    ]
    made = render.table(*answer.columns, right=numbers)
    for row in rows:
        made.add_row(*row)
    console.print(made)
