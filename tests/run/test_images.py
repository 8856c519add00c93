"""Runs on images in files: their size and classes are kept, and every command reads pictures for them alike."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import thalweg
from thalweg.bundle.inputs import read_rows
from thalweg.core.errors import UserError
from thalweg.run.fit import Request, fit

TINY = [
    "energy.hidden=8",
    "energy.widths=[8, 16]",
    "energy.num_blocks=[1, 1]",
    "train.batch_size=8",
    "objective.rows=4",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes, upright and lying, some of these turned by EXIF."""
    root, draws, turned = tmp_path_factory.mktemp("photos"), np.random.default_rng(0), Image.Exif()
    turned[0x0112] = 6
    for name in ("dark", "light"):
        (root / name).mkdir()
        for i in range(14):
            pixels = draws.integers(0, 128, (12, 16, 3), np.uint8) + 127 * (name == "light")
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / name / f"{i}.png", **({"exif": turned} if i % 3 == 0 else {}))
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    told: list[str] = []
    request = Request(data=photos, recipe="jem", steps=2, overrides=TINY, size=8, labels="folder")
    fit(request, folder, tensorboard=False, log=told.append)
    assert "classes: 0 dark, 1 light" in told
    assert "energy.num_classes is 2, as many as the data have; the recipe says 10" in told
    assert f"{photos}: 10 of 28 images turned as their EXIF orientation says" in told
    return folder


def test_the_bundle_keeps_size_and_classes(run, photos):
    config = json.loads((run / "config.json").read_text())
    assert (config["run"]["data"]["size"], config["run"]["data"]["labels"]) == (8, "folder")
    assert (config["data"]["classes"], config["data"]["shape"]) == (["dark", "light"], [3, 8, 8])
    assert "the shorter side resized to 8 pixels" in (run / "card.md").read_text()
    bundle = thalweg.load(run)
    assert bundle.num_classes == 2
    assert list(bundle.servable().labels) == ["dark", "light"]
    x = read_rows(bundle, photos)
    assert x.shape == (28, 3, 8, 8)
    torch.testing.assert_close(read_rows(bundle, photos / "light" / "3.png"), x[21:22])  # 0 1 10 11 12 13 2 3


def test_classes_come_with_their_names(run, photos, tmp_path, call, caplog):
    table = tmp_path / "classes.csv"
    code, _, told = call("classify", run, photos, "-o", table)
    assert code == 0
    rows = [*csv.DictReader(table.read_text().splitlines())]
    assert rows[0]["name"] == "dark/0.png"
    assert {"class", "p_dark", "p_light"} <= rows[0].keys()
    assert all(row["class"] == ("dark", "light")[int(row["label"])] for row in rows)
    assert "28 of 28 images resized to 8 x 8 pixels" in caplog.text + "".join(told)


@pytest.mark.parametrize("words", [{"size": 9}, {"labels": "other.csv"}, {"skip_bad": True}])
def test_a_resumed_run_is_asked_for_the_same(run, photos, words):
    with pytest.raises(UserError, match=r"as when the run in .* began"):
        fit(Request(data=photos, **words), run, resume=True)


def test_a_layer_is_a_mask_where_it_is_painted_white(tmp_path):
    """The mutant that drops alpha takes all for missing; the one that lays it on white, too."""
    from thalweg.apps.inpaint.masks import observed

    layer = np.full((8, 8, 4), (255, 255, 255, 0), np.uint8)
    layer[2:5, 3:6, 3] = 255
    Image.fromarray(layer).save(tmp_path / "layer.png")
    missing = ~observed(tmp_path / "layer.png", (1, 8, 8), 1)
    assert missing.sum() == 9
    assert missing[0, 0, 2:5, 3:6].all()
    layer[..., :3] = 0
    Image.fromarray(layer).save(tmp_path / "black.png")
    with pytest.raises(UserError, match="no opaque one is white"):
        observed(tmp_path / "black.png", (1, 8, 8), 1)


def test_completions_lie_in_folders_as_the_images_do(run, photos, tmp_path, call):
    for name in ("dark", "light"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.png").write_bytes((photos / name / "0.png").read_bytes())
    code, _, told = call("inpaint", run, "--image", "in", "--mask", "right-half", "-n", 1, "-o", "out")
    assert code == 0, told
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert found == ["dark/0-1.png", "light/0-1.png"]
    assert "in: 2 of 2 images resized to 8 x 8 pixels, the middle kept, as in training" in told
