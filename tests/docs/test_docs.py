"""The documentation's code runs, its links lead somewhere. The skeletons of CONTRIBUTING have a test of their own."""

import re
import sys
import types
from pathlib import Path

import pytest

from thalweg.run.fit import Request, fit

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
SMALL = ("energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16", "data.limit=300", "train.precision=fp32")


def blocks(page: Path) -> list[str]:
    """The page's runnable python blocks, in order; skeletons are files, not sessions."""
    if page.name == "CONTRIBUTING.md":
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


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_code_runs(page, place, monkeypatch):
    """Blocks of a page are one session, run where a small run lies in runs/demo."""
    monkeypatch.chdir(place)
    session = types.ModuleType("docs_session")
    monkeypatch.setitem(sys.modules, "docs_session", session)
    for number, code in enumerate(blocks(page), 1):
        exec(compile(code, f"{page.name}[{number}]", "exec"), session.__dict__)


def test_the_pages_have_code():
    assert {"README.md", "concepts.md"} <= {p.name for p in PAGES if blocks(p)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text("utf-8")):
        if "://" in target:
            continue
        path = (page.parent / target).resolve()
        assert path.exists(), f"{page.name}: {target}"
