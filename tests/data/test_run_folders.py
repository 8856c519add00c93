"""The folder of a run or a model that is given where data are wanted: one line, before any work, that says so."""

import json

import numpy as np
import pytest

from thalweg.core.errors import UserError
from thalweg.data.catalog import load
from thalweg.data.run_folders import refuse_run

WORDS = (
    "train RUN -o new",
    "train mnist --data RUN -o new",
    "score RUN RUN",
    "score RUN RUN -o scores/",
    "rerank fit RUN RUN -o new",
    "detect fit RUN -o new",
    "inpaint RUN --image RUN --mask gaps -o out.csv",
    "landscape RUN --examples RUN -o out.png",
)


@pytest.fixture
def run(chains, tmp_path):
    """A run's folder with the picture that every run leaves."""
    chains.save_pretrained(tmp_path / "a run")
    (tmp_path / "a run" / "preview.png").write_bytes(b"a picture")
    return tmp_path / "a run"


@pytest.mark.parametrize("words", WORDS)
def test_a_run_is_no_data(words, run, call, tmp_path):
    code, _, err = call(*(run if word == "RUN" else word for word in words.split()))
    assert code == 2
    assert f"thalweg: {run}: must be data, and is the folder of a run; `thalweg train " in err[-1], err
    assert f"-o '{run}' --resume` goes on with one that was stopped, `thalweg sample '{run}' -n 64` draws" in err[-1]
    assert not (tmp_path / "new").exists()


def test_the_command_that_goes_on_names_the_run_s_own_data(run):
    with pytest.raises(UserError) as caught:
        refuse_run(run)
    assert "`thalweg train two-moons -o " in str(caught.value)


@pytest.mark.parametrize("out", ["scores.csv", "scores/"])
def test_a_detector_is_no_table(out, call, tmp_path):
    np.savetxt(tmp_path / "n.csv", np.random.default_rng(0).normal(size=(50, 2)), delimiter=",", header="a,b")
    assert call("detect", "fit", "n.csv", "-o", "alarm")[0] == 0
    code, _, err = call("detect", "score", "alarm", "alarm", "-o", out)
    assert (code, err[-1]) == (
        2,
        "thalweg: alarm: must be data, and is the folder of a trained model (DetectorBundle); "
        "give the file or the folder of rows",
    )


def test_a_folder_of_data_with_a_config_of_others_is_read(photos_beside_a_config):
    data = load(str(photos_beside_a_config))
    assert data.train.shape[0] + data.held_out.shape[0] == 20


@pytest.fixture
def photos_beside_a_config(tmp_path):
    """Twenty pictures beside a config.json and a manifest.json that are not ours."""
    from PIL import Image

    for i in range(20):
        Image.fromarray(np.full((8, 8), i * 9, np.uint8)).save(tmp_path / f"{i}.png")
    for name in ("config.json", "manifest.json"):
        (tmp_path / name).write_text(json.dumps({"type": "dataset"}))
    return tmp_path
