"""The documentation's code runs, its skeletons meet the contract suites, its links lead somewhere."""

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from thalweg.run.fit import Request, fit

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
SMALL = ("energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16", "data.limit=300", "train.precision=fp32")
SMALL += ("sampler.num_steps=6",)


def blocks(page: Path) -> list[str]:
    """The page's runnable python blocks, in order."""
    return [code for options, code in BLOCK.findall(page.read_text("utf-8")) if "no-run" not in options]


def skeletons() -> dict[str, str]:
    """CONTRIBUTING's blocks that begin with the path of the file they are, by that path."""
    found = [(re.match(r"# src/(\S+\.py)\n", code), code) for code in blocks(ROOT / "CONTRIBUTING.md")]
    return {match.group(1): code for match, code in found if match}


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
    assert {"README.md", "CONTRIBUTING.md", "concepts.md"} <= {p.name for p in PAGES if blocks(p)}


def test_skeletons_meet_the_contracts(tmp_path):
    """Copied into place and found by the walk, each skeleton passes its contract suite and trains."""
    for path, code in skeletons().items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(code, encoding="utf-8")
    script = f"""
import importlib, sys
import pytest
for layer in ("sampler", "objective", "energy", "apps"):
    importlib.import_module("thalweg." + layer).__path__.append({str(tmp_path / "thalweg")!r} + "/" + layer)
names = "RandomWalk or FiniteDifferenceScoreMatching or BoundedEnergy or ShallowEnergy"
code = pytest.main(["-p", "no:cacheprovider", "-k", names, "tests/contract"])
if code:
    sys.exit(code)
from thalweg.run import preview
from thalweg.run.fit import Request, fit
import thalweg.apps.drift
vars(preview).update(NUM_POINTS=20, CHAIN_STEPS=2)
for i, (recipe, *overrides) in enumerate([
    ("pcd", "objective.type=thalweg.objective.finite:FiniteDifferenceScoreMatching"),
    ("pcd", "energy.type=thalweg.energy.bounded:BoundedEnergy", "sampler.type=thalweg.sampler.walk:RandomWalk"),
    ("dual", "energy.type=thalweg.energy.shallow:ShallowEnergy"),
]):
    request = Request(data="two-moons", recipe=recipe, steps=3, overrides=[*overrides, "data.limit=500"])
    bundle = fit(request, {str(tmp_path)!r} + f"/run-{{i}}", tensorboard=False)
    assert bundle.sample(5, num_steps=3).isfinite().all()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("sampler/walk", "objective/finite", "energy/bounded", "energy/shallow", "apps/drift"):
        assert f"thalweg/{name}.py" in skeletons()
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 15


def test_the_sampler_skeleton_is_right():
    """Moments of a skewed target within 5 sigma; the mutant that accepts everything is rejected."""
    session = types.ModuleType("skeleton_walk")
    sys.modules["skeleton_walk"] = session
    exec(compile(skeletons()["thalweg/sampler/walk.py"], "walk.py", "exec"), session.__dict__)
    from thalweg.sampler.chain import run_chain

    def exponential(x):  # density exp(-x) on x > 0: mean 1, variance 1
        return torch.where(x[:, 0] > 0, x[:, 0], torch.inf)

    def flat(x):
        return torch.zeros(len(x))

    n, start = 4000, torch.ones(4000, 1)
    end = run_chain(session.RandomWalk(step_size=1.5), exponential, start, num_steps=200, seed=3)
    assert abs(float(end.mean()) - 1) < 5 / n**0.5
    mutant = run_chain(session.RandomWalk(step_size=1.5), flat, start, num_steps=200, seed=3)
    assert float(mutant.var()) > 10
    del sys.modules["skeleton_walk"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text("utf-8")):
        if "://" in target:
            continue
        path = (page.parent / target).resolve()
        assert path.exists(), f"{page.name}: {target}"
