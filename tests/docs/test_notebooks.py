"""Every notebook in examples/ runs from top to bottom in an empty folder, and keeps no outputs in the repository."""

import json
import re
import sys
import types
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LONG = ("classify", "rerank")

pytestmark = pytest.mark.filterwarnings("default")  # a notebook's reader would see them, and go on


def run(cells: list[str], monkeypatch) -> None:
    """Execute the cells as one session of this process, without IPython's magic, display and pictures."""
    package, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.version_info, package.get_ipython = (9, 0), lambda: None
    display.Image, display.display = str, print
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    session = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", session)
    for number, code in enumerate(cells, 1):
        lines = (line for line in code.splitlines() if not line.startswith("%"))
        exec(compile("\n".join(lines), f"cell {number}", "exec"), session.__dict__)


def cells_of(path: Path) -> list[str]:
    code = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 3
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "clear the outputs before you commit"
    return ["".join(cell["source"]) for cell in code]


def quick(code: str) -> str:
    """The cell with trainings of two steps, so without what is asserted of long ones."""
    return re.sub(r"\bsteps=\d+", "steps=2", re.sub("^assert .*\n?", "", code, flags=re.MULTILINE))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("THALWEG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_to_its_end(path, monkeypatch):
    """What the trainings of `LONG` reach is asserted by `make soak`, and on smaller data by tests/apps."""
    cells = cells_of(path)
    run([quick(code) for code in cells] if path.stem in LONG else cells, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem in LONG], ids=lambda path: path.stem)
def test_long_notebook_keeps_its_assertions(path, monkeypatch):
    run(cells_of(path), monkeypatch)
