"""Print THIRD_PARTY.md: the licence of each package that constraints.txt pins, by pip-licenses.

    python scripts/licences.py > THIRD_PARTY.md      (`make licences`)

Run it where all of them are installed.
"""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Unlicense|CC0|HPND|Zlib|Boost|Public Domain"
)
COPYLEFT = re.compile(r"GPL|MPL|Mozilla|EPL|EUPL|CDDL")


def pinned() -> list[str]:
    """The packages of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return sorted(canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line)


def needed(names: list[str]) -> set[str]:
    """What these packages bring along, and they themselves."""
    found, todo = set(), [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        try:
            requirements = map(Requirement, distribution(name).requires or ())
        except PackageNotFoundError:
            continue
        todo += [
            canonicalize_name(r.name) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})
        ]
    return found


def main() -> None:
    names = pinned()
    words = [
        sys.executable,
        "-m",
        "piplicenses",
        "--from=mixed",
        "--format=json",
        "--with-urls",
        "--with-system",
        "--packages",
        *names,
    ]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    rows = {canonicalize_name(row["Name"]): row for row in found}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    runtime = needed([Requirement(line).name for line in project["dependencies"]])
    missing = sorted(set(names) - set(rows))
    if missing:
        sys.exit(f"install these first: {' '.join(missing)}")
    print("# Licences of the packages that Thalweg uses\n")
    print(
        "Written by `make licences` from `constraints.txt`. A wheel of Thalweg holds none of them; pip installs them."
    )
    print('"Needed" is what `pip install thalweg` brings along; the rest is for extras, tests and documentation.\n')
    table(rows, [name for name in names if name in runtime], "Needed")
    table(rows, [name for name in names if name not in runtime], "For extras, tests and documentation")
    print("## Not only permissive\n")
    print(
        "The MPL covers the files of such a package, not what imports it. Of docutils a tool for an editor is under the"
    )
    print("GPL, the rest in the public domain or permissive.\n")
    for name in names:
        licence = licence_of(name, rows)
        if COPYLEFT.search(licence) or not PERMISSIVE.search(licence):
            print(f"- {name}: {licence}{', needed' * (name in runtime)}")


def licence_of(name: str, rows: dict[str, dict[str, str]]) -> str:
    """The licence on one line."""
    return " ".join(rows[name]["License"].split()).replace("; ", ", ")


def table(rows: dict[str, dict[str, str]], names: list[str], title: str) -> None:
    """A section of the page."""
    print(f"## {title}\n\n| package | version | licence |\n|---|---|---|")
    for name in names:
        url, version = rows[name]["URL"], rows[name]["Version"]
        linked = name if url == "UNKNOWN" else f"[{name}]({url})"
        print(f"| {linked} | {version} | {licence_of(name, rows)} |")
    print()


if __name__ == "__main__":
    main()
