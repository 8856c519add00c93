"""The direction of imports, the size of files, what is never called, and what an import may cost."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import thalweg

SOURCE = Path(thalweg.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MAX_LINES = 400

ALLOWED = {
    "core": set(),
    "data": {"core"},
    "energy": {"core"},
    "sampler": {"core", "energy"},
    "objective": {"core", "energy", "sampler"},
    "evaluate": {"core", "energy", "sampler"},
    "train": {"core", "data", "energy", "objective"},  # never sampler: only the objective knows there are chains
    "apps": {"core", "data", "energy", "sampler", "objective", "evaluate"},
}
SEAM = ("apps/fit.py", "apps/in_memory.py", "apps/checks.py")  # through which applications train
EXTRA = {path: {"train"} for path in SEAM}
TOP = {
    "__init__.py",
    "__main__.py",
    "cli.py",
    "commands",
    "console.py",
    "progress.py",
}  # these may import everything
NEVER = re.compile(r"\bimport pickle\b|torch\.load\(|allow_pickle=True|yaml\.load\(|(?<![\w.])(eval|exec)\(")


def imported(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import of ours anywhere in a module, in functions too, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "thalweg")


def violations(relative: str, text: str) -> list[str]:
    """Imports of a file, named relative to the package, that the table does not allow."""
    layer = relative.split("/")[0]
    if layer in TOP:
        return []
    if layer not in ALLOWED:
        return [f"{relative}: the layer {layer} is not in the table"]
    allowed = ALLOWED[layer] | EXTRA.get(relative, set()) | {layer}
    module = "thalweg." + relative.removesuffix(".py").replace("/", ".")
    found = []
    for line, name in imported(ast.parse(text), module):
        parts = name.split(".")
        inner = parts[1] if len(parts) > 1 else ""
        if inner and inner != "__version__" and inner not in allowed:
            found.append(f"{relative}:{line}: {layer} imports {name}")
    return found


def test_imports_go_one_way():
    found = [v for path in FILES for v in violations(path.relative_to(SOURCE).as_posix(), path.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("relative", "text"),
    [
        ("core/rng.py", "from thalweg.data.toy import TOYS"),
        ("core/rng.py", "from .. import energy"),
        ("energy/mlp.py", "from thalweg.sampler import langevin"),
        ("sampler/run.py", "def f():\n    import thalweg.objective.base"),
        ("evaluate/suite.py", "from thalweg import apps"),
        ("train/trainer.py", "from ..sampler.langevin import ULA"),
        ("apps/anomaly.py", "from thalweg.train.trainer import Trainer"),
        ("data/catalog.py", "from thalweg import load"),
        ("extra/thing.py", ""),
    ],
)
def test_the_check_meets_what_it_should(relative, text):
    assert violations(relative, text)


def test_the_check_passes_what_it_should():
    assert not violations("apps/fit.py", "import thalweg\nfrom thalweg.train.plan import Plan")
    assert not violations("train/trainer.py", "from .plan import Plan\nfrom thalweg.objective.base import Batch")


def test_every_package_is_a_layer():
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages == {*ALLOWED, "commands"}


def test_files_are_short():
    sizes = {path.relative_to(SOURCE).as_posix(): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}


def test_nothing_unsafe_is_called():
    found = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if NEVER.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "    state = torch.load(path)",
        "x = np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "value = eval(text)",
    ],
)
def test_the_pattern_meets_what_it_should(line):
    assert NEVER.search(line)


@pytest.mark.parametrize(
    "code",
    [
        "import thalweg",
        "import thalweg.cli",
        "import sys; sys.argv = ['thalweg', '--help']; import thalweg.cli; thalweg.cli.main()",
        "import sys; sys.argv = ['thalweg', 'train', '--help']; import thalweg.cli; thalweg.cli.main()",
        "import sys; sys.argv = ['thalweg', '--version']; import thalweg.cli; thalweg.cli.main()",
    ],
    ids=["package", "cli", "help", "train-help", "version"],
)
def test_torch_is_imported_only_when_needed(code):
    script = f"import atexit, sys\natexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"
