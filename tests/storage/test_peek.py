"""A look into closed files leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

from perdure.storage.peek import bring_to_rest


def test_a_file_that_was_just_deleted_is_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "one.sqlite"
    Path(f"{path}-wal").write_bytes(b"what a deletion is about to remove")
    bring_to_rest(path)
    assert not path.exists()
