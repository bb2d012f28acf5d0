"""Check what a built wheel and sdist hold against the source tree.

Run by `make wheel` and `.ci/run` with the folder of the built files. The floors are links in
the checkout and real folders in the wheel, and a build that walks them wrongly loses a floor
without a word: so the wheel must hold each source file of the package, and nothing else.

Invariants:
    The tree is only read.
    The wheel is compared both ways: what is missing is an error, and so is what is too much.
"""

from __future__ import annotations

import stat
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

FLOORS: Final = ("actors", "benchmarks", "cli", "engine", "storage")
LEFT_BEHIND: Final = {".pyc", ".pyo"}
SDIST_ALSO: Final = {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO"}


def package_files(tree: Path) -> set[str]:
    """Name each file the package consists of, as its path in the wheel."""
    face = tree / "src" / "perdure"
    names = {f"perdure/{path.name}" for path in face.iterdir() if path.is_file() and not path.is_symlink()}
    for floor in FLOORS:
        files = (path for path in (tree / floor).rglob("*") if path.is_file())
        names |= {f"perdure/{path.relative_to(tree).as_posix()}" for path in files}
    return {name for name in names if PurePosixPath(name).suffix not in LEFT_BEHIND}


def wheel_faults(wheel: Path, expected: set[str]) -> list[str]:
    """List what is wrong with a wheel; an empty list means nothing is."""
    with zipfile.ZipFile(wheel) as archive:
        members = archive.infolist()
    links = {member.filename for member in members if stat.S_ISLNK(member.external_attr >> 16)}
    names = {member.filename for member in members if not member.is_dir()}
    metadata = {name for name in names if name.split("/", 1)[0].endswith(".dist-info")}
    faults = [f"{wheel.name}: {name} is a link" for name in sorted(links)]
    faults += [f"{wheel.name}: {name} is missing" for name in sorted(expected - names)]
    faults += [f"{wheel.name}: {name} is too much" for name in sorted(names - metadata - expected)]
    if not any(name.endswith("/licenses/LICENSE") for name in metadata):
        faults.append(f"{wheel.name}: the license is missing")
    return faults


def sdist_faults(sdist: Path, expected: set[str]) -> list[str]:
    """List what is wrong with an sdist: it holds the floors as folders, and no links."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    names = {member.name.split("/", 1)[1] for member in members if member.isfile()}
    wanted = SDIST_ALSO | {source_name(name) for name in expected}
    links = [member.name for member in members if member.issym() or member.islnk()]
    faults = [f"{sdist.name}: {name} is a link" for name in links]
    return faults + [f"{sdist.name}: {name} is missing" for name in sorted(wanted - names)]


def source_name(packaged: str) -> str:
    """Return where in the tree a file of the wheel comes from."""
    inside = packaged.removeprefix("perdure/")
    return inside if inside.split("/", 1)[0] in FLOORS else f"src/perdure/{inside}"


def main(folder: Path, tree: Path) -> int:
    """Check every wheel and sdist in `folder`; return how many faults were found, at most 1."""
    expected = package_files(tree)
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    faults = [fault for wheel in wheels for fault in wheel_faults(wheel, expected)]
    faults += [fault for sdist in sdists for fault in sdist_faults(sdist, expected)]
    if not wheels:
        faults.append(f"{folder}: no wheel was built")
    report = faults or [f"{', '.join(path.name for path in wheels + sdists)}: whole, {len(expected)} files"]
    sys.stdout.write("\n".join(report) + "\n")
    return min(len(faults), 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(__file__).resolve().parents[2]))
