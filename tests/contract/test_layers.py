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

CONTRACT = ("core", "energy.base", "energy.shape")
APPLICATION = ("core", "data", "energy", "sampler", "objective", "evaluate", "bundle", "run", "normaliser")
ALLOWED = {  # a package, or a module, and what it may import beside itself; the longest name that fits decides
    "core": (),
    "data": ("core",),
    "energy.base": ("core", "energy.shape"),
    "energy.shape": ("core",),
    "energy.building": ("core",),
    "energy.analytic": CONTRACT,
    "energy.enumeration": CONTRACT,
    "energy.rbm": (*CONTRACT, "energy.enumeration"),
    "energy.ising": (*CONTRACT, "energy.enumeration"),
    "energy.potts": (*CONTRACT, "energy.enumeration", "energy.ising"),
    "energy.with_constant": (*CONTRACT, "energy.density.stationary"),
    "energy.outcomes": (*CONTRACT, "energy.enumeration"),
    "energy.linear_observation": CONTRACT,
    "energy.wrappers": (*CONTRACT, "energy.analytic"),
    "energy.engine": CONTRACT,
    "energy.density": (*CONTRACT, "energy.linear_observation"),
    "energy.networks": (
        *CONTRACT,
        "energy.engine",
        "energy.density.gaussian",
        "energy.density.bigram",
        "energy.outcomes",
    ),
    "energy.noise_conditional": (*CONTRACT, "energy.engine", "energy.density", "energy.networks"),
    "sampler": ("core", "energy"),
    "objective": ("core", "energy", "sampler"),
    "normaliser": ("core", "energy", "sampler"),
    "evaluate": ("core", "energy", "sampler", "normaliser"),
    "monitor": ("core", "energy", "sampler", "evaluate", "normaliser"),
    "training": ("core", "data", "energy", "objective"),  # never sampler: only the objective knows there are chains
    "bundle": ("core", "data", "energy", "sampler", "normaliser"),
    "run": (
        "core",
        "data",
        "energy",
        "sampler",
        "objective",
        "normaliser",
        "training",
        "bundle",
        "evaluate.pictures",
        "monitor",
    ),
    "scale": ("core", "data", "energy", "sampler", "bundle", "apps"),
    "export": ("core", "data", "energy", "sampler", "bundle", "apps"),
    "bench": ("core", "energy", "sampler", "objective"),
    "serve": ("core", "data", "sampler", "bundle", "apps", "export"),
    "api": (*APPLICATION, "apps", "monitor", "training.metrics_log"),
    "cli": ("",),  # all
    "__main__": ("cli",),
}
# Methods of a bundle that call an application, which is imported when they are called: (importer, imported).
LAZY = {
    ("bundle.bundle", "apps.inpaint.inpaint"),
    ("bundle.bundle", "apps.classify.probabilities"),
    ("bundle.bundle", "apps.words.explain"),
}
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


def within(name: str, package: str) -> bool:
    return not package or f"{name}.".startswith(f"{package}.")


def violations(relative: str, text: str) -> list[str]:
    """Imports of a file, named relative to the package, that the table does not allow."""
    module = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if module == "__init__":  # names that are imported on first use
        return []
    layer = max((key for key in ALLOWED if within(module, key)), key=len, default=None)
    others = ALLOWED.get(layer or "", ())
    if module.startswith("apps."):  # none imports another one
        layer, others = ".".join(module.split(".")[:2]), APPLICATION
    if layer is None:
        return [] if text.count("\n") <= 1 and relative.endswith("__init__.py") else [f"{relative}: in no row"]
    found = []
    for line, name in imported(ast.parse(text), "thalweg." + relative.removesuffix(".py").replace("/", ".")):
        inner = name.partition(".")[2]
        lazy = any(module == a and within(inner, b) for a, b in LAZY)
        allowed = lazy or any(within(inner, other) for other in (*others, layer))
        if inner and inner != "__version__" and not allowed:
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
        ("energy/networks/mlp.py", "from thalweg.energy.noise_conditional.unet import UNetEnergy"),
        ("energy/engine/fused.py", "from thalweg.energy.networks.mlp import MLPEnergy"),
        ("energy/base.py", "from thalweg.energy import wrappers"),
        ("sampler/chain.py", "def f():\n    import thalweg.objective.base"),
        ("evaluate/suite.py", "from thalweg import apps"),
        ("training/trainer.py", "from ..sampler.langevin import ULA"),
        ("apps/rerank/reranker.py", "from thalweg.training.trainer import Trainer"),
        ("apps/rerank/reranker.py", "from thalweg.apps.inpaint.masks import observed"),
        ("bundle/bundle.py", "from thalweg.apps.rerank.reranker import EnergyReranker"),
        ("bundle/files.py", "from thalweg.apps.inpaint.inpaint import inpaint"),
        ("data/catalog.py", "from thalweg import load"),
        ("extra/thing.py", "import thalweg\n\nx = 1\n"),
    ],
)
def test_the_check_meets_what_it_should(relative, text):
    assert violations(relative, text)


@pytest.mark.parametrize(
    ("relative", "text"),
    [
        ("run/fit.py", "import thalweg\nfrom thalweg.training.plan import Plan"),
        ("training/trainer.py", "from .plan import Plan\nfrom thalweg.objective.base import Batch"),
        ("bundle/bundle.py", "def f():\n    from thalweg.apps.inpaint.inpaint import inpaint"),
        ("cli/train.py", "from thalweg.run.fit import fit"),
    ],
)
def test_the_check_passes_what_it_should(relative, text):
    assert not violations(relative, text)


def test_the_rows_of_the_table_are_there():
    """No row for what is not in the tree, and a facade is imported inside a function."""
    there = {path.relative_to(SOURCE).with_suffix("").as_posix().removesuffix("/__init__") for path in FILES}
    assert {key.replace(".", "/") for key in ALLOWED} <= there
    for importer, name in LAZY:
        path = SOURCE / f"{importer.replace('.', '/')}.py"
        top = [n for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.ImportFrom)]
        assert not any(n.module and within(n.module.partition(".")[2], name) for n in top)


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
        "import thalweg.cli.main",
        "import sys; sys.argv = ['thalweg', 'train', '--help']; import thalweg.cli.main as c; c.main()",
        "import thalweg.cli.watch, thalweg.cli.terminal.screen, thalweg.run.status, thalweg.monitor.history",
    ],
    ids=["package", "cli", "train-help", "watch"],
)
def test_torch_is_imported_only_when_needed(code):
    script = f"import atexit, sys\natexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"
