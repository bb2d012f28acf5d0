"""`perdure repair`: rebuild the catalog of a state folder from the instances' files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from perdure.cli import exits, options, render
from perdure.engine.repair import Problem, RepairReport, repair_state

SHOWN: Final = 20


@click.command()
@options.state_option
@options.json_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.pass_context
def repair(ctx: click.Context, *, state: Path, as_json: bool, dry_run: bool) -> None:
    """Rebuild the catalog from the instances' files.

    Each instance's file is the truth about it; the catalog is an index. Rows that are missing are
    made again, rows at odds with their file are corrected, rows without a file are dropped. A
    damaged catalog is moved aside. Nothing may be running on the folder meanwhile. The files
    themselves are not changed.

    Exits with 4 where a file is damaged, after everything else has been repaired.

    \b
    perdure repair --dry-run
    perdure repair --state /srv/state
    """
    report = repair_state(state, dry_run=dry_run)
    if as_json:
        render.print_json(msgspec.to_builtins(report) | {"needs_a_person": report.needs_a_person})
    else:
        for line in told(report):
            click.echo(line)
    if report.needs_a_person:
        ctx.exit(exits.STATE)


def told(report: RepairReport) -> list[str]:
    """Return the report in lines for a person."""
    lines = [f"{report.state}: {_count(report.files, 'file')}, catalog {report.catalog}{_why(report)}"]
    would = "would be " if report.dry_run else ""
    lines += _names(f"{would}restored, missing from the catalog", report.restored)
    lines += _problems(f"{would}corrected", report.corrected)
    lines += _names(f"{would}dropped, there is no file", report.dropped)
    lines += _problems("left alone", report.left_alone)
    lines += _problems(
        "DAMAGED: restore it from a copy, or salvage it with `sqlite3 FILE .recover`", report.damaged
    )
    if report.lost:
        lines.append("No file tells, so with the catalog is lost:")
        lines += [f"  {what}" for what in report.lost]
        if report.queued:
            lines.append(f"  (of those not started, {report.queued} could be read from the damaged catalog)")
    if report.moved_to:
        lines.append(f"The damaged catalog is kept as {report.moved_to}")
    lines.append(_verdict(report))
    return lines


def _why(report: RepairReport) -> str:
    return f" ({exits.one_line(report.catalog_why)})" if report.catalog == "damaged" else ""


def _verdict(report: RepairReport) -> str:
    if report.catalog != "intact":
        made = "would be made" if report.dry_run else "was made"
        return f"A new catalog {made}, with {_count(report.changes + report.queued, 'instance')}."
    if not report.changes:
        return "The catalog and the files agree: nothing to repair."
    return "Dry run: nothing was changed." if report.dry_run else "The catalog agrees with the files again."


def _names(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = [f"  … and {len(names) - SHOWN} more; --json has them all"] if len(names) > SHOWN else []
    return [f"{_count(len(names), 'instance')} {title}:", *(f"  {name}" for name in names[:SHOWN]), *more]


def _problems(title: str, problems: Sequence[Problem]) -> list[str]:
    if not problems:
        return []
    more = [f"  … and {len(problems) - SHOWN} more; --json has them all"] if len(problems) > SHOWN else []
    shown = [f"  {problem.name}: {exits.one_line(problem.what)}" for problem in problems[:SHOWN]]
    return [f"{len(problems)} {title}:", *shown, *more]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
