"""A ledger: transfers between accounts, exactly once, audited from nothing but the ledger's own file.

    python examples/ledger.py
    perdure sql ledger "SELECT * FROM entries" --state state-ledger

A transfer writes its two entries and the record of its step in one transaction, so that neither can be
without the other. The audit reads the tables and `history`: what was posted, in which order, and whether the
entries are there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import trio

from perdure import Instance, Sql, WorkflowEntrypoint, WorkflowEvent, WorkflowStep, open_runtime
from perdure.actors.host import Replay


class Transfer(msgspec.Struct, frozen=True):
    id: str
    source: str
    target: str
    amount: int


TRANSFERS = [
    Transfer("t1", "bank", "Ada", 100),
    Transfer("t2", "Ada", "Grace", 30),
    Transfer("t3", "Grace", "Ada", 500),  # more than there is
    Transfer("t4", "Grace", "Edsger", 5),
]


def open_book(sql: Sql) -> None:
    sql.exec(
        "CREATE TABLE entries (transfer TEXT, account TEXT, amount INT, PRIMARY KEY (transfer, account))"
    )


def post(sql: Sql, transfer: Transfer) -> bool:
    """Write both entries or none; False where the account has too little."""
    query = "SELECT coalesce(sum(amount), 0) AS n FROM entries WHERE account = ?"
    if transfer.source != "bank" and sql.exec(query, transfer.source).one()["n"] < transfer.amount:
        return False
    sql.exec("INSERT INTO entries VALUES (?, ?, ?)", transfer.id, transfer.source, -transfer.amount)
    sql.exec("INSERT INTO entries VALUES (?, ?, ?)", transfer.id, transfer.target, transfer.amount)
    return True


class Ledger(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> dict[str, bool]:
        """Post as many transfers as the payload says, in the order in which they come."""
        posted: dict[str, bool] = {}
        await step.transaction("open book", open_book)
        for number in range(event.payload):
            asked = await step.wait_for_event(f"transfer {number}", type="transfer", returns=Transfer)
            posted[asked.payload.id] = await step.transaction(f"post {asked.payload.id}", post, asked.payload)
        return posted


async def audit(ledger: Instance[dict[str, bool]]) -> None:
    print("balances")
    for row in await ledger.sql("SELECT account, sum(amount) AS n FROM entries GROUP BY 1 ORDER BY 1"):
        print(f"  {row.account:<8} {row.n:>5}")
    [total] = await ledger.sql("SELECT sum(amount) AS n FROM entries")
    print(f"  {'sum':<8} {total.n:>5}")
    print("audit")
    query = """
        SELECT h."commit", s.name, s.output ->> '$' AS posted,
            (SELECT count(*) FROM entries WHERE 'post ' || transfer = s.name) AS entries
        FROM history AS h JOIN steps AS s ON s.name = h.step
        WHERE h.what = 'transaction completed' AND s.name LIKE 'post %' ORDER BY h."commit", h.place"""
    for row in await ledger.sql(query):
        found = "posted" if row.posted else "refused"
        sound = row.entries == (2 if row.posted else 0)
        print(f"  {row.name}: {found}, {row.entries} entries, {'sound' if sound else 'NOT SOUND'}")


async def main(state: Path, replay: Replay) -> None:
    async with open_runtime(state, workflows=[Ledger], replay=replay) as runtime:
        ledger = await runtime.create(Ledger, params=len(TRANSFERS), id="ledger", if_exists="attach")
        if (await ledger.status()).status != "complete":
            for transfer in TRANSFERS:  # sent again after a crash they count once
                await ledger.send_event("transfer", msgspec.to_builtins(transfer), token=transfer.id)
        print("posted", ", ".join(id_ for id_, done in (await ledger.result()).items() if done))
        await audit(ledger)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A ledger that is its own audit.")
    parser.add_argument("--state", type=Path, default=Path("state-ledger"))
    parser.add_argument("--replay", choices=["warm", "always"], default="warm")
    options = parser.parse_args()
    trio.run(main, options.state, options.replay)
