"""`ctx.storage`: an instance's own tables, from its methods.

Statements run in the loop's thread on the instance's own file, inside the tick's transaction, as
`step.transaction` does. Prior art: `ctx.storage` of Cloudflare's Durable Objects.

Invariants:
    Writes with no await between them are one transaction (law 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.sql import Rows, Sql

T = TypeVar("T")


class ActorSql(Sql):
    """`ctx.storage.sql`: statements on the instance's own file."""

    def __init__(self, file: InstanceFile, gate: Gate) -> None:
        super().__init__(file)
        self._gate = gate
        self._own = file

    def exec(self, query: str, *bindings: Any) -> Rows:
        """Run one statement and return its rows; as `Sql.exec`, which says what is refused.

        >>> await order.call(Order.count_steps)  # return self.ctx.storage.sql.exec("SELECT ...").one()["n"]
        1
        """
        self._gate.touch(self._own)
        return super().exec(query, *bindings)


class ActorStorage:
    """An instance's own tables. `sql` runs statements."""

    def __init__(self, file: InstanceFile, gate: Gate) -> None:
        self._file = file
        self._gate = gate
        self.sql = ActorSql(file, gate)

    def transaction_sync(self, fn: Callable[[], T]) -> T:
        """Call `fn`, a plain function, and undo what it wrote where it raises. Nests."""
        self._gate.touch(self._file)
        with self.sql.savepoint():
            return fn()

    async def sync(self) -> None:
        """Return when all that was written so far is durable. Raises `StateError` where it cannot be."""
        await self._gate.passed(self._file)
