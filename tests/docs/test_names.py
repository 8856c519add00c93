"""Names in the documentation exist: modules, classes, files, settings, commands and their options.

Only the command line is imported; everything else is read from the sources.
"""

import ast
import functools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from thalweg.cli.main import app
from thalweg.cli.rerank import DEFAULT
from thalweg.core.trust import GROUP

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "thalweg"
PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh.md", "llms.txt", "AGENTS.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.ipynb")),
    ROOT / "examples" / "plugin" / "README.md",
]
PACKAGES = {path.name for path in SOURCE.iterdir() if path.is_dir()}
SECTIONS = {"data": "training", "train": "training", "monitor": "training"} | {
    name: name for name in ("energy", "objective", "sampler")
}
TOP = ("src", "tests", "docs", "benchmarks", "examples", "scripts", ".ci", ".github")
OWN = {"mine"}  # what stands for a reader's own file

FULL = re.compile(r"(?<![\w/.])thalweg((?:\.[A-Za-z_]\w*)+)(?::(\w+))?")
SHORT = re.compile(r"`([a-z_]\w*(?:\.(?!(?:py|md|jsonl)\b)\w+)+)(?::(\w+))?")
SETTING = re.compile(r"(?<![\w.])((?:data|train|training|monitor|energy|objective|sampler)(?:\.[a-z_]\w*)+)=")
FILE = re.compile(r"(?<![\w/.:<-])((?:[\w.-]+/)+[\w-]+\.(?:py|md|ipynb|yaml|yml|png))\b")
FOLDER = re.compile(r"`((?:[\w.-]+/)*[\w.-]+/?)`")
WORD = re.compile(r"`(?:([A-Z]\w+)\.)?(\w+)[`(=]")
NAME = re.compile(r"\w+_\w+|_\w+|[A-Z]\w*[a-z]\w*[A-Z]\w*")
SKELETON = re.compile(r"^(?:# |`)src/thalweg/(\S+)\.py(?:`:)?$", re.MULTILINE)
COMMAND = re.compile(r"(?:^|`|-m )thalweg ((?:[a-z]|-)[^`\n]*)", re.MULTILINE)
SCRIPT = re.compile(r"\b(benchmarks/\w+\.py)([^`\n]*)")
MAKE = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)


@functools.cache
def text_of(page: Path) -> str:
    """The page; of a notebook the text and code of its cells."""
    text = page.read_text("utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text.replace("\\\n", " ")


@functools.cache
def skeletons() -> set[str]:
    """Modules that a page shows in full, for the reader to write."""
    return {name.replace("/", ".") for page in PAGES for name in SKELETON.findall(text_of(page))}


@functools.cache
def words() -> set[str]:
    """Every word of the code: the package, its recipes, tests, benchmarks, examples and project files."""
    files = [p for folder in ("src", "tests", "benchmarks", "examples") for p in (ROOT / folder).rglob("*.*")]
    files = [p for p in files if p.suffix in (".py", ".yaml", ".ipynb") and p != Path(__file__)]
    shown = "\n".join(re.findall(r"^```python.*?^```", "\n".join(map(text_of, PAGES)), re.MULTILINE | re.DOTALL))
    return set(re.findall(r"\w+", shown)).union(*(re.findall(r"\w+", p.read_text("utf-8")) for p in files))


@functools.cache
def defined(path: Path) -> dict[str, set[str]]:
    """Names that a module defines or imports; of a class those that its body defines."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            found[node.name] = set(bound(node.body)) | {a.attr for a in ast.walk(node) if isinstance(a, ast.Attribute)}
    return found | {name: found.get(name, set()) for name in bound(ast.parse(path.read_text("utf-8")).body)}


def bound(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.If):  # names that are imported on first use stand under TYPE_CHECKING
            yield from bound(node.body)


def is_there(parts: list[str]) -> bool:
    """Whether thalweg.a.b.C.d is a package, a module, a name in it, or a name in a class in it."""
    if ".".join(["thalweg", *parts]) == GROUP:  # of entry points
        return True
    if any(".".join(parts[:n]) in skeletons() for n in range(1, len(parts) + 1)) or OWN & set(parts):
        return True
    folder = SOURCE
    while parts and (folder / parts[0]).is_dir():
        folder, parts = folder / parts[0], parts[1:]
    if not parts:
        return True
    path = folder / f"{parts[0]}.py"
    path, parts = (path, parts[1:]) if path.exists() else (folder / "__init__.py", parts)
    names = defined(path)
    return not parts or (parts[0] in names and (len(parts) == 1 or parts[1] in names[parts[0]]))


@functools.cache
def settings(section: str) -> set[str]:
    """Keys that a section of a recipe may have, at any depth: fields and arguments of the classes of its package."""
    found = {"type"}
    for path in (SOURCE / SECTIONS[section]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                found |= set(bound([field for field in node.body if isinstance(field, ast.AnnAssign)]))
            elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
                found |= {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
    return found


def is_setting(name: str) -> bool:
    section, *keys = name.split(".")
    return section in SECTIONS and set(keys) <= settings(section)


def is_short(name: str, attribute: str) -> bool:
    """`energy.base.HasGradient`, `train.batch_size` or, of a loaded bundle, `bundle.energy`."""
    parts = name.split(".")
    if parts[0] == "bundle" and parts[1] in defined(SOURCE / "bundle" / "bundle.py")["Bundle"]:
        return True
    return is_setting(name) or is_there(parts + ([attribute] if attribute else []))


def file_is_there(name: str, page: Path) -> bool:
    if any(
        name == f"{folder}/{stem.replace('.', '/')}.py" for stem in skeletons() for folder in ("thalweg", "src/thalweg")
    ):
        return True
    names = (name, f"{name}.py")  # `core/store` is a module
    return any((folder / n).exists() for folder in (ROOT, SOURCE, SOURCE.parent, page.parent) for n in names)


def options(command: str) -> list[str]:
    """What is wrong with `thalweg command`."""
    try:
        tokens = shlex.split(command.split(" #")[0], comments=False)
    except ValueError:  # an apostrophe in a sentence
        return []
    if tokens and f"cli.{tokens[0]}" in skeletons():
        return []
    at = typer.main.get_command(app)
    known = {"--help", "--version", "--install-completion"}
    while tokens and hasattr(at, "commands"):
        if tokens[0] in at.commands:
            at, tokens = at.commands[tokens[0]], tokens[1:]
        elif at.name == "rerank":  # `thalweg rerank RUN CANDIDATES`
            at = at.commands[DEFAULT]
        else:
            break
        known |= {option for parameter in at.params for option in parameter.opts + parameter.secondary_opts}
    if at.name == typer.main.get_command(app).name and not (tokens and tokens[0].startswith("-")):
        return [f"thalweg {command}: no such command"]
    given = {re.split("[=/]", token.strip("[]"))[0] for token in tokens if re.match(r"\[?--?[a-z]", token)}
    return [f"thalweg {command}: no {option}" for option in sorted(given - known)]


def wrong(text: str, page: Path) -> list[str]:
    """Names in a text that do not exist."""
    found = [
        f"thalweg{m[1]}" for m in FULL.finditer(text) if not is_there([*m[1][1:].split("."), *([m[2]] if m[2] else [])])
    ]
    for match in SHORT.finditer(text):
        if match[1].split(".")[0] in PACKAGES | set(SECTIONS) and not file_is_there(match[1], page):
            found += [match[1]] * (not is_short(match[1], match[2]))
    found += [m[1] for m in SETTING.finditer(text) if not is_setting(m[1])]
    found += [
        m[1]
        for m in FILE.finditer(text)
        if m[1].split("/")[0] in {*TOP, *PACKAGES, "thalweg"} and not file_is_there(m[1], page)
    ]
    for match in FOLDER.finditer(text):
        if "/" in match[1] and match[1].split("/")[0] in {*TOP, *PACKAGES} and not file_is_there(match[1], page):
            found.append(match[1])
    for of, name in WORD.findall(text):
        found += [name] * ((bool(of) or bool(NAME.fullmatch(name))) and not {name, of or name} <= words())
    for script, rest in SCRIPT.findall(text):
        code = (ROOT / script).read_text("utf-8") if (ROOT / script).exists() else ""
        found += [
            f"{script} {o}" for o in re.findall(r"(?<![\w-])--[a-z][\w-]*", rest.split("#")[0]) if f'"{o}"' not in code
        ]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    found += [f"make {t}" for t in MAKE.findall(text) if not re.search(rf"^{t}:", makefile, re.MULTILINE)]
    return found + [line for command in COMMAND.findall(text) for line in options(command)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_exist(page):
    assert wrong(text_of(page), page) == []


def test_pages_that_the_code_names_exist():
    files = [
        p for folder in ("src", "benchmarks") for p in (ROOT / folder).rglob("*.*") if p.suffix in (".py", ".yaml")
    ]
    named = {(name, p) for p in files for name in FILE.findall(p.read_text("utf-8")) if name.startswith("docs/")}
    assert len(named) >= 3
    assert [(name, p.name) for name, p in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "text",
    [
        "`thalweg.energy.empirical`",
        "`thalweg.energy.density.kde:SmoothedEmpirical`",
        "from thalweg.apps.fit import Request",
        "thalweg.train_all(data)",
        "`energy.engine.freeze.held`",
        "`training.guard.policy=stop`",
        "`train.guard.politics`",
        "thalweg train mnist energy.embedding=32",
        "`energy/fused.py`",
        "`tests/nothing`",
        "see docs/anomaly.md",
        "`SmoothedEmpirical`",
        "`EnergyDetector.foretell(rows)`",
        "`bundle.paint(x)`",
        "`thalweg paint RUN`",
        "`thalweg detect fit normal.csv --colour red`",
        "`python benchmarks/rates.py --colour`",
        "`make coffee`",
    ],
)
def test_the_check_meets_what_it_should(text):
    assert wrong(text, ROOT / "README.md")
