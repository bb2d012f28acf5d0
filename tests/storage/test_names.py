"""Names survive file systems that fold case or normalise, and bad ones are refused with the rule."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perdure.errors import InvalidArgumentError, InvalidIdError, InvalidNameError
from perdure.limits import FILE_NAME_BYTES_MAX, ID_CHARS_MAX
from perdure.storage.names import (
    STATE_ENTRIES,
    check_event_type,
    check_instance_id,
    check_step_name,
    check_workflow_name,
    file_stem,
    folder_name,
)

text = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=ID_CHARS_MAX)
workflow_names = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_-]{0,20}", fullmatch=True)
DEVICES = ["con", "prn", "aux", "nul", "com0", "com1", "com9", "lpt1", "lpt9"]


def as_a_folding_file_system_sees(name: str) -> str:
    return unicodedata.normalize("NFKD", name.casefold())


def is_reserved_somewhere(name: str) -> bool:
    return name.partition(".")[0].lower() in DEVICES or name[0] in ".-" or name[-1] in ". "


@given(text, text)
@example("a", "A")
@example("ss", "ß")
@example("é", "e\u0301")
@example("K", "\u212a")
@example("%41", "A")
@example("con", "%63on")
@example("x" * 300, "x" * 299 + "y")
@example("X" * 300, "x" * 300)
def test_no_two_ids_share_a_file_on_a_folding_file_system(one: str, other: str) -> None:
    same = as_a_folding_file_system_sees(file_stem(one)) == as_a_folding_file_system_sees(file_stem(other))
    assert (one == other) is same


@given(st.lists(text, min_size=2, max_size=2, unique=True).map(lambda ids: (ids[0], ids[0].swapcase())))
def test_changing_the_case_of_an_id_changes_its_file(ids: tuple[str, str]) -> None:
    one, other = ids
    assert (one == other) is (file_stem(one) == file_stem(other))


@given(text)
@example(".")
@example("..")
@example("a.")
@example("a ")
@example("-rf")
@example("nul.txt")
@example("COM1")
@example("con")
@example("\N{GRINNING FACE}" * ID_CHARS_MAX)
def test_a_stem_is_short_plain_and_reserved_nowhere(instance_id: str) -> None:
    stem = file_stem(instance_id)
    assert 1 <= len(stem.encode("ascii")) <= FILE_NAME_BYTES_MAX
    assert not set(stem) & set('/\\:*?"<>| ')
    assert not is_reserved_somewhere(stem)


@pytest.mark.parametrize(
    ("expected", "instance_id"),
    [
        ("tides-1", "tides-1"),
        ("order_2024.03", "order_2024.03"),
        ("%54ides", "Tides"),
        ("a%2fb", "a/b"),
        ("%2e", "."),
        ("%2e%2e", ".."),
        ("a%2e", "a."),
        ("%63on.txt", "con.txt"),
        ("console", "console"),
        ("caf%c3%a9", "café"),
    ],
)
def test_a_stem_reads_like_its_id_and_never_changes(expected: str, instance_id: str) -> None:
    assert expected == file_stem(instance_id)


def test_a_long_id_keeps_a_readable_beginning_and_cuts_no_escape() -> None:
    stem = file_stem("customer-" + "Ü" * 200)
    beginning, mark, digest = stem.partition("~")
    assert beginning.startswith("customer-%c3%9c")
    assert not beginning.replace("%c3", "").replace("%9c", "").strip("customer-")
    assert ("~", 40) == (mark, len(digest))


def test_a_stem_of_exactly_the_limit_is_not_hashed() -> None:
    assert "x" * FILE_NAME_BYTES_MAX == file_stem("x" * FILE_NAME_BYTES_MAX)
    assert "~" in file_stem("x" * (FILE_NAME_BYTES_MAX + 1))


@given(workflow_names, workflow_names)
@example("Room", "Rooms")
@example("CON", "Con1")
def test_workflows_share_a_folder_only_where_case_alone_tells_them_apart(one: str, other: str) -> None:
    assert (one.lower() == other.lower()) is (folder_name(one).lower() == folder_name(other).lower())


@given(
    st.one_of(
        workflow_names,
        st.sampled_from(DEVICES).flatmap(
            lambda device: st.sampled_from([device, device.upper(), device.capitalize()])
        ),
    )
)
def test_a_folder_is_reserved_nowhere_and_begins_with_the_workflow(workflow: str) -> None:
    assert folder_name(workflow).startswith(workflow)
    assert not is_reserved_somewhere(folder_name(workflow))


@pytest.mark.parametrize("check", [check_instance_id, check_step_name, check_event_type])
@pytest.mark.parametrize("value", ["a", "read source[3]", "order/7", "日本", " ", "x" * 100])
def test_ordinary_text_is_a_good_name(check: Callable[[str], None], value: str) -> None:
    check(value)


@pytest.mark.parametrize(
    ("check", "length_max"), [(check_instance_id, 512), (check_step_name, 256), (check_event_type, 100)]
)
def test_a_name_may_be_as_long_as_its_limit_and_no_longer(
    check: Callable[[str], None], length_max: int
) -> None:
    check("x" * length_max)
    with pytest.raises(InvalidArgumentError, match=f"1 to {length_max} characters"):
        check("x" * (length_max + 1))


@pytest.mark.parametrize("check", [check_instance_id, check_step_name, check_event_type, check_workflow_name])
@pytest.mark.parametrize("value", ["", "a\n", "\x00", "a\x7fb", "\x85", "\u2028", "\ud800", None, 7, b"a"])
def test_what_cannot_be_shown_in_one_line_is_refused(check: Callable[[object], None], value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="is not allowed"):
        check(value)


@pytest.mark.parametrize("name", ["ResearchAgent", "a", "_private", "3d-print", "relay2", "x" * 64])
def test_a_class_name_is_a_good_workflow_name(name: str) -> None:
    check_workflow_name(name)


@pytest.mark.parametrize("name", ["-a", "a b", "a.b", "a/b", "..", "é", "x" * 65, "a\n"])
def test_a_workflow_name_outside_the_alphabet_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError, match="1 to 64 of a-z"):
        check_workflow_name(name)


@pytest.mark.parametrize("name", [*sorted(STATE_ENTRIES), "Relay", "CATALOG"])
def test_a_workflow_may_not_take_the_folder_of_the_runtime(name: str) -> None:
    kept = "archive, catalog, locks, relay, sockets, workers"
    with pytest.raises(InvalidNameError, match=f"{name}.*keeps {kept} for itself"):
        check_workflow_name(name)


def test_a_refusal_names_the_value_and_the_rule_in_one_short_line() -> None:
    with pytest.raises(InvalidIdError) as caught:
        check_instance_id("secret\n" * 1000)
    message = str(caught.value)
    assert "instance id 'secret\\nsecret" in message
    assert "7000 characters" in message
    assert "no control characters" in message
    assert "\n" not in message
    assert len(message) < 250
