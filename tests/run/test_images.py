"""Runs on images in files: their size and classes are kept, and every command reads pictures for them alike."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

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
    x = read_rows(bundle, photos).x
    assert x.shape == (28, 3, 8, 8)
    torch.testing.assert_close(read_rows(bundle, photos / "light" / "3.png").x, x[21:22])  # 0 1 10 11 12 13 2 3


def test_classes_come_with_their_names(run, photos, tmp_path, call, caplog):
    table = tmp_path / "classes.csv"
    code, _, told = call("classify", run, photos, "-o", table)
    assert code == 0
    rows = [*csv.DictReader(table.read_text().splitlines())]
    assert rows[0]["name"] == "dark/0.png"
    assert {"class", "p_dark", "p_light"} <= rows[0].keys()
    assert all(row["class"] == ("dark", "light")[int(row["label"])] for row in rows)
    assert "28 of 28 images resized to 8 x 8 pixels" in caplog.text + "".join(told)


@pytest.mark.parametrize("words", [{"size": 9}, {"labels": "other.csv"}])
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


def test_completions_lie_in_folders_as_the_images_do(run, photos, tmp_path, call, caplog):
    for name in ("dark", "light"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.png").write_bytes((photos / name / "0.png").read_bytes())
    code, _, told = call("inpaint", run, "--image", "in", "--mask", "right-half", "-n", 1, "-o", "out")
    assert code == 0, told
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert found == ["dark/0-1.png", "light/0-1.png"]
    assert "in: 2 of 2 images resized to 8 x 8 pixels, the middle kept, as in training" in caplog.text + "".join(told)


@pytest.fixture
def with_bad(photos, tmp_path) -> Path:
    """Pictures of which one is no picture, one is cut after its header, and one has a name with a space."""
    (tmp_path / "new").mkdir()
    whole = (photos / "dark" / "0.png").read_bytes()
    for name, content in {"a b.png": whole, "cut.png": whole[:90], "no.png": b"no picture", "z.png": whole}.items():
        (tmp_path / "new" / name).write_bytes(content)
    return tmp_path / "new"


@pytest.mark.parametrize("command", ["score", "classify"])
def test_bad_pictures_are_left_out_by_name_if_asked(command, run, with_bad, tmp_path, call):
    code, _, told = call(command, run, with_bad, "-o", "out.csv")
    assert code == 2
    assert "no.png" in told[-1]
    assert told[-1].endswith("; --skip-bad leaves out what cannot be used")
    code, found, told = call(command, run, with_bad, "-o", "out.csv", "--skip-bad", "--json")
    assert code == 0, told
    assert [each["name"] for each in found["left_out"]] == ["no.png", "cut.png"]
    assert all(any(line.startswith(f"left out {name}: damaged") for line in told) for name in ("no.png", "cut.png"))
    assert "2 rows in out.csv, 2 of 4 left out" in told[-1 - (command == "classify")]
    rows = [*csv.DictReader((tmp_path / "out.csv").read_text().splitlines())]
    assert [row["name"] for row in rows] == ["a b.png", "z.png"]
    assert rows[0]["energy"] == rows[1]["energy"]


def test_energies_alone_do_not_tell_which_are_left_out(run, with_bad, call):
    code, _, told = call("score", run, with_bad, "-o", "out.npy", "--skip-bad")
    assert code == 2
    assert "2 of 4 rows are left out and it has no names" in told[-1]


def test_rows_that_are_not_finite_are_left_out_with_their_lines(tmp_path, call):
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header="a,b", comments="")
    fit(Request(data=tmp_path / "rows.csv", recipe="pcd", steps=2), tmp_path / "rows", tensorboard=False)
    (tmp_path / "new.csv").write_text("a,b\n1,2\n\n3,\n4,5\n")
    assert "column 'b' is missing (NaN) in line 4" in call("score", "rows", "new.csv")[2][-1]
    code, found, told = call("score", "rows", "new.csv", "--skip-bad", "--json")
    assert (code, found["left_out"]) == (0, [{"name": "line 4", "reason": "column 'b' is missing (NaN)"}]), told
    assert [line.split(",")[0] for line in (tmp_path / "scores.csv").read_text().splitlines()] == ["name", "0", "2"]


def test_data_of_another_kind_than_the_model_s_are_refused_as_such(run, photos, tmp_path, call):
    (tmp_path / "t.csv").write_text("a,b\nx,1\n")
    assert "t.csv: must hold images, as the model's data are, and is a table" in call("score", run, "t.csv")[2][-1]
    fit(Request(data="two-moons", recipe="pcd", steps=2), tmp_path / "moons", tensorboard=False)
    told = call("score", "moons", photos)[2][-1]
    assert "must hold rows of 2 numbers, as the model's data are, and is a folder" in told


def _packed(files, path, column="image"):
    parquet.write_table(pa.table({"n": range(len(files)), column: files}), path)


@pytest.mark.parametrize("command", ["score", "classify"])
@pytest.mark.parametrize("column", ["image", "photo"])
def test_pictures_in_parquet_are_scored_as_those_in_files(command, column, run, photos, tmp_path, call, caplog):
    files = sorted((photos / "light").iterdir())
    _packed([file.read_bytes() for file in files], tmp_path / "new.parquet", column)
    assert call(command, run, "new.parquet", "-o", "packed.csv")[0] == 0
    assert f"new.parquet, column {column!r}: 14 of 14 images resized to 8 x 8 pixels" in caplog.text
    assert call(command, run, photos / "light", "-o", "files.csv")[0] == 0
    packed, whole = ([*csv.DictReader((tmp_path / n).read_text().splitlines())] for n in ("packed.csv", "files.csv"))
    assert [row["name"] for row in packed] == [str(i) for i in range(14)]
    assert [row["energy"] for row in packed] == [row["energy"] for row in whole]


def test_pictures_in_parquet_that_cannot_be_used(run, photos, tmp_path, call):
    data = (photos / "light" / "0.png").read_bytes()
    _packed([data, data[:90], data], tmp_path / "new.parquet")
    code, _, told = call("score", run, "new.parquet")
    assert code == 2
    assert "column 'image', row 1 (counted from 0): damaged" in told[-1]
    assert "--skip-bad" in told[-1]
    code, found, _ = call("score", run, "new.parquet", "--skip-bad", "--json")
    assert [code, *(each["name"] for each in found["left_out"])] == [0, "row 1 (counted from 0)"]
    assert [line.split(",")[0] for line in (tmp_path / "scores.csv").read_text().splitlines()] == ["name", "0", "2"]
    parquet.write_table(pa.table({"n": [1, 2]}), tmp_path / "numbers.parquet")
    assert "has no column of image files' bytes" in call("score", run, "numbers.parquet")[2][-1]


def test_a_run_on_parquet_scores_its_own_file(tmp_path, photos, call):
    files = [file.read_bytes() for file in sorted(photos.rglob("*.png"))]
    _packed(files, tmp_path / "own.parquet")
    words = ["data.column=image", *TINY[1:4]]
    fit(Request(data=tmp_path / "own.parquet", steps=2, overrides=words, size=8), tmp_path / "own", tensorboard=False)
    code, found, told = call("score", "own", "own.parquet", "--json")
    assert (code, found["rows"]) == (0, len(files)), told
    x = read_rows(thalweg.load(tmp_path / "own"), tmp_path / "own.parquet").x
    assert thalweg.load(tmp_path / "own").score(x)["energy"].shape == (len(files),)
    code, found, told = call("inpaint", "own", "--image", "own.parquet", "--mask", "right-half", "-o", "x.npy", "-n", 1)
    assert code == 0, told


def test_classes_are_drawn_by_their_names(run, tmp_path, call):
    words = ["sample", run, "-n", 3, "--num-steps", 2, "--npy"]
    assert call(*words, "named.npy", "--label", "light", "--label", "dark")[0] == 0
    assert call(*words, "numbered.npy", "--label", 1, "--label", 0)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "named.npy"), np.load(tmp_path / "numbered.npy"))
    code, _, told = call(*words, "x.npy", "--label", "bird")
    assert code == 2
    assert told[-1].endswith("--label='bird': must be a class of the model; there are: dark, light")
    bundle = thalweg.load(run)
    x = bundle.sample(2, num_steps=2, labels=["light", "dark"])
    torch.testing.assert_close(x, bundle.sample(2, num_steps=2, labels=[1, 0]))


def test_a_judge_reads_pictures_of_any_size_as_it_was_fitted(photos, tmp_path, call):
    (tmp_path / "made").mkdir()
    draws = np.random.default_rng(1)
    for i in range(28):
        Image.fromarray(draws.integers(0, 255, (20 + i % 3, 20, 3), np.uint8)).save(tmp_path / "made" / f"{i}.png")
    few = ["--steps", 4, "--ensemble", 2, "--view", "pixels", "--noise", 0.3]
    code, _, told = call("rerank", "fit", photos, "made", "-o", "judge", *few)
    assert code == 2
    code, _, told = call("rerank", "fit", photos, "made", "-o", "judge", *few, "--size", 8)
    assert code == 0, told
    code, found, told = call("rerank", "judge", "made", "--json")
    assert (code, found["candidates"]) == (0, 28), told
    np.save(tmp_path / "rows.npy", draws.normal(size=(40, 2)))
    told = call("rerank", "fit", "rows.npy", "rows.npy", "-o", "rows", "--size", 8)[2]
    assert told[-1].endswith("--size=8: is for images, and rows.npy holds rows; leave it out")
