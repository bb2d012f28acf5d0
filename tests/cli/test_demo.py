"""`perdure demo`: the main job, with a real SIGKILL, and the proof that it rests on."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.cli.audit import Execution, Found, Report, hash_files, list_distributions, read_metadata, sum_up
from perdure.cli.demo_proof import QUERIES, Proof, Story, prove
from perdure.cli.licences import Licence, LicenceFacts, classify

STORY = Story(
    state="state", instance="audit-1", distributions=1, killed_pid=1, killed_at_ms=0, recorded_before=1,
    total=5, resumed_pid=2, resumed_at_ms=0, recorded_after=5,
)  # fmt: skip


# -- the whole demo ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_killed_audit_goes_on_and_no_recorded_step_runs_again(place: Any) -> None:
    evidence = place.json("demo", "--fast", "--state", str(place.state))

    story, proof = evidence["story"], evidence["proof"]
    assert proof["holds"]
    assert [] == proof["ran_again"] == proof["twice"] == proof["unrecorded"] == proof["unseen"]
    assert story["total"] / 2 <= story["recorded_before"] <= proof["kept"] < story["total"]
    assert story["total"] == story["recorded_after"] == 3 * len(list_distributions()) + 2
    assert story["killed_pid"] != story["resumed_pid"]
    assert len(proof["lost"]) >= 1
    assert 1 <= evidence["replays"]


@pytest.mark.slow
def test_the_report_is_about_what_is_installed_and_the_file_answers_sql(place: Any) -> None:
    evidence = place.json("demo", "--fast", "--state", str(place.state))

    names = {found.name for found in list_distributions()}
    assert names == {row["name"] for row in evidence["report"]["audited"]}
    assert sum(evidence["report"]["licences"].values()) == len(names)
    with contextlib.closing(sqlite3.connect(evidence["file"])) as file:
        assert [("ok",)] == file.execute("PRAGMA integrity_check").fetchall()
        for answer, (title, sql) in zip(evidence["queries"], QUERIES, strict=True):
            assert (title, sql) == (answer["title"], answer["sql"])
            assert answer["rows"] == [list(row) for row in file.execute(sql)]
    outcomes = [row[-1] for row in evidence["queries"][2]["rows"]]
    assert {"lost", "completed"} == set(outcomes)


@pytest.mark.slow
def test_a_person_is_shown_the_kill_the_proof_the_timeline_and_the_queries(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    done = place.run("demo", "--state", str(place.state))

    assert 0 == done.status, done.err
    assert 80 >= max(len(line) for line in done.out.splitlines() if str(place.state) not in line)
    assert [] == [line for line in done.out.splitlines() if line != line.rstrip() or "\x1b" in line]
    for text in (
        "kill -9",
        "of them run again by the second one     0",
        "instance complete",
        "RECORD",
        *_sql_lines(),
    ):
        assert text in done.out


def _sql_lines() -> list[str]:
    return [line.strip() for _, sql in QUERIES for line in sql.splitlines()]


@pytest.mark.slow
def test_a_second_demo_in_the_same_folder_is_another_instance(place: Any) -> None:
    first = place.json("demo", "--fast", "--state", str(place.state))
    second = place.json("demo", "--fast", "--state", str(place.state))

    assert ("audit-1", "audit-2") == (first["story"]["instance"], second["story"]["instance"])


@pytest.mark.slow
def test_no_child_outlives_a_demo_that_is_interrupted(place: Any) -> None:
    running = place.start("demo", "--state", str(place.state))
    assert running.stdout is not None
    line = next(line for line in running.stdout if "Process" in line)
    child = int(line.split()[1])

    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)

    assert 130 == running.returncode, errors
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.slow
def test_a_folder_that_is_not_ours_is_refused_before_anything_runs(place: Any) -> None:
    done = place.run("demo", "--state", str(place.folder))

    assert (4, 1) == (done.status, done.err.count("\n"))
    assert ["workflows.py"] == [path.name for path in place.folder.iterdir()]


# -- the proof -----------------------------------------------------------------------------


def ran(step: str, attempt: int, pid: int) -> list[Execution]:
    return [Execution(what=what, step=step, attempt=attempt, pid=pid) for what in ("start", "end")]


def proof_of(*executions: list[Execution], **attempts: str) -> Proof:
    recorded = {(name.rstrip("0123456789"), int(name[-1])): outcome for name, outcome in attempts.items()}
    return prove([line for lines in executions for line in lines], recorded, STORY)


def test_a_lost_attempt_and_its_successor_are_no_fault() -> None:
    proof = proof_of(
        ran("list", 1, 1), ran("hash", 1, 1)[:1], ran("hash", 2, 2),
        list1="completed", hash1="lost", hash2="completed",
    )  # fmt: skip

    assert (True, 1, ["hash, attempt 1"]) == (proof.holds, proof.kept, proof.lost)


def test_a_recorded_step_that_the_second_process_runs_is_seen() -> None:
    proof = proof_of(ran("list", 1, 1), ran("list", 2, 2), list1="completed", list2="completed")

    assert (False, ["list"]) == (proof.holds, proof.ran_again)


def test_an_attempt_that_ran_twice_is_seen() -> None:
    proof = proof_of(
        ran("list", 1, 1), ran("hash", 1, 2), ran("hash", 1, 2), list1="completed", hash1="completed"
    )

    assert (False, ["hash, attempt 1"]) == (proof.holds, proof.twice)


def test_an_execution_that_is_not_on_record_is_seen() -> None:
    proof = proof_of(ran("list", 1, 1), ran("hash", 1, 2), list1="completed")

    assert (False, ["hash, attempt 1"]) == (proof.holds, proof.unrecorded)


def test_a_result_that_nothing_computed_is_seen() -> None:
    proof = proof_of(ran("list", 1, 1), list1="completed", hash1="completed")

    assert (False, ["hash, attempt 1"]) == (proof.holds, proof.unseen)


def test_a_step_that_was_told_as_recorded_and_is_not_kept_is_seen() -> None:
    assert not proof_of(ran("list", 1, 1)[:1], ran("list", 2, 2), list1="lost", list2="completed").holds


# -- what the steps do ---------------------------------------------------------------------


@pytest.fixture
def birdsong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a distribution of one module, and return the folder that it is installed in."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    info = tmp_path / "birdsong-1.0.dist-info"
    info.mkdir()
    (tmp_path / "birdsong.py").write_text("SONG = 'tirili'\n")
    text = "Metadata-Version: 2.1\nName: birdsong\nVersion: 1.0\nLicense: MIT License\nRequires-Dist: trio\n"
    (info / "METADATA").write_text(text)
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"SONG = 'tirili'\n").digest()).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"birdsong.py,sha256={digest},16\nbirdsong-1.0.dist-info/RECORD,,\n")
    return tmp_path


BIRDSONG = Found(name="birdsong", version="1.0")


def test_files_as_their_record_says_match(birdsong: Path) -> None:
    files = hash_files(BIRDSONG)

    assert (1, [], []) == (files.match, files.changed, files.missing)
    assert BIRDSONG in list_distributions()


def test_a_changed_file_and_a_missing_one_are_told(birdsong: Path) -> None:
    record = birdsong / "birdsong-1.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + "chorus.py,sha256=abc,3\n")
    (birdsong / "birdsong.py").write_text("SONG = 'kraa'\n")

    files = hash_files(BIRDSONG)

    assert (0, ["birdsong.py"], ["chorus.py"]) == (files.match, files.changed, files.missing)


def test_a_compiled_file_that_is_gone_is_no_fault(birdsong: Path) -> None:
    record = birdsong / "birdsong-1.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + "__pycache__/birdsong.cpython-311.pyc,,\n")

    assert 1 == hash_files(BIRDSONG).match


def test_a_locale_without_our_characters_is_no_reason_to_fail(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")

    assert 0 == place.run("demo", "--fast", "--state", str(place.state)).status


def test_a_distribution_without_a_record_is_a_line_and_no_error(birdsong: Path) -> None:
    (birdsong / "birdsong-1.0.dist-info" / "RECORD").unlink()

    files = hash_files(BIRDSONG)
    report: Report = sum_up([BIRDSONG], [files], [classify(read_metadata(BIRDSONG).licence)])

    assert (None, False) == (files.match, files.record)
    assert (["birdsong"], {"MIT": 1}) == (report.without_record, report.licences)


@pytest.mark.parametrize(
    ("facts", "licence"),
    [
        (LicenceFacts(expression="MIT OR GPL-3.0-only"), ("MIT OR GPL-3.0-only", "expression", "permissive")),
        (
            LicenceFacts(classifiers=["License :: OSI Approved :: GNU Affero General Public License v3"]),
            ("AGPL-3.0-only", "classifier", "copyleft"),
        ),
        (
            LicenceFacts(classifiers=["License :: OSI Approved"], field="BSD 3-Clause"),
            ("BSD", "field", "permissive"),
        ),
        (LicenceFacts(field="GNU LGPL"), ("LGPL", "field", "weak copyleft")),
        (LicenceFacts(text="Permission is hereby granted,\nfree of charge"), ("MIT", "text", "permissive")),
        (LicenceFacts(field="Ask Ada"), (None, "none", "unknown")),
    ],
)
def test_a_licence_is_read_from_the_most_exact_source(
    facts: LicenceFacts, licence: tuple[str | None, str, str]
) -> None:
    found: Licence = classify(facts)

    assert licence == (found.spdx, found.source, found.family)
