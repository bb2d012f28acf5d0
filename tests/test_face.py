"""The face: `perdure` exports exactly what is documented, and only re-exports."""

from __future__ import annotations

import ast
from pathlib import Path

import perdure
from perdure import errors

DOCUMENTED = {
    "ActorContext",
    "App",
    "BatchEntry",
    "Concurrency",
    "Cron",
    "BulkReport",
    "BulkSelection",
    "DeleteError",
    "DeletedBatch",
    "Duration",
    "Every",
    "HistoryEntry",
    "Instance",
    "InstanceStatus",
    "Limits",
    "Refused",
    "Retention",
    "Retries",
    "Rollback",
    "RollbackContext",
    "RollbackResult",
    "Row",
    "Rows",
    "Runtime",
    "RuntimeStatistics",
    "Schedule",
    "ScheduleStatus",
    "Sql",
    "StepConfig",
    "StepContext",
    "StepEvent",
    "StepName",
    "StepStream",
    "StreamReader",
    "StreamWriter",
    "TypeHook",
    "WorkflowEntrypoint",
    "WorkflowEvent",
    "WorkflowLimits",
    "WorkflowStep",
    "asyncio_step",
    "current_step",
    "open_runtime",
    "process_step",
}


def test_the_face_exports_what_is_documented_and_every_error() -> None:
    documented, exported = DOCUMENTED | set(errors.__all__), set(perdure.__all__)

    assert set() == exported - documented
    assert set() == documented - exported


def test_every_exported_name_is_there() -> None:
    missing = [name for name in perdure.__all__ if not hasattr(perdure, name)]

    assert [] == missing


def test_the_face_is_a_docstring_and_imports_and_nothing_else() -> None:
    body = ast.parse(Path(perdure.__file__).read_text(encoding="utf-8")).body
    others = [
        ast.unparse(node)
        for node in body[1:]
        if not isinstance(node, ast.ImportFrom | ast.Import) and not is_the_list_of_names(node)
    ]

    assert [] == others


def is_the_list_of_names(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]


def test_type_checkers_are_told_that_the_package_is_typed() -> None:
    assert Path(perdure.__file__).with_name("py.typed").is_file()


def test_the_tree_of_errors_in_the_docstring_is_the_tree_of_classes() -> None:
    drawn = (errors.__doc__ or "").split()
    missing = [name for name in errors.__all__ if name not in drawn]

    assert [] == missing
