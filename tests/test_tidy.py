"""The house style as a test: bounds on files and functions, docstrings, words, and exceptions to lint.

Ruff, the type checkers and the layer check cover the rest; what stands here is what they cannot say.
Each bound is a ratchet: it keeps small things from growing. An exception is listed with its reason.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("actors", "benchmarks", "cli", "engine", "storage")
FOLDERS = (*FLOORS, "src", "tests", "examples")
TEXTS = {".css", ".html", ".js", ".json", ".md", ".py", ".pyi", ".sh", ".sql", ".toml", ".txt", ".yml"}
TEXT_NAMES = {"LICENSE", "Makefile", "run"}
ALSO = (*FOLDERS, "docs", ".ci")

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

LONG_FILES: dict[str, str] = {}
"""Path of a file that may be longer -> the reason."""

LONG_FUNCTIONS: dict[str, str] = {}
"""`path::function` that may be longer -> the reason."""

# Ada and "you" are the people of our examples; anybody else's folder got here by accident.
FORBIDDEN = {
    "somebody's home folder": r"(?<![\w.])/(?:home|Users)/(?!ada\b|you\b)[a-z]|(?<![\w.])/(?:root)/",
    "somebody's home folder on Windows": r"[A-Z]:\\Users\\",
    "a folder of one machine": r"(?<![\w.<>*-])/(?:work|workspace|workdir|opt)/\w",
    "a package host": r"(?:\bpypi|\bpythonhosted|\bnpmjs|\banaconda)\.(?:org|com)\b",
    "an option that names a package host": r"--(?:index-url|extra-index-url|find-links|trusted-host)\b",
    "a mark of an unfinished merge": r"^(?:<{7} |>{7} )",
}

DIRECTIVE = re.compile(
    r"""\#\ *(?:
        noqa(?P<rules>:\ *[A-Z]+[0-9]+(?:[,\ ]+[A-Z]+[0-9]+)*)?
      | (?:ruff|flake8):\ *noqa(?::[^#]*)?
      | type:\ *ignore(?:\[[\w,\ -]*\])?
      | pyright:\ *(?:ignore(?:\[[\w,\ ]*\])?|[\w=,\ ]+)
      | mypy:[^#]*
      | pragma:\ *no\ (?:cover|branch)
    )""",
    re.VERBOSE,
)
REASON_LETTERS_MIN = 8


def python_files() -> list[Path]:
    """Return each Python file once: the links in src/perdure lead to folders that are walked anyway."""
    return [path for path in text_files() if path.suffix == ".py" and path.parts[len(ROOT.parts)] in FOLDERS]


def text_files() -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in ALSO:
        found += [path for path in walk(ROOT / folder) if path.is_file()]
    return sorted(path for path in found if path.suffix in TEXTS or path.name in TEXT_NAMES)


def walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink() and path.name != "__pycache__":
            yield from walk(path)
        elif path.is_file():
            yield path


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def parse(path: Path) -> ast.Module:
    return ast.parse(read(path), filename=str(path))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def has_reason(comment: str) -> bool:
    return len(re.findall(r"[^\W\d_]", DIRECTIVE.sub("", comment))) >= REASON_LETTERS_MIN


def test_no_file_is_too_long_to_hold_in_mind() -> None:
    lengths = {named(path): read(path).count("\n") for path in python_files()}
    long = {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX}
    for name in LONG_FILES:
        long.pop(name, None)

    assert {} == long


def test_no_function_is_longer_than_a_page() -> None:
    long = [
        f"{named(path)}::{node.name} has {lines} lines"
        for path in python_files()
        for node in functions(parse(path))
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
        and f"{named(path)}::{node.name}" not in LONG_FUNCTIONS
    ]

    assert [] == long


def test_each_listed_exception_is_still_one() -> None:
    gone = [name for name in LONG_FILES if read(ROOT / name).count("\n") <= FILE_LINES_MAX]
    for name in LONG_FUNCTIONS:
        path, _, function = name.partition("::")
        lengths = [
            (node.end_lineno or 0) - node.lineno + 1
            for node in functions(parse(ROOT / path))
            if node.name == function
        ]
        gone += [name] if max(lengths, default=0) <= FUNCTION_LINES_MAX else []

    assert [] == gone


def test_every_module_says_what_it_is() -> None:
    silent = [
        named(path)
        for path in python_files()
        if not ast.get_docstring(parse(path)) and not (path.name == "__init__.py" and not read(path))
    ]

    assert [] == silent


def test_no_text_tells_where_it_was_written() -> None:
    found = [
        f"{named(path)}:{number}: {what}"
        for path in text_files()
        for number, line in enumerate(read(path).splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if re.search(pattern, line)
    ]

    assert [] == found


def test_no_underscored_name_crosses_a_file() -> None:
    crossing = [
        f"{named(path)}:{node.lineno}: {ast.unparse(node)}"
        for path in python_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom | ast.Import) and any(map(is_private, imported_names(node)))
    ]

    assert [] == crossing


def imported_names(node: ast.ImportFrom | ast.Import) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        yield from (node.module or "").split(".")
    for alias in node.names:
        yield from alias.name.split(".")


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def test_the_floors_are_imported_under_one_name() -> None:
    bare = [
        f"{named(path)}:{node.lineno}: {ast.unparse(node)}"
        for path in python_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom | ast.Import) and set(top_modules(node)) & set(FLOORS)
    ]

    assert [] == bare


def top_modules(node: ast.ImportFrom | ast.Import) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [] if node.level or node.module is None else [node.module.split(".")[0]]


def test_every_exception_to_lint_carries_its_reason_on_its_line() -> None:
    bare = [
        f"{named(path)}:{number}: {comment}"
        for path in python_files()
        for number, comment in comments(read(path))
        if DIRECTIVE.search(comment) and not has_reason(comment)
    ]

    assert [] == bare


def test_no_exception_to_lint_is_a_blanket() -> None:
    blanket = [
        f"{named(path)}:{number}: {comment}"
        for path in python_files()
        for number, comment in comments(read(path))
        for directive in DIRECTIVE.finditer(comment)
        if directive.group().endswith(("noqa", "ignore"))
    ]

    assert [] == blanket


def test_every_rule_that_ruff_ignores_has_its_reason() -> None:
    config = read(ROOT / "pyproject.toml").split("[tool.ruff.lint]")[1].split("[tool.ruff.lint.flake8")[0]
    ignored = [line for line in config.splitlines() if re.match(r'\s+"[A-Z]+\d*",|"\S+" = \["', line)]
    bare = [line for line in ignored if not re.search(r"#.{8,}", line)]

    assert ignored
    assert [] == bare


@pytest.mark.parametrize(
    "comment",
    [
        "# noqa: S608 - the table's name is a constant",
        "# type: ignore[arg-type]  # the stub is wrong about None",
        "# pyright: ignore[reportPrivateUsage]  # no public way to ask",
        "# pragma: no cover - only after a crash",
    ],
)
def test_a_reason_is_recognised(comment: str) -> None:
    assert DIRECTIVE.search(comment)
    assert has_reason(comment)


@pytest.mark.parametrize(
    "comment", ["# noqa: S608", "# noqa: S608, PLR2004", "# type: ignore[arg-type, misc]"]
)
def test_a_missing_reason_is_noticed(comment: str) -> None:
    assert DIRECTIVE.search(comment)
    assert not has_reason(comment)
