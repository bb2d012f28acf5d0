"""`step.continue_as_new`: an instance without end goes on under its id, with an empty journal.

Invariants:
    Nothing else is open when the journal goes (law 8).
    The old generation ends and the new one begins in one transaction.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal, NoReturn, get_args

from perdure.actors.calls import caller, line_of
from perdure.actors.run import Run
from perdure.errors import InvalidArgumentError, OpenStepError, PerdureError, WorkflowCodeError
from perdure.storage.records import Stored

WhichVersion = Literal["latest", "same"]


class ContinueCall:
    """A call of `step.continue_as_new`: await it, once; nothing comes back from that."""

    __slots__ = ("awaited", "name", "params", "run", "version", "where")

    def __init__(self, run: Run, params: Stored, version: WhichVersion, *, depth: int) -> None:
        if version not in get_args(WhichVersion):
            raise InvalidArgumentError(f"version={version!r}: it must be 'latest' or 'same'")
        self.name = "continue_as_new"
        run.require_call(self.name)
        self.run = run
        self.params = params
        self.version: WhichVersion = version
        self.awaited = False
        self.where = caller(depth)
        run.open_calls[self] = None

    def __await__(self) -> Generator[Any, Any, NoReturn]:
        if self.awaited:
            raise WorkflowCodeError("the call of continue_as_new was awaited twice")
        self.awaited = True
        yield from self._go_on().__await__()
        raise AssertionError("the run goes on behind continue_as_new")

    async def _go_on(self) -> NoReturn:
        run = self.run
        try:
            await run.admit()
            self._refuse_open_steps()
            run.go_on(self.params, self.version)
            await run.until_cancelled()
        except PerdureError as error:
            if error is not run.file.failure:
                raise
            await run.broke(error)
            raise
        finally:
            run.open_calls.pop(self, None)

    def _refuse_open_steps(self) -> None:
        for call in self.run.open_calls:
            if call is not self:
                raise OpenStepError(
                    f"continue_as_new of {self.run.key} was called while step {call.name!r}"
                    f" ({line_of(call.where)}) was open: await every step before"
                )
