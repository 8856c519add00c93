"""Images as people hand them over: what cannot be used is named, and masks stay with their images."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from thalweg.apps.inpaint.damaged_images import read_damaged_images
from thalweg.apps.inpaint.masks import observed
from thalweg.apps.inpaint.operators import Downsample
from thalweg.core.errors import UserError

SHAPE = (1, 8, 8)


@pytest.fixture
def pixels():
    return torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_nan_is_refused_where_it_is_observed_and_nowhere_else(pixels, tmp_path):
    known = observed("right-half", SHAPE, 3)
    pixels[1:, :, :, 5] = torch.nan
    np.save(tmp_path / "x.npy", pixels)
    assert read_damaged_images(tmp_path / "x.npy", SHAPE).usable(known, False).names == ["0", "1", "2"]
    pixels[1, 0, 0, 0] = torch.inf
    np.save(tmp_path / "x.npy", pixels)
    given = read_damaged_images(tmp_path / "x.npy", SHAPE)
    with pytest.raises(UserError, match=r"image 1: must be finite where it is observed; .*--skip-bad"):
        given.usable(known, False)
    kept = given.usable(known, True)
    assert (kept.names, kept.rows.tolist(), [bad["file"] for bad in kept.skipped]) == (["0", "2"], [0, 2], ["1"])
    pixels[:, 0, 0, 0] = torch.nan
    np.save(tmp_path / "x.npy", pixels)
    with pytest.raises(UserError, match="must be finite in one of the 3 images"):
        read_damaged_images(tmp_path / "x.npy", SHAPE).usable(known, True)


def test_a_folder_keeps_each_image_with_its_own_mask(pixels, tmp_path):
    for i, x in enumerate(pixels):
        Image.fromarray((x[0] * 255).byte().numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1\.png: damaged or not what its name says"):
        read_damaged_images(tmp_path, SHAPE)
    given = read_damaged_images(tmp_path, SHAPE, skip_bad=True)
    assert (given.count, given.rows.tolist(), given.names, given.rounded) == (3, [0, 2], ["0.png", "2.png"], True)
    assert [bad["file"] for bad in given.skipped] == ["1.png"]
    assert "1.png" in given.notes[0]
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(UserError, match="must hold an image that can be used, and the first of 3"):
        read_damaged_images(tmp_path, SHAPE, skip_bad=True)


@pytest.mark.parametrize(("name", "called"), [("x.csv", "line 4"), ("x.parquet", "row 2 (counted from 0)")])
def test_rows_of_a_table_are_called_as_other_commands_call_them(name, called, tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0, np.inf], "b": [1.0, np.nan, 3.0]})
    frame.to_csv(tmp_path / "x.csv", index=False, na_rep="nan")
    frame.to_parquet(tmp_path / "x.parquet", index=False)
    given = read_damaged_images(tmp_path / name, (2,))
    with pytest.raises(UserError) as error:
        given.usable(given.present, False)
    assert error.value.argument == called
    kept = given.usable(given.present, True)
    assert (kept.names, [bad["file"] for bad in kept.skipped]) == (["0", "1"], [called])
    assert kept.notes == [f"left out {called}: must be finite where it is observed"]


def test_colour_is_left_out_aloud(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    assert "a.png: colour" in read_damaged_images(tmp_path / "a.png", SHAPE).notes[0]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert not read_damaged_images(tmp_path / "a.png", SHAPE).notes


def test_what_an_operator_gives_is_taken_as_it_is(pixels, tmp_path):
    small = Downsample(factor=2)(pixels)
    np.save(tmp_path / "small.npy", small)
    assert torch.equal(read_damaged_images(tmp_path / "small.npy", (1, 4, 4), flat=True).x.flatten(1), small)
    with pytest.raises(UserError, match="reshape"):
        read_damaged_images(tmp_path / "small.npy", (1, 4, 4))


@pytest.mark.parametrize("name", ["small", "one"])
def test_flat_pixels_are_checked_as_all_are(name, tmp_path):
    """Mutant: flat rows of 8 bits taken for numbers up to 255."""
    x = np.full((2, 16), 200, np.uint8)
    np.save(tmp_path / "x.npy", x if name == "small" else x[0])
    with pytest.raises(UserError, match=r"x\.npy: .*divide by 255"):
        read_damaged_images(tmp_path / "x.npy", (1, 4, 4), flat=True)
    np.save(tmp_path / "x.npy", (x if name == "small" else x[0]) / np.float32(255))
    assert read_damaged_images(tmp_path / "x.npy", (1, 4, 4), flat=True).count == (2 if name == "small" else 1)
    np.save(tmp_path / "x.npy", np.zeros(7))
    with pytest.raises(UserError, match=r"must have the shape .*it has \(7,\)"):
        read_damaged_images(tmp_path / "x.npy", (1, 4, 4))


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (2, 1, 8, 8)])
@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0.0, 1.0), (0.0, 255.0), (False, True)])
def test_a_mask_is_white_where_it_is_missing(values, shape, tmp_path, caplog):
    mask = np.full(shape, values[0])
    mask[..., 4:] = values[1]
    np.save(tmp_path / "m.npy", mask)
    assert torch.equal(observed(tmp_path / "m.npy", SHAPE, 2), observed("right-half", SHAPE, 2))
    assert not caplog.messages


@pytest.mark.parametrize("values", [(-1, 0), (0, 256), (0.5, 0.5), (7, 7), (0, 2), (3, 4), (128, 128)])
@pytest.mark.parametrize("shape", [(8, 8), (1, 1, 8, 8)])
def test_other_numbers_are_no_mask(values, shape, tmp_path):
    np.save(tmp_path / "m.npy", np.array(values * 32).reshape(shape))
    with pytest.raises(UserError, match=r"m\.npy: must hold 0 and 1, or 0 and 255"):
        observed(tmp_path / "m.npy", SHAPE, 2)


def test_dark_grey_is_not_missing(tmp_path, caplog):
    """Mutant: half of the mask's own largest, by which noise of 0 to 3 in 255 hid half of an image."""
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4).save(tmp_path / "m.png")
    assert bool(observed(tmp_path / "m.png", SHAPE, 1).all())
    assert "m.png: greys in the mask; more than half of white (127.5 of 255) is missing" in caplog.text
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"m\.png: must hold .* not 200 everywhere"):
        observed(tmp_path / "m.png", SHAPE, 1)
