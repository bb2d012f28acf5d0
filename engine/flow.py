"""Flow control: what the game loop does about workflows whose concurrency is bounded.

Who gets a place is decided in the catalog, in the transaction that claims (`storage/places.py`). Here stands
what the loop has to know besides: the rules, who must be given a place before he may move, and who gives one
up early because others wait.

Invariants:
    Without a rule nothing here costs more than looking into an empty dictionary.
    A command reaches an instance that has no place; `run()` does not go on before it has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

from perdure.engine.app import App
from perdure.engine.life import Life
from perdure.storage.catalog import Catalog
from perdure.storage.places import Rule
from perdure.storage.records import Key
from perdure.storage.writer import CatalogWriter

LET_OUT_MAX: Final = 5_000
"""Instances let out of their lanes in one transaction, when a rule has changed."""


class Flow:
    """The rules of one process, over the catalog that its loop reads."""

    def __init__(self, rules: dict[str, Rule], catalog: Catalog) -> None:
        self.rules = rules
        self._catalog = catalog

    def needs_place(self, key: Key) -> bool:
        """Whether an instance may not move before it has been given a place."""
        rule = self.rules.get(key.workflow)
        if rule is None:
            return False
        row = self._catalog.find(key)
        return row is not None and not row.open and not rule.holds(row.status)

    def make_places(self, lives: Iterable[Life]) -> None:
        """Have parked instances leave memory at once, where only active ones count and others wait."""
        waiting = {
            name
            for name, rule in self.rules.items()
            if rule.active_only and self._catalog.moves.places.is_waiting(name)
        }
        if waiting:
            for life in lives:
                if life.key.workflow in waiting and life.actor is not None and life.actor.is_parked:
                    life.actor.hibernate()

    def counts_active(self, workflow: str) -> bool:
        """Whether an instance of this workflow gives its place up while it waits."""
        rule = self.rules.get(workflow)
        return rule is not None and rule.active_only


async def declare_rules(app: App, catalog: Catalog, writer: CatalogWriter) -> None:
    """Write down the rules that the classes have now, before anything is claimed by them."""
    rules, known = app.rules, catalog.moves.places.declared()
    for name in app.definitions:
        rule = rules.get(name)
        if rule is None and name not in known:
            continue
        changed = await writer.write(partial(_declare, name, rule))
        while changed:
            changed = await writer.write(partial(_let_out, name)) == LET_OUT_MAX


def _declare(workflow: str, rule: Rule | None, catalog: Catalog) -> bool:
    return catalog.moves.places.declare(workflow, rule)


def _let_out(workflow: str, catalog: Catalog) -> int:
    return catalog.moves.places.let_out(workflow, LET_OUT_MAX)
