"""What a process that only visits a state folder knows of workflows: enough to check params, not to run.

Invariants:
    No instance moves while a visitor owns a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.engine.app import App
from perdure.limits import Limits
from perdure.storage.codec import Codec


class Visitor(App):
    """Knows classes, to check params by, and runs none: no instance moves while it owns a folder."""

    def __init__(self, known: App) -> None:
        super().__init__(hooks=known.hooks, limits=Limits())
        self._known = known

    def definition(self, workflow: type | str) -> Any:
        """Return what is known of a workflow."""
        return self._known.definition(workflow)

    def with_workflows(self, workflows: Sequence[type]) -> App:
        """Return this very app: nothing is added to what runs nothing."""
        del workflows
        return self


def stored_params(app: App, workflow: str, params: Any) -> str:
    """Return params as they are stored, as JSON text. Raises `InvalidParamsError`, `UnknownWorkflowError`."""
    definition = app.definition(workflow)
    if params is None and not definition.has_params:
        return "null"
    stored, _ = Codec(app.hooks).coder(definition.params).accept(params)
    return stored if isinstance(stored, str) else repr(stored)
