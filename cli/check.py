"""`perdure check`: what changed code would make of the instances that are under way, before a deploy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from perdure import UnknownWorkflowError
from perdure.cli import exits, options, render
from perdure.engine.app import App
from perdure.engine.bulk import Selection
from perdure.engine.folder import StateFolder
from perdure.engine.replay_check import ReplayReport, replay_reports
from perdure.engine.static_check import look_at_code


@click.command()
@click.argument("file", metavar="FILE")
@options.state_option
@options.json_option
@click.option("--workflow", metavar="NAME", help="Only instances of this workflow.")
@click.option("--where", metavar="CONDITION", help="Only instances for which this SQL condition holds.")
@click.option("--all", "finished", is_flag=True, help="Look at instances that have ended as well.")
@click.pass_context
def check(
    ctx: click.Context, *, file: str, state: Path, as_json: bool, workflow: str | None, where: str | None,
    finished: bool,
) -> None:  # fmt: skip
    """Replay instances against changed code, without running a step.

    Every instance under way, of each workflow in FILE, is read as it stands (its process may go on
    meanwhile), and run() is called over a copy: recorded steps answer, anything else waits. What
    is told: steps recorded as another kind, changed arguments, recorded steps that nobody asks
    for, errors between steps, results and params that no longer fit their types.

    First run() itself is read: steps that nobody awaits, one name for two functions, clocks and
    random numbers outside steps.

    An error is what would make an instance fail; anything else is a warning. Exits with 1 when
    there is an error. Nothing is changed. FILE's env is opened, as run() may ask for it.

    \b
    perdure check orders.py
    perdure check orders.py --workflow Order --where "created_at > '2030-01-01'" --json
    """
    app = options.load_file(file)
    if workflow is not None and workflow not in app.definitions:
        known = ", ".join(sorted(app.definitions)) or "none"
        raise UnknownWorkflowError(f"{file} has no workflow {workflow}; it has: {known}")
    selection = Selection(workflow=workflow, where=where)
    code = look_at_code(app)
    found: list[ReplayReport] = []
    looked = trio.run(_look, state, app, selection, finished, found)
    levels = [each.level for report in found for each in report.found] + [each.level for each in code]
    errors, warnings = levels.count("error"), levels.count("warning")
    if as_json:
        told: dict[str, Any] = {"instances": looked, "errors": errors, "warnings": warnings}
        render.print_json(told | {"code": msgspec.to_builtins(code), "found": msgspec.to_builtins(found)})
    else:
        for seen in code:
            click.echo(f"{seen.place}\n  {seen.level}: {seen.text}")
        for report in found:
            _show(report)
        agree = looked - len(found)
        click.echo(f"{looked} looked at: {agree} agree, {errors} errors, {warnings} warnings.")
    if errors:
        ctx.exit(exits.FAILED)


async def _look(
    state: Path, app: App, selection: Selection, finished: bool, found: list[ReplayReport]
) -> int:
    """Collect what differs; return how many instances were looked at. Shows its progress to people."""
    looked = 0
    if not StateFolder(state).exists():  # nothing is under way, so nothing can differ
        return looked
    async for report in replay_reports(state, app, selection, finished=finished):
        looked += 1
        if report.found:
            found.append(report)
        if sys.stderr.isatty() and not looked % 100:
            click.echo(f"\r{looked} looked at, {len(found)} differ", err=True, nl=False)
    return looked


def _show(report: ReplayReport) -> None:
    click.echo(f"{report.instance} ({report.status}, version {report.version or 'none'})")
    for each in report.found:
        click.echo(f"  {each.level}: {exits.one_line(each.text)}")
        if each.recorded:
            click.echo(f"    recorded:  {exits.one_line(each.recorded)}")
            click.echo(f"    requested: {exits.one_line(each.requested)}")
