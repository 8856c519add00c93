"""Three small runs, and a folder with everything that can be wrong."""

import shutil

import numpy as np
import pytest
from PIL import Image

from thalweg.bundle.files import FILES
from thalweg.core import store

VECTOR = ["train.batch_size=16", "train.precision=fp32", "energy.embed=8"]
VECTOR += ["energy.width=16", "energy.num_blocks=1", "data.limit=300"]


@pytest.fixture(scope="session")
def runs(digits, chains, tmp_path_factory):
    """Three small runs: vectors and images, normalised, and an unnormalised one."""
    from thalweg.run.fit import Request, fit

    folder = tmp_path_factory.mktemp("runs")
    fit(Request(data="two-moons", recipe="dual", steps=12, overrides=VECTOR), folder / "moons", tensorboard=False)
    shutil.copytree(digits.path, folder / "digits")
    shutil.copytree(chains.path, folder / "pcd")
    return folder


@pytest.fixture
def place(tmp_path, runs):
    """A folder with everything that can be wrong."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "plane.npy", rng.normal(size=(40, 2)).astype(np.float32))
    np.save(tmp_path / "three.npy", rng.normal(size=(40, 3)).astype(np.float32))
    np.save(tmp_path / "one.npy", np.zeros((1, 2), np.float32))
    np.save(tmp_path / "nan.npy", np.full((4, 2), np.nan, np.float32))
    np.save(tmp_path / "bright.npy", np.full((4, 1, 8, 8), 200.0, np.float32))
    np.save(tmp_path / "colour.npy", np.zeros((4, 3, 8, 8), np.float32))
    np.save(tmp_path / "large.npy", np.zeros((4, 1, 9, 9), np.float32))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "plane.npy").read_bytes()[:-9])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "words.csv").write_text("a,b\nx,y\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "single").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "single" / "a.png")
    (tmp_path / "broken.yaml").write_text("energy: [")
    (tmp_path / "odd.yaml").write_text("enrgy: {type: thalweg.energy.networks.mlp:MLPEnergy}\n")
    (tmp_path / "train.yaml").write_text("train: 5\n")
    (tmp_path / "bare.yaml").write_text("train: {}\n")
    (tmp_path / "both.yaml").write_text("train: {steps: 3, minutes: 3}\n")
    (tmp_path / "odd" / "metrics.jsonl").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    store.write_json(tmp_path / "other" / "config.json", {"format": 99, "thalweg": "7.0"})
    (tmp_path / "damaged").mkdir()
    for name in (*FILES, "manifest.json"):
        (tmp_path / "damaged" / name).write_bytes((runs / "digits" / name).read_bytes())
    with (tmp_path / "damaged" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    return tmp_path
