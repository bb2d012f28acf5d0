"""What a look at the code of a workflow can see, without an instance: for `perdure check`.

Only `run()` itself is read, and of it only what stands outside functions that are defined in it: those
are step functions, where clocks and random numbers are welcome.

Invariants:
    What is an error here fails, or may fail, when it runs; what only may be one is a warning.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

from perdure.engine.app import App

AWAITED: Final = (
    "do",
    "sleep",
    "sleep_until",
    "wait_for_event",
    "map",
    "gather",
    "race",
    "transaction",
    "child",
)
"""Step methods whose call does nothing unless somebody awaits it."""
UNREPEATABLE: Final[dict[str, str]] = {
    "time.time": "step.now()", "datetime.now": "step.now()", "datetime.utcnow": "step.now()",
    "datetime.datetime.now": "step.now()", "random.random": "step.random()",
    "random.randint": "step.random()", "random.choice": "step.random()",
    "uuid.uuid4": "step.uuid()", "uuid.uuid1": "step.uuid()",
    "uuid4": "step.uuid()",
}  # fmt: skip
"""Calls that answer differently in each replay, and what to use in their place."""


class CodeFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing seen in the code: `place` is file and line, `text` says what to do about it."""

    level: Literal["error", "warning"]
    place: str
    text: str


def look_at_code(app: App) -> list[CodeFinding]:
    """Return what can be seen in `run()` of each workflow of an app."""
    return [found for definition in app.definitions.values() for found in _look_at(definition.cls.run)]


def _look_at(run: Any) -> Iterator[CodeFinding]:
    try:
        lines, first = inspect.getsourcelines(run)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):  # made at run time: there is nothing to read
        return
    file = inspect.getsourcefile(run) or "?"
    step = list(inspect.signature(run).parameters)[2]
    functions: dict[str, str] = {}
    for node in _outside_functions(tree.body[0]):
        place = f"{file}:{first + getattr(node, 'lineno', 1) - 1}"
        if isinstance(node, ast.Expr) and (method := _step_method(node.value, step)) in AWAITED:
            text = f"step.{method}(...) is called and never awaited: write `await step.{method}(...)`"
            yield CodeFinding(level="error", place=place, text=text)
        if isinstance(node, ast.Call):
            instead = UNREPEATABLE.get(ast.unparse(node.func))
            if instead is not None:
                text = f"{ast.unparse(node.func)}() answers differently in each replay: use {instead}"
                yield CodeFinding(level="warning", place=place, text=text)
            named = _named(node, step)
            if named is not None and functions.setdefault(*named) != named[1]:
                text = (
                    f"step {named[0]!r} stands for {functions[named[0]]} and for {named[1]}: give each"
                    " function a name of its own, or key="
                )
                yield CodeFinding(level="warning", place=place, text=text)


def _outside_functions(root: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(root):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield child
            yield from _outside_functions(child)


def _step_method(node: ast.AST, step: str) -> str | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    owner = node.func.value
    return node.func.attr if isinstance(owner, ast.Name) and owner.id == step else None


def _named(call: ast.Call, step: str) -> tuple[str, str] | None:
    """Return the name and the function of a call of `step.do` that has a literal name and no key."""
    if _step_method(call, step) != "do" or len(call.args) < len(("name", "fn")):
        return None
    name, function = call.args[:2]
    if any(keyword.arg == "key" for keyword in call.keywords):
        return None
    if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
        return None
    return (name.value, function.id) if isinstance(function, ast.Name) else None
