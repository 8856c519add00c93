"""Every notebook in examples/ runs from top to bottom on a fresh machine, and keeps no outputs in the repository."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute all cells in that folder; CellExecutionError at the first that fails."""
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_to_its_end(path, tmp_path, monkeypatch):
    monkeypatch.delenv("THALWEG_DATA", raising=False)
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 3
    assert not any(cell.outputs or cell.execution_count for cell in code), "clear the outputs before you commit"
    run(notebook, tmp_path)
    assert all(cell.execution_count for cell in code)


def test_a_failing_cell_fails_the_run(tmp_path):
    cells = [nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_code_cell("assert x == 2")]
    with pytest.raises(CellExecutionError, match="AssertionError"):
        run(nbformat.v4.new_notebook(cells=cells), tmp_path)
