"""How `perdure demo` looks in a terminal, and in a pipe.

In a terminal three bars run, one for each phase; elsewhere a line is printed now and then. What is
printed afterwards is the same in both, and fits 80 columns. Nothing here decides anything.
"""

from __future__ import annotations

import shlex
from typing import Final, Self

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.segment import Segment, Segments
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from perdure.cli.audit import PHASES, Report
from perdure.cli.demo_proof import Answer, Evidence, Proof, Span
from perdure.cli.demo_worker import Progress as Recorded

BARS: Final = PHASES[1:-1]
ROWS_SHOWN: Final = 20
LICENCES_SHOWN: Final = 6
NAMES_SHOWN: Final = 3
LABEL_CHARS: Final = 26
WIDTH_MAX: Final = 100


class Show:
    """The demo's output. With `quiet` it shows nothing."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        console.quiet = quiet
        self._part = 0

    @property
    def width(self) -> int:
        """Columns that are used."""
        return min(self.console.width, WIDTH_MAX)

    def part(self, title: str) -> None:
        """Print the heading of the next part."""
        self._part += 1
        self.console.print()
        self.console.print(f"[bold cyan]{self._part}[/] [bold]{escape(title)}[/]", highlight=False)

    def say(self, text: str) -> None:
        """Print a paragraph; `text` may hold markup."""
        self._indented(Text.from_markup(text))

    def live(self) -> Live:
        """Return the display of one process at work."""
        return Live(self.console)

    # -- the parts -------------------------------------------------------------------------

    def proof(self, proof: Proof, recorded_before: int) -> None:
        """Print what the two witnesses say."""
        mark = "[bold green]yes[/]" if proof.holds else "[bold red]NO[/]"
        rows = [
            ("steps recorded by the killed process", str(proof.kept)),
            ("… of them run again by the second one", _count(proof.ran_again)),
            ("attempts that died with the process", str(len(proof.lost))),
            ("attempts whose function ran twice", _count(proof.twice)),
            ("executions without an attempt on record", _count(proof.unrecorded)),
            ("completed attempts that nothing executed", _count(proof.unseen)),
        ]
        self.say(
            "Each step function writes a line into a log when it starts and when it ends. Against that log"
            f" stands the table of attempts ({proof.executions} executions, {proof.attempts} attempts):"
        )
        table = _grid()
        for label, value in rows:
            table.add_row(escape(label), value)
        table.add_row("[bold]no recorded step ran a second time[/]", mark)
        self._indented(table)
        if proof.lost and proof.holds:
            self.say("[dim]The lost attempts are on record as lost; their successors started at once.[/]")
        if proof.kept < recorded_before:
            self.say(f"[bold red]{recorded_before} steps were told as recorded before the kill.[/]")

    def timeline(self, spans: list[Span]) -> None:
        """Print when what happened, as bars over time."""
        end_ms = max(1, *(span.to_ms for span in spans))
        bar_chars = self.width - LABEL_CHARS - 22
        table = _grid()
        for span in spans:
            moment = span.steps == 0
            style = "red" if span.what.startswith("kill") else "green" if moment else "cyan"
            label = Text(span.what, style=style if moment else "")
            steps = "" if moment else str(span.steps)
            table.add_row(
                f"[dim]{span.from_ms / 1000:.2f} s[/]",
                label,
                steps,
                self._bar(span, end_ms, bar_chars, style),
            )
        self._indented(table)

    def _bar(self, span: Span, end_ms: int, chars: int, style: str) -> Text:
        plain = self.console.options.ascii_only
        start = min(chars - 1, span.from_ms * chars // end_ms)
        stop = max(start + 1, min(chars, -(-span.to_ms * chars // end_ms)))
        if span.steps == 0:
            return Text(" " * start + ("|" if plain else "┃"), style=f"bold {style}")
        return Text(" " * start + ("=" if plain else "━") * (stop - start), style=style)

    def report(self, report: Report) -> None:
        """Print the audit's result: figures, licences, and a table of distributions."""
        good = report.distributions - len(report.not_matching) - len(report.without_record)
        self.say(
            f"{report.distributions} distributions, {report.files:,} files, {report.bytes / 1e6:,.1f} MB."
            f" [green]{good} as their RECORD says[/]; {_few(report.not_matching, 'not', 'red')};"
            f" {_few(report.without_record, 'without hashes', 'yellow')}."
        )
        shown = list(report.licences.items())[:LICENCES_SHOWN]
        more = len(report.licences) - len(shown)
        text = ", ".join(f"{escape(name)} {count}" for name, count in shown)
        self.say(f"Licences: {text}{f' and {more} more' if more > 0 else ''}.")
        self._indented(self._distributions(report))
        if report.distributions > ROWS_SHOWN:
            self.say(f"[dim]… and {report.distributions - ROWS_SHOWN} more; --json has them all.[/]")

    def _distributions(self, report: Report) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        table.add_column("distribution", no_wrap=True, max_width=22)
        table.add_column("version", no_wrap=True, max_width=12)
        table.add_column("licence", no_wrap=True, max_width=16)
        table.add_column("files", justify="right")
        table.add_column("RECORD", no_wrap=True)
        # What needs a look comes first.
        rows = sorted(report.audited, key=lambda row: (row.match != 0, row.match is not None))
        for row in rows[:ROWS_SHOWN]:
            table.add_row(
                escape(row.name), escape(row.version), escape(row.licence.spdx or "unknown"), str(row.files),
                _match(row.match, row.changed, row.missing),
            )  # fmt: skip
        return table

    def answer(self, answer: Answer) -> None:
        """Print one query and its rows."""
        self.console.print()
        self.say(f"[bold]{escape(answer.title)}[/]")
        self._indented(
            Syntax(answer.sql, "sql", theme="ansi_dark", background_color="default", word_wrap=True)
        )
        if not answer.rows:
            self.say("[dim](no rows)[/]")
            return
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        for column in answer.columns:
            numbers = all(isinstance(row[answer.columns.index(column)], int) for row in answer.rows)
            table.add_column(escape(column), justify="right" if numbers else "left", overflow="fold")
        for row in answer.rows[:ROWS_SHOWN]:
            table.add_row(*("" if value is None else escape(str(value)) for value in row))
        self._indented(table)
        if len(answer.rows) > ROWS_SHOWN:
            self.say(f"[dim]… and {len(answer.rows) - ROWS_SHOWN} more rows.[/]")

    def look_on(self, evidence: Evidence) -> None:
        """Print what to try next."""
        story = evidence.story
        self.console.print()
        self.say("[bold]Look further[/] - the file opens in any SQLite tool:")
        state = shlex.quote(story.state)
        for command in (
            f"sqlite3 {shlex.quote(evidence.file)}",
            f"perdure describe {story.instance} --state {state}",
            "perdure init      # a workflow of your own, with its test",
        ):
            self.console.print(f"    {command}", highlight=False, markup=False, soft_wrap=True)

    def _indented(self, what: RenderableType) -> None:
        """Print with two spaces before each line and none behind: a pipe gets what a person would type."""
        options = self.console.options.update(width=self.width - 2)
        for line in self.console.render_lines(what, options, pad=False):
            segments = list(line)
            while segments and not segments[-1].text.strip():
                segments.pop()
            if segments:
                segments[-1] = Segment(segments[-1].text.rstrip(), segments[-1].style)
            head = [Segment("  ")] if segments else []
            self.console.print(Segments([*head, *segments, Segment.line()]), soft_wrap=True, end="")


class Live:
    """The bars of one process; elsewhere than in a terminal, a line for each quarter."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._quarters = 0
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("  {task.description:<17}"),
            BarColumn(bar_width=34),
            MofNCompleteColumn(),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        for phase in BARS:
            self._tasks[phase] = self._bars.add_task(phase, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, progress: Recorded) -> None:
        """Show how far the process is."""
        for phase, task in self._tasks.items():
            self._bars.update(task, completed=progress.phases.get(phase, 0), total=progress.distributions)
        if self._bars.disable and progress.total:
            quarters = 4 * progress.recorded // progress.total
            if quarters > self._quarters:
                self._quarters = quarters
                done = f"{progress.recorded} of {progress.total}"
                self._console.print(f"  {done} steps recorded", highlight=False)


def _grid() -> Table:
    return Table.grid(padding=(0, 2, 0, 0))


def _count(names: list[str]) -> str:
    return f"[bold red]{len(names)}: {_first(names)}[/]" if names else "0"


def _few(names: list[str], what: str, style: str) -> str:
    return f"[{style}]{len(names)} {what}[/] ({_first(names)})" if names else f"0 {what}"


def _first(names: list[str]) -> str:
    more = ", …" if len(names) > NAMES_SHOWN else ""
    return escape(", ".join(names[:NAMES_SHOWN])) + more


def _match(match: int | None, changed: int, missing: int) -> str:
    if match is None:
        return "[yellow]none[/]"
    if match:
        return "[green]matches[/]"
    parts = [f"{count} {what}" for count, what in ((changed, "changed"), (missing, "missing")) if count]
    return f"[red]{', '.join(parts)}[/]"
