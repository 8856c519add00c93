"""Build the documentation site into build/site: pages of the repository, and pages of the API from the docstrings.

    python docs/site/build.py [--keep]

The sources are laid out below build/site-source as they lie in the repository, so that their links to each other hold.
Pages are found by their folder; only the order of the guides is written here. Warnings are errors, links to pages and
anchors that are not there among them; then every public name is looked for in the index of the site.
"""

import argparse
import json
import re
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path

from markup import escaped
from names import Module, Name, first_use, modules
from sphinx.cmd.build import main as sphinx
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).parents[2]
SOURCES, SITE = ROOT / "build" / "site-source", ROOT / "build" / "site"
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "THIRD_PARTY.md", "AGENTS.md")
GUIDES = {
    "Train": ("train", "images", "large-data", "your-own", "runs", "monitor", "vision", "devices", "gotchas"),
    "Apply": ("detect", "detect_images", "detect_columns", "detect_input", "detect_energy", "tables", "classify",
              "conditional", "words", "inpaint", "rerank", "landscape"),
    "Understand and extend": ("concepts", "likelihood", "samplers", "attention", "components", "benchmarks"),
}  # fmt: skip


def main() -> int:
    """Lay out, build, check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="keep what an earlier call built, and build what changed")
    keep = parser.parse_args().keep
    for folder in () if keep else (SOURCES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    known = modules()
    lay_out(known)
    start = time.process_time()
    words = ["-W", "--keep-going", "-q", "-b", "html", "-c", Path(__file__).parent, "-d", SOURCES / ".doctrees"]
    failed = sphinx([*map(str, words), str(SOURCES), str(SITE)])
    missing = unlisted(known) if not failed else []
    for name in missing:
        print(f"{name}: has no entry in the site", file=sys.stderr)
    print(f"{SITE.relative_to(ROOT)}/index.html, {time.process_time() - start:.0f} s of processor time")
    return int(bool(failed or missing))


def lay_out(known: list[Module]) -> None:
    """Write the sources of the site."""
    write("index.md", home())
    for page in ("README.zh.md", *PROJECT, "LICENSE"):
        if (ROOT / page).exists():
            write(page, (ROOT / page).read_text("utf-8"))
    shutil.copytree(ROOT / "docs" / "pictures", SOURCES / "docs" / "pictures", dirs_exist_ok=True)
    for page in sorted((ROOT / "docs").rglob("*.md")):
        write(page.relative_to(ROOT).as_posix(), page.read_text("utf-8"))
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        write(f"examples/{notebook.stem}.md", page_of(notebook))
    write("benchmarks/README.md", (ROOT / "benchmarks" / "README.md").read_text("utf-8"))
    write("examples/plugin/README.md", (ROOT / "examples" / "plugin" / "README.md").read_text("utf-8"))
    write(
        "examples/index.md",
        listing("Examples", "A notebook for each application, and a plug-in package.", ["*", "plugin/README"]),
    )
    write("docs/experiments/index.md", listing("Experiments", "What was measured, with the command.", ["*"]))
    for module in known:
        write(f"api/{module.name}.rst", page_of_module(module, known))
    write("api/index.md", index_of(known))
    write("api/names.md", names_of(known))


def write(path: str, text: str) -> None:
    """Write a source unless it is there already, so that Sphinx sees what has changed; its links fit the site."""
    target = SOURCES / path
    target.parent.mkdir(parents=True, exist_ok=True)
    text = fitted(text, path) if path.endswith(".md") else text
    if not target.exists() or target.read_text("utf-8") != text:
        target.write_text(text, "utf-8")


LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s:]+)(#[^)\s]*)?\)")


def fitted(text: str, page: str) -> str:
    """The page with links to what the site has in place of the repository's files."""
    here = (ROOT / page).parent

    def change(match: re.Match[str]) -> str:
        path = (here / match[2]).resolve()
        if not path.is_relative_to(ROOT):
            return match[0]
        name = path.relative_to(ROOT).as_posix()
        if name == "README.md":
            name = "index.md"
        elif name.startswith("src/thalweg") and path.suffix == ".py":
            name = f"api/{name[4:].removesuffix('.py').removesuffix('/__init__').replace('/', '.')}.rst"
        elif path.suffix == ".ipynb":
            name = f"{name.removesuffix('.ipynb')}.md"
        elif name == "examples/plugin":
            name = "examples/plugin/README.md"
        elif path.is_dir():
            name = f"{name}/index.md"
        elif path.is_file() and not (SOURCES / name).exists():
            (SOURCES / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, SOURCES / name)
        return f"{match[1]}{relative(name, page)}{match[3] or ''})"

    return LINK.sub(change, text)


def relative(name: str, page: str) -> str:
    """A path of the sources as a page names it."""
    return "../" * page.count("/") + name


def toctree(caption: str, entries: list[str], hidden: bool = True) -> str:
    """A part of the navigation."""
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden + [":glob:"]
    return "\n".join(["```{toctree}", *options, "", *entries, "```", ""])


def home() -> str:
    """README, and the navigation: the guides by task, what was measured, the API, and the project's own pages."""
    listed = {stem for stems in GUIDES.values() for stem in stems}
    parts = {caption: [f"docs/guide/{stem}" for stem in stems] for caption, stems in GUIDES.items()}
    parts = {caption: [page for page in pages if (ROOT / f"{page}.md").exists()] for caption, pages in parts.items()}
    more = sorted(path.stem for path in (ROOT / "docs" / "guide").glob("*.md") if path.stem not in listed)
    if more:
        parts["More guides"] = [f"docs/guide/{stem}" for stem in more]
    others = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "docs").glob("*.md"))
    project = [*others, *(page.removesuffix(".md") for page in PROJECT if (ROOT / page).exists())]
    parts |= {
        "Measured": ["docs/experiments/index", "Programs that measure <benchmarks/README>"],
        "Reference": ["Every public name <api/names>", "API <api/index>", "Examples <examples/index>"],
        "Project": [*project, *["README.zh"] * (ROOT / "README.zh.md").exists()],
    }
    first, _, rest = (ROOT / "README.md").read_text("utf-8").partition("\n")
    text = f"{first} · [every public name](api/names.md) · [experiments](docs/experiments/index.md)\n{rest}"
    return "\n".join([text, *(toctree(caption, pages) for caption, pages in parts.items())])


def listing(title: str, sentence: str, entries: list[str]) -> str:
    """A page that lists others."""
    return f"# {title}\n\n{sentence}\n\n{toctree('', entries, hidden=False)}"


def page_of(notebook: Path) -> str:
    """A notebook as a page; the repository keeps no outputs of notebooks."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    texts = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for text, kind in texts) + "\n"


def page_of_module(module: Module, known: list[Module]) -> str:
    """What a module says of itself, the modules in it, then its names in the order of the source.

    No part of the navigation: it would be formed anew for each of some hundred pages. The first line leads up.
    """
    line, names = "=" * len(module.name), {other.name for other in known}
    above = packages_of(module.name, names)
    path = " / ".join([":doc:`API <index>`", *(f":doc:`{name.rpartition('.')[2]} <{name}>`" for name in above)])
    out = [":orphan:", "", module.name, line, "", path, "", f".. automodule:: {module.name}", "   :no-members:", ""]
    inside = [other for other in known if packages_of(other.name, names)[-1:] == [module.name]]
    if inside:
        out += [".. list-table::", "   :widths: auto", "   :header-rows: 1", "", "   * - module", "     - holds"]
        for other in inside:
            name = other.name.removeprefix(f"{module.name}.")
            out += [f"   * - :doc:`{name} <{other.name}>`", f"     - {escaped(other.summary)}"]
        out.append("")
    out += [f".. py:currentmodule:: {module.name}", ""]
    for name in module.names:
        out += entry(name)
    if module.name == "thalweg":
        kinds = {f"{other.name}.{name.name}": name.kind for other in known for name in other.names}
        here = [(name, f"{home}.{name}", home) for name, home in first_use().items()]
        for name, full, _ in here:
            out += [f".. py:{kinds[full]}:: {name}", "   :no-typesetting:", ""]
        out += [f"- :py:obj:`thalweg.{name} <{full}>`, defined in :py:mod:`{home}`" for name, full, home in here]
    return "\n".join(out) + "\n"


def packages_of(name: str, known: set[str]) -> list[str]:
    """The packages that a module lies in, the outermost first; a folder without `__init__.py` is none."""
    parts = name.split(".")
    return [above for n in range(1, len(parts)) if (above := ".".join(parts[:n])) in known]


def entry(name: Name) -> list[str]:
    """The directive of a name."""
    if name.kind != "data":
        return [f".. auto{name.kind}:: {name.name}", ""]
    value = [f"   :value: {name.value}"] * bool(name.value)
    return [f".. py:data:: {name.name}", *value, "", f"   {escaped(name.comment)}", ""]


def index_of(known: list[Module]) -> str:
    """The packages, each with its sentence."""
    top = [m for m in known if m.name.count(".") <= 1]
    rows = [f"| [{m.name}]({m.name}.rst) | {cell(m.summary)} |" for m in top]
    return "\n".join(["# API", "", "[Every public name](names.md), by module.", "", "| package | holds |", "|---|---|",
                      *rows, ""])  # fmt: skip


def names_of(known: list[Module]) -> str:
    """Every public name by module, each a link."""
    parts = ["# Every public name", ""]
    groups = defaultdict(list)
    for module in known:
        groups[".".join(module.name.split(".")[:2])].append(module)
    for group, members in groups.items():
        parts += [f"## {group}", "", "| module | names |", "|---|---|"]
        for module in members:
            homes = [(name.name, module.name) for name in module.names]
            homes = homes if module.name != "thalweg" else list(first_use().items())
            links = ", ".join(f"[{name}](#{home}.{name})" for name, home in homes)
            parts.append(f"| [{module.name}]({module.name}.rst) | {links} |")
        parts.append("")
    return "\n".join(parts)


def cell(text: str) -> str:
    """Text of a table's cell."""
    return text.replace("|", "\\|").replace("*", "\\*")


def unlisted(known: list[Module]) -> list[str]:
    """Public names that the built site's index lacks."""
    with (SITE / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    there = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    wanted = [m.name for m in known] + [f"{m.name}.{name.name}" for m in known for name in m.names]
    wanted += [f"thalweg.{name}" for name in first_use()]
    return [name for name in wanted if name not in there]


if __name__ == "__main__":
    sys.exit(main())
