"""What the pages say is true: see conftest.py for how each kind of block is tried."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest

pytestmark = pytest.mark.checkout

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PAGES: Final = [
    "README.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md"))),
]
LINK: Final = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, indirect=True)
def test_every_example_of_a_page_does_what_the_page_says(page: Any) -> None:
    page.try_all()


@pytest.mark.parametrize("page", PAGES, indirect=True)
def test_every_file_of_a_page_is_used_by_a_later_block(page: Any) -> None:
    for index, block in enumerate(page.blocks):
        if block.file is not None and block.language == "python":
            stem = Path(block.file).stem
            later = "\n".join(other.text for other in page.blocks[index + 1 :])
            assert re.search(rf"\b{stem}\b", later), f"{block.page}:{block.line}: nothing runs {block.file}"


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_within_the_repository_leads_somewhere(name: str) -> None:
    for found in LINK.finditer(text_of(name)):
        target = found.group(1) or found.group(2)
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            path = (ROOT / name).parent / file if file else ROOT / name
            assert path.exists(), f"{name} links to {target}"
            assert not anchor or path.suffix != ".md" or anchor in anchors_of(path), (
                f"{name} links to {target}"
            )


@pytest.mark.parametrize("name", PAGES)
def test_every_make_target_that_a_page_names_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text_of(name), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("name", PAGES)
def test_every_block_says_what_it_is(name: str) -> None:
    fences = re.findall(r"^```(\w*)", text_of(name), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "text", "console", "sh", "toml", "sql", "ts", "json"}
    assert set(fences[1::2]) <= {""}
