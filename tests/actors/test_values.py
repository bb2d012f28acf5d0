"""The calls that are over at once: `now`, `random`, `uuid` and `transaction`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from perdure import EncodingError, InvalidArgumentError, QueryRefusedError, Sql, WorkflowStep

Play = Callable[..., Awaitable[Any]]


@dataclass
class Account:
    owner: str
    balance: int


async def test_a_value_is_drawn_once_and_answers_every_replay(play: Play) -> None:
    seen: list[tuple[datetime, float, UUID]] = []

    async def run(step: WorkflowStep) -> int:
        now, random, uuid = await step.now(), await step.random(), await step.uuid()
        await step.sleep("long enough to hibernate", "1 hour")
        seen.append((now, random, uuid))
        return len(seen)

    played = await play(run)

    now, random, uuid = seen[0]
    assert [seen[0]] * len(seen) == seen
    assert now.tzinfo == UTC
    assert 0 <= random < 1
    assert 4 == uuid.version
    assert ["now", "random", "uuid", "long enough to hibernate"] == [row[0] for row in played.steps]


async def test_each_use_and_each_key_is_a_value_of_its_own(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        numbers = [await step.random(), await step.random(), await step.random("other")]
        numbers += (
            await step.gather("keyed", {"a": step.random(key="a"), "b": step.random(key="b")})
        ).values()
        return len(set(numbers))

    played = await play(run)

    assert 5 == played.result
    assert [("other", 1), ("random", 1), ("random", 2), ("random[a]", 1), ("random[b]", 1)] == sorted(
        row[:2] for row in played.steps
    )


# -- transactions ------------------------------------------------------------------------------


def open_account(sql: Sql, owner: str, balance: int) -> Account:
    sql.exec("CREATE TABLE IF NOT EXISTS account (owner TEXT PRIMARY KEY, balance INTEGER)")
    sql.exec("INSERT INTO account VALUES (?, ?)", owner, balance)
    return Account(owner, balance)


async def test_a_transaction_happens_exactly_once_and_returns_what_is_annotated(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        account = await step.transaction("open", open_account, "ada", 10)
        await step.sleep("long enough to hibernate", "1 hour")
        return [account.owner, account.balance]

    played = await play(run, sql="SELECT owner, balance FROM account")

    assert (["ada", 10], [("ada", 10)]) == (played.result, played.steps)


async def test_a_transaction_is_on_record_with_its_input_and_one_attempt(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        await step.transaction("open", open_account, "ada", 10)

    played = await play(run, sql="SELECT kind, status, attempts, input, output FROM steps")

    assert [("transaction", "completed", 1, '["ada",10]', '{"owner":"ada","balance":10}')] == played.steps


async def test_a_transaction_that_raises_is_undone_and_answers_with_its_error(play: Play) -> None:
    tries: list[int] = []

    def fail(sql: Sql) -> None:
        tries.append(1)
        sql.exec("CREATE TABLE half (n)")
        raise KeyError("gone")

    async def run(step: WorkflowStep) -> str:
        try:
            await step.transaction("fail", fail)
        except KeyError as error:
            await step.sleep("long enough to hibernate", "1 hour")
            return f"{error} {error.__notes__}"
        return "never"

    played = await play(run, sql="SELECT count(*) FROM sqlite_schema WHERE name = 'half'")

    assert "'gone' [\"in transaction 'fail' of Play/a\"]" == played.result
    assert ([1], [(0,)]) == (tries, played.steps)


async def test_what_is_refused_in_a_transaction_reaches_the_run(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        try:
            await step.transaction("steal", lambda sql: sql.exec("DELETE FROM _perdure_steps"))
        except QueryRefusedError as error:
            return str(error)
        return "never"

    assert "refused: _perdure_steps belongs to the runtime" in (await play(run)).result


async def test_a_result_that_cannot_be_stored_undoes_the_transaction(play: Play) -> None:
    def strange(sql: Sql) -> Any:
        sql.exec("CREATE TABLE half (n)")
        return object()

    async def run(step: WorkflowStep) -> None:
        await step.transaction("strange", strange)

    played = await play(run, sql="SELECT count(*) FROM sqlite_schema WHERE name = 'half'")

    assert isinstance(played.error, EncodingError)
    assert [(0,)] == played.steps


async def test_a_transaction_takes_a_plain_function(play: Play) -> None:
    async def wait(_sql: Sql) -> None:
        """Wait, which nothing may do inside a transaction."""

    async def run(step: WorkflowStep) -> str:
        with pytest.raises(InvalidArgumentError, match="needs a plain function"):
            step.transaction("wait", wait)
        return "refused"

    played = await play(run)

    assert ("refused", []) == (played.result, played.steps)
