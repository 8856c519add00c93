"""The versions that pyproject.toml declares are those that were tried: the oldest, and the ones of constraints.txt."""

import ast
import os
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TORCH = Version("2.6"), Version("2.11")  # torch.accelerator came with the first; the floor may not be above the second

TOOLS = ("dev", "docs", "release")  # what no user installs; at the versions of constraints.txt


def pins(name: str) -> dict[str, Version]:
    """The versions that a constraints file fixes, by canonical name."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines())
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(r.name): Version(next(iter(r.specifier)).version) for r in found}


def floors() -> dict[str, dict[str, Version]]:
    """The lower bounds of the dependencies ("") and of each extra, by canonical name; exact versions are left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, dict[str, Version]] = {}
    for group, lines in groups.items():
        for requirement in map(Requirement, lines):
            bounds = {s.operator: Version(s.version) for s in requirement.specifier}
            assert bounds.keys() in ({">="}, {"=="}), f"{requirement}: want one lower bound, or one version"
            if ">=" in bounds:
                found.setdefault(group, {})[canonicalize_name(requirement.name)] = bounds[">="]
    return found


def drift(floors: dict[str, dict[str, Version]], oldest: dict[str, Version], newest: dict[str, Version]) -> list[str]:
    """What is declared and not what was tried."""
    told = []
    for group, bounds in floors.items():
        for name, floor in bounds.items():
            if name == "torch" or group == "bench":
                continue
            if group in TOOLS and name not in oldest:
                tried = newest[name]
                if floor.release != tried.release[: len(floor.release)]:
                    told.append(f"{name}>={floor}: constraints.txt has {tried}")
            elif oldest.get(name) != floor:
                told.append(f"{name}>={floor}: constraints-oldest.txt has {oldest.get(name)}")
            elif name in newest and newest[name] < floor:
                told.append(f"{name}>={floor}: constraints.txt has {newest[name]}")
    return told


def test_lower_bounds_are_the_versions_that_are_tried():
    assert drift(floors(), pins("constraints-oldest.txt"), pins("constraints.txt")) == []
    assert TORCH[0] <= floors()[""]["torch"] <= TORCH[1]
    assert floors()[""]["pillow"] >= Version("12.3"), "older ones have known vulnerabilities"


@pytest.mark.parametrize(
    ("group", "name", "floor"),
    [("", "numpy", "1.25"), ("", "numpy", "1.26.1"), ("", "new", "1"), ("dev", "ruff", "0.16"), ("pyod", "pyod", "3")],
)
def test_the_check_meets_what_it_should(group, name, floor):
    changed = floors()
    changed[group][name] = Version(floor)
    assert len(drift(changed, pins("constraints-oldest.txt"), pins("constraints.txt"))) == 1


@pytest.mark.skipif("THALWEG_OLDEST" not in os.environ, reason="make test-oldest")
def test_the_oldest_versions_are_the_ones_that_run():
    oldest = pins("constraints-oldest.txt")
    assert {name: Version(version(name)) for name in oldest} == oldest


def test_whatever_is_imported_is_declared():
    """Fault: narwhals and click were imported, and came along with others. Mutant: an import of click."""
    declared = {name for bounds in floors().values() for name in bounds}
    given = packages_distributions()
    found = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"thalweg"}:
                found[top] = {canonicalize_name(name) for name in given.get(top, [top])}
    assert {"torch", "numpy", "narwhals"} <= found.keys()
    foreign = {top for top, names in found.items() if not names & declared}
    assert foreign == {"pydantic_core"}, "which pydantic fixes to one version"
