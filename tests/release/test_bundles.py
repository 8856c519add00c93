"""The bundles of a release, made by the script's own way on 8 x 8 digits with tiny networks and few steps."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import thalweg

ROOT = Path(__file__).parents[2]
SMALL = ("data.limit=200", "train.batch_size=16", "train.precision=fp32")
UNET = ("energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16")
CHAINS = (
    "energy.channels=[8,8,8]",
    "energy.hidden=8",
    "objective.buffer_size=32",
    "objective.num_steps=2",
    "objective.initial=uniform",
)
TINY = {"dual": UNET, "jem": (*UNET, "energy.hidden=16", "objective.rows=8"), "pcd": CHAINS}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("release_bundles", ROOT / "scripts" / "release_bundles.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(script, tmp_path_factory):
    """The release; its reports are without landscapes and the agreement of chains, which have tests of their own."""
    folder = tmp_path_factory.mktemp("release") / "bundles"
    plans = [plan._replace(data="digits", steps=3, overrides=(*SMALL, *TINY[plan.recipe])) for plan in script.PLANS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thalweg.apps.landscape.picture_files.of_report", lambda *args, **keywords: {})
        patch.setattr("thalweg.evaluate.suite.chain_figures", lambda *args, **keywords: {})
        script.release(folder, plans, num_samples=20)
    return folder


def test_each_bundle_loads_and_is_listed(script, folder):
    assert script.check(folder) == ["digits-dual", "digits-jem", "digits-pcd"]
    listed = json.loads((folder / "release.json").read_text())
    assert listed["thalweg"] == thalweg.__version__
    for entry in listed["bundles"]:
        bundle = thalweg.load(folder / entry["name"])
        assert (entry["steps"], entry["normalised"]) == (3, bundle.normalised)
        assert entry["figures"]
        assert bundle.energy(bundle.sample(3, seed=1)).isfinite().all()
        assert f"--recipe {entry['recipe']}" in (folder / entry["name"] / "card.md").read_text()


def test_the_release_names_no_path_of_this_machine(folder):
    for path in folder.rglob("*.*"):
        text = path.read_bytes().decode("utf-8", "replace")
        assert not re.search(rf"{re.escape(str(Path.home()))}|/tmp/|{re.escape(str(folder.parent))}", text), path


@pytest.mark.parametrize("name", ["digits-pcd/model.safetensors", "digits-dual/card.md", "release.json"])
def test_a_changed_file_is_named(script, folder, name):
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(before[:-1] + b"?")
    try:
        with pytest.raises(ValueError, match=re.escape(name)):
            script.check(folder)
    finally:
        (folder / name).write_bytes(before)


def test_a_folder_that_is_there_is_left_alone(script, folder):
    with pytest.raises(FileExistsError):
        script.release(folder)
