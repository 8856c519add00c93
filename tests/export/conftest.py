"""Detectors to export, and a Python without torch and thalweg that computes an exported graph."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.anomaly.tabular.tabular_energy import TabularEnergy


def table(num, seed=0):
    """Numbers far from zero, with a tail, whole, constant and beyond 2^300; categories with rare ones and without."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 3, num)
    color = np.array(["rot", "grün", "блю"], object)[label]
    color[random.random(num) < 0.02] = "seltener"
    color[:2] = "once", "ein mal"
    return pd.DataFrame(
        {
            "flow": random.normal(4.0 * label, 1),
            "heat": random.exponential(size=num) * 1e3,
            "clock": 1e9 + random.normal(size=num),
            "wide": random.normal(size=num) * 2.0**320,
            "count": np.round(random.normal(0, 2, num)),
            "the same": 3.5,
            "color": color,
            "site": random.choice(["a", "b"], num),
        }
    )


@pytest.fixture(scope="session")
def make_table():
    return table


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A detector of a table with categories, whose sums are exact."""
    return _saved(EnergyDetector(random_state=0).fit(table(120)), tmp_path_factory.mktemp("small") / "detector")


@pytest.fixture(scope="session")
def searched(tmp_path_factory):
    """A detector of an array, whose kernels sum over the candidates of cells; fewer trials than usual, for time."""
    random = np.random.default_rng(1)
    x = np.concatenate([random.normal(size=(700, 3)), random.normal(4, 0.3, size=(600, 3))])
    return _saved(EnergyDetector(random_state=0).fit(x), tmp_path_factory.mktemp("searched") / "detector")


@pytest.fixture(scope="session")
def narrow(tmp_path_factory):
    """A detector beyond 1,024 rows with a category, which makes noise levels narrow beside the rows' distances."""
    random = np.random.default_rng(3)
    site = random.choice(["nord", "süd", "ost"], 1100)
    frame = pd.DataFrame({"flow": random.normal(5, 1, 1100), "heat": random.gamma(2, 3, 1100), "site": site})
    return _saved(EnergyDetector(random_state=0).fit(frame), tmp_path_factory.mktemp("narrow") / "detector")


def _saved(detector, folder):
    assert isinstance(detector.energy_, TabularEnergy)
    DetectorBundle(detector).save_pretrained(folder)
    return folder


RUN = """
import json, sys
sys.path[:] = [path for path in sys.path if "site-packages" not in path] + [sys.argv[1]]
for name in ("torch", "thalweg"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} can be imported")
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
given = json.loads(open(sys.argv[3], encoding="utf-8").read())
kinds = {"tensor(double)": np.float64, "tensor(float)": np.float32, "tensor(string)": object}
inputs = {i.name: np.array(given[i.name], kinds[i.type]) for i in session.get_inputs()}
found = session.run(None, inputs)
print(json.dumps({o.name: part.tolist() for o, part in zip(session.get_outputs(), found)}))
"""


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory):
    """Outputs of an ONNX file for rows by name, by a Python whose path holds numpy and ONNX Runtime alone."""
    packages = tmp_path_factory.mktemp("packages")
    for name in ("numpy", "onnxruntime"):
        place = Path(next(iter(find_spec(name).submodule_search_locations)))
        for found in (place, place.with_name(f"{name}.libs")):
            if found.exists():
                (packages / found.name).symlink_to(found)

    def run(file, rows):
        given = tmp_path_factory.mktemp("rows") / "rows.json"
        given.write_text(json.dumps({name: x.tolist() for name, x in rows.items()}), encoding="utf-8")
        words = [sys.executable, "-I", "-S", "-c", RUN, packages, file, given]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return {name: np.array(part) for name, part in json.loads(done.stdout).items()}

    return run
