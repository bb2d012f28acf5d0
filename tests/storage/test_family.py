"""Posts between parents and children: rows of the catalog's inbox that the runtime sends to itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.family import (
    INLINE_BYTES_MAX,
    ChildEnd,
    ChildRef,
    child_end,
    decode_ref,
    encode_ref,
    small_end,
)
from perdure.storage.records import Birth, Key, Message

CHILD = Key("Child", "c")
PARENT = "Parent/p/1"
NAME = "t"


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(open_catalog(tmp_path / "catalog.sqlite", checkpointer=True))
    yield catalog
    catalog.close()


def end(incarnation: int = 7, stored: str | bytes | None = "1") -> ChildEnd:
    return child_end(CHILD, incarnation, "complete", stored)


def pending(catalog: Catalog) -> list[Message]:
    return catalog.family.pending(after=0, limit=10)


def add_child(catalog: Catalog, incarnation: int = 7) -> ChildRef:
    birth = Birth(workflow="Child", id="c", incarnation=incarnation, created_at_ms=0, parent=PARENT)
    catalog.add(birth, "null")
    return ChildRef(child=str(CHILD), incarnation=incarnation)


def test_an_end_is_posted_once_to_its_parent_and_stays_until_it_is_dropped(catalog: Catalog) -> None:
    for _ in range(2):
        catalog.family.ended(PARENT, end(), at_ms=1)

    (post,) = pending(catalog)
    assert ("Parent", "p/1", "child-ended") == (post.workflow, post.id, post.command)
    assert catalog.family.on_its_way(7)
    catalog.family.drop([post.seq])
    assert [] == pending(catalog)
    assert not catalog.family.on_its_way(7)


def test_other_commands_and_posts_do_not_see_each_other(catalog: Catalog) -> None:
    command = Message(seq=0, token=NAME, workflow="W", id="a", command="pause", body=None, actor=None)
    catalog.posts.post(command, at_ms=1)
    catalog.family.ended(PARENT, end(), at_ms=1)

    assert ["pause"] == [message.command for message in catalog.posts.pending()]
    assert ["child-ended"] == [message.command for message in pending(catalog)]


def test_only_a_child_that_lives_and_is_the_same_is_told_to_end(catalog: Catalog) -> None:
    ref = add_child(catalog)
    other = ChildRef(child=str(CHILD), incarnation=8)
    gone = ChildRef(child="Child/gone", incarnation=9)
    for _ in range(2):
        catalog.family.end([ref, other, gone], parent=PARENT, at_ms=1)

    (post,) = pending(catalog)
    assert ("end-child", "c", "7", PARENT) == (post.command, post.id, post.body, post.actor)
    catalog.family.drop([post.seq])
    catalog.settle(CHILD, "complete", reason=None, started_at_ms=1, ended_at_ms=2, wake=None, version=None)
    catalog.family.end([ref], parent=PARENT, at_ms=3)
    assert [] == pending(catalog)


def test_a_child_that_is_deleted_before_its_end_is_told_of_in_the_same_transaction(catalog: Catalog) -> None:
    add_child(catalog)

    assert 1 == len(catalog.removals.mark([CHILD], None))
    (post,) = pending(catalog)
    assert '"how":"deleted"' in (post.body or "")


def test_a_large_result_stays_out_of_the_catalog() -> None:
    large = end(stored="x" * (INLINE_BYTES_MAX + 1))

    assert large.stored is not None
    assert small_end(large).stored is None
    assert b"\x00\xff" == small_end(end(stored=b"\x00\xff")).stored


def test_a_detail_that_is_no_childs_is_none() -> None:
    ref = ChildRef(child="Child/a/b", incarnation=1, on_cancel="abandon")

    assert ref == decode_ref(encode_ref(ref))
    assert Key("Child", "a/b") == ref.key
    assert None is decode_ref('{"rollback":true}')
    assert None is decode_ref(None)
