"""The package as it is installed here, and the check of what a build holds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

HERE = Path(__file__).resolve().parent


def load_wheel_faults() -> Callable[[Path, set[str]], list[str]]:
    """Return `wheel_faults` of the script beside this file: test folders are no packages."""
    spec = importlib.util.spec_from_file_location("perdure_packaging_contents", HERE / "contents.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast("Callable[[Path, set[str]], list[str]]", module.wheel_faults)


wheel_faults = load_wheel_faults()


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[..., Path]:
    def make(*names: str) -> Path:
        path = tmp_path / "perdure-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name in (*names, "perdure-1.dist-info/METADATA", "perdure-1.dist-info/licenses/LICENSE"):
                archive.writestr(name, "")
        return path

    return make


def test_the_smoke_test_passes_from_a_folder_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-I", str(HERE / "smoke.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert (0, "") == (done.returncode, done.stderr)


def test_a_whole_wheel_has_no_faults(make_wheel: Callable[..., Path]) -> None:
    wheel = make_wheel("perdure/__init__.py", "perdure/storage/gate.py")

    assert [] == wheel_faults(wheel, {"perdure/__init__.py", "perdure/storage/gate.py"})


def test_a_wheel_that_lost_a_floor_is_refused(make_wheel: Callable[..., Path]) -> None:
    wheel = make_wheel("perdure/__init__.py")
    faults = wheel_faults(wheel, {"perdure/__init__.py", "perdure/storage/gate.py"})

    assert [f"{wheel.name}: perdure/storage/gate.py is missing"] == faults


def test_a_wheel_with_tests_in_it_is_refused(make_wheel: Callable[..., Path]) -> None:
    wheel = make_wheel("perdure/__init__.py", "tests/test_face.py")
    faults = wheel_faults(wheel, {"perdure/__init__.py"})

    assert [f"{wheel.name}: tests/test_face.py is too much"] == faults


def test_a_link_in_a_wheel_is_refused(make_wheel: Callable[..., Path]) -> None:
    wheel = make_wheel()
    link = zipfile.ZipInfo("perdure/storage")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(link, "../../storage")

    assert f"{wheel.name}: perdure/storage is a link" in wheel_faults(wheel, set())
