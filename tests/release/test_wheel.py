"""Wheel and sdist: two builds of one tree have the same bytes (R34); the wheel holds the package and nothing else."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import thalweg

ROOT = Path(__file__).parents[2]
FILES = ("src", "tests", "pyproject.toml", "constraints.txt", "constraints-oldest.txt", "README.md", "LICENSE")
UNUSED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


def built(folder: Path, seconds: int, umask: int) -> dict[str, Path]:
    """Wheel and sdist of a copy of the tree whose files have that time and were written under that umask."""
    before = os.umask(umask)
    try:
        for name in FILES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, folder / "tree" / name, **({"ignore": UNUSED} if copy is shutil.copytree else {}))
        for path in (folder / "tree").rglob("*"):
            os.utime(path, (seconds, seconds))
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        words = [sys.executable, "-m", "hatchling", "build", "-d", str(folder / "dist")]
        env = {**os.environ, "SOURCE_DATE_EPOCH": "1790000000"}
        done = subprocess.run(words, cwd=folder / "tree", env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    finally:
        os.umask(before)
    return {path.suffix: path for path in (folder / "dist").iterdir()}


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    folders = (tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second"))
    for folder in folders:
        (folder / "tree").mkdir()
    return [built(folders[0], 1_600_000_000, 0o022), built(folders[1], 1_700_000_000, 0o077)]


def test_two_builds_have_the_same_bytes(builds):
    assert builds[0].keys() == {".whl", ".gz"}
    one, other = ({kind: hashlib.sha256(p.read_bytes()).hexdigest() for kind, p in build.items()} for build in builds)
    assert one == other


def test_the_wheel_holds_the_package_and_nothing_else(builds):
    with zipfile.ZipFile(builds[0][".whl"]) as wheel:
        names = set(wheel.namelist())
    source = Path(thalweg.__file__).parent
    files = {p.relative_to(source.parent).as_posix() for p in source.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert {name for name in names if ".dist-info/" not in name} == files
    assert {name.rpartition("/")[2] for name in names - files} == {
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"),
    }


def test_every_dependency_has_a_licence_in_the_list():
    """`make licences` writes it."""
    page = (ROOT / "THIRD_PARTY.md").read_text("utf-8")
    listed = set(re.findall(r"^\| \[?([\w.-]+)", page, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert sorted(wanted - listed) == []
