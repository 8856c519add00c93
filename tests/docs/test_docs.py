"""The documentation's code runs, its links lead somewhere. The skeletons of CONTRIBUTING have a test of their own."""

import re
import sys
import types
from pathlib import Path

import pytest

from thalweg.run.fit import Request, fit

ROOT = Path(__file__).parents[2]
GUIDE, EXPERIMENTS = (sorted((ROOT / "docs" / kind).glob("*.md")) for kind in ("guide", "experiments"))
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]+))?[^)]*\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
DATE, COMMAND = re.compile(r"\b\d{1,2} [A-Z][a-z]+ 20\d\d\b"), re.compile(r"\b(python benchmarks/|thalweg )\w+")
SMALL = ("energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16", "data.limit=300", "train.precision=fp32")
SMALL += ("sampler.num_steps=5",)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[str]:
    """The page's runnable python blocks, in order; skeletons are files, not sessions.

    Those of the Chinese README are README's, which test_front_door.py sees to.
    """
    if page.name in ("CONTRIBUTING.md", "README.zh.md"):
        return []
    return [code for options, code in BLOCK.findall(page.read_text("utf-8")) if "no-run" not in options]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small run of digits in runs/demo, where the pages' code is run."""
    folder = tmp_path_factory.mktemp("docs")
    request = Request(data="mnist", steps=3, overrides=SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("THALWEG_DATA", raising=False)
        fit(request, folder / "runs" / "demo", tensorboard=False)
    return folder


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=name)
def test_code_runs(page, place, monkeypatch):
    """Blocks of a page are one session, run where a small run lies in runs/demo."""
    monkeypatch.chdir(place)
    session = types.ModuleType("docs_session")
    monkeypatch.setitem(sys.modules, "docs_session", session)
    for number, code in enumerate(blocks(page), 1):
        exec(compile(code, f"{page.name}[{number}]", "exec"), session.__dict__)


def test_the_pages_have_code():
    assert "README.md" in {name(p) for p in PAGES if blocks(p)}


def test_pages_are_of_two_kinds():
    """A guide has an example that runs; an experiment has a date and a command, and no code to run."""
    kinds = ("docs/guide/", "docs/experiments/", "docs/decisions.md")
    assert [name(p) for p in PAGES if name(p).startswith("docs/") and not name(p).startswith(kinds)] == []
    assert [name(p) for p in GUIDE if not blocks(p)] == []
    assert [name(p) for p in EXPERIMENTS if blocks(p) or not DATE.search(p.read_text("utf-8"))] == []
    assert [name(p) for p in EXPERIMENTS if not COMMAND.search(p.read_text("utf-8"))] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text("utf-8")):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name(page)}: {target}"
        if anchor:
            headings = HEADING.findall(path.read_text("utf-8"))
            known = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, f"{name(page)}: {target}#{anchor}"
