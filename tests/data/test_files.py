import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from thalweg.core.errors import DamagedFile, UserError
from thalweg.data.files import read_array, read_rows
from thalweg.data.formats import images
from thalweg.data.validate import check_input, require_trainable

PIXELS = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def png(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


def header_only(path: Path, shape: tuple[int, ...]) -> Path:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return path


@pytest.mark.parametrize(
    ("array", "shape", "expected"),
    [
        (PIXELS, None, (2, 1, 4, 5)),
        (PIXELS[0], (1, 4, 5), (1, 1, 4, 5)),
        (np.zeros((2, 4, 5, 3), np.uint8), None, (2, 3, 4, 5)),
        (np.zeros((2, 3, 4, 5), np.float64), None, (2, 3, 4, 5)),
        (np.zeros((4, 5, 3), np.uint8)[None], (3, 4, 5), (1, 3, 4, 5)),
        (np.zeros((7, 3), ">f8"), None, (7, 3)),
        (np.zeros(3, np.int64), (3,), (1, 3)),
        (np.zeros((7, 3), np.uint8), None, (7, 3)),
    ],
)
def test_arrays_are_arranged(
    tmp_path: Path, array: np.ndarray, shape: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    np.savez(tmp_path / "a.npz", only=array)
    for path in (save(tmp_path / "a.npy", array), tmp_path / "a.npz"):
        x = read_array(path, shape=shape)
        assert tuple(x.shape) == expected
        if array.dtype == np.uint8 and x.ndim == 4:
            assert x.dtype == torch.uint8
        else:
            assert x.dtype == (torch.float32 if x.ndim == 4 or array.dtype == np.uint8 else torch.float64)


def test_channels_last_keep_their_pixels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    x = read_array(save(tmp_path / "a.npy", array))
    assert torch.equal(x.permute(0, 2, 3, 1), torch.from_numpy(array))


def test_a_folder_of_images_in_grey_or_colour(tmp_path: Path) -> None:
    png(tmp_path / "b.png", PIXELS[1])
    png(tmp_path / "a.png", PIXELS[0])
    (tmp_path / "notes.txt").write_text("no image")
    assert torch.equal(read_array(tmp_path), torch.from_numpy(PIXELS)[:, None])
    assert read_array(tmp_path, shape=(3, 4, 5)).shape == (2, 3, 4, 5)
    assert read_rows(tmp_path).names == ["a.png", "b.png"]
    assert read_rows(tmp_path / "a.png").names == ["a.png"]
    png(tmp_path / "c.png", np.zeros((4, 5, 3), np.uint8))
    assert read_array(tmp_path).shape == (3, 3, 4, 5)
    assert read_array(tmp_path / "c.png", shape=(1, 4, 5)).shape == (1, 1, 4, 5)
    png(tmp_path / "d.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(UserError, match=r"d\.png: is 6 x 4 pixels"):
        read_array(tmp_path)


def test_tables_with_and_without_a_header(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5, 2.0], "b": [3, 4]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "bare.csv", index=False, header=False)
    frame.to_parquet(tmp_path / "t.parquet")
    pd.DataFrame(frame.to_numpy()).to_csv(tmp_path / "numbered.csv", index=False)
    for name, header in (("t.csv", None), ("bare.csv", False), ("t.parquet", None), ("numbered.csv", True)):
        x, layout, *_ = read_rows(tmp_path / name, header=header)
        assert x.tolist() == [[1.5, 3.0], [2.0, 4.0]]
        assert layout.names == {"bare.csv": None, "numbered.csv": ["0", "1"]}.get(name, ["a", "b"])
    assert read_rows(tmp_path / "t.csv").names == ["0", "1"]
    for name in ("bare.csv", "numbered.csv"):  # which could be either
        with pytest.raises(UserError, match="--no-header"):
            read_array(tmp_path / name)


def test_numbers_that_float32_rounds_stay_as_they_are(tmp_path: Path) -> None:
    frame = pd.DataFrame({"far": [5932154.05, 5932154.1], "s": [1_700_000_001, 1_700_000_002]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    np.save(tmp_path / "t.npy", frame.to_numpy())
    np.savez(tmp_path / "t.npz", x=frame.to_numpy())
    for name in ("t.csv", "t.parquet", "t.npy", "t.npz"):
        x = read_array(tmp_path / name)
        assert x.dtype == torch.float64
        assert x.tolist() == frame.to_numpy().tolist()
    assert read_array(save(tmp_path / "i.npy", frame[["s"]].to_numpy())).tolist() == frame[["s"]].to_numpy().tolist()
    with pytest.raises(UserError, match="column 1 holds numbers near"):
        read_array(save(tmp_path / "i.npy", 10**18 + frame[["s"]].to_numpy() - 1_700_000_000))


def test_columns_are_left_out_and_matched(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["u", "v"], "a": [1.0, 2.0], "b": [3.0, np.nan]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    x, layout, *_ = read_rows(tmp_path / "t.csv", drop=["id"], finite=False)
    assert layout.names == ["a", "b"]
    np.testing.assert_array_equal(x, frame[["a", "b"]])
    frame[["b", "id", "a"]].to_csv(tmp_path / "other.csv", index=False)
    np.testing.assert_array_equal(read_rows(tmp_path / "other.csv", layout=layout, finite=False).x, x)
    for words, message in (
        ({"drop": ["x"]}, "no column 'x'; there are id, a, b"),
        ({"drop": ["id"]}, r"column 'b' is missing \(NaN\) in line 3"),
        ({"layout": layout, "drop": ["a"]}, "the model needs it"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_rows(tmp_path / "t.csv", **words)
        assert caught.value.argument == str(tmp_path / "t.csv")
    for words in ({"header": True}, {"drop": ["a"]}):
        with pytest.raises(UserError, match=r"is for tables, and a\.npy is none"):
            read_rows(save(tmp_path / "a.npy", np.zeros((2, 2))), **words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("a,b\n", "no rows"),
        ("a,b\n1,x\n2,3\n", "column 'b'"),
        ("a,b\n1,u\n2,v\n", "not numbers in column 'b'"),
        ("a,b\n1,2\n3,\n", "column 'b' is missing .* in line 3"),
        ("a,b\n1,2\n3\n", "too many or too few values"),
        ("a,b\n1,2\n3,4,5\n", "too many or too few values"),
        ("a,b\n1,2,3\n3,4,5\n", "too many or too few values"),
        ("a,b,\n1,2,\n3,4,\n", "column '' has no value"),
        ("a,a\n1,2\n3,4\n", "column 'a' there twice"),
        ("a;b\n1,5;2,5\n", "separated by semicolons"),
        ("a,b\n1,1e300\n", r"column 'b' is 1e\+300 in line 2; rescale"),
        ("a,b\n1,inf\n", r"column 'b' is infinite \(infinity\) in line 2"),
        ("\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message) as caught:
        read_array(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)
    assert "t.csv" in str(caught.value)


def truncated(path: Path) -> Path:
    data = save(path, np.zeros((10, 10))).read_bytes()
    path.write_bytes(data[:-100])
    return path


def bomb(path: Path) -> Path:
    declared = header_only(path.with_suffix(".npy"), (1 << 33,)).read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", declared)
    return path


def keys(path: Path) -> Path:
    np.savez(path, left=PIXELS, right=PIXELS)
    return path


def cut_zip(path: Path) -> Path:
    path.write_bytes(keys(path).read_bytes()[:-30])
    return path


def flipped_zip(path: Path) -> Path:
    np.savez(path, x=np.zeros((10, 10)))
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(bytes(data))
    return path


def cut_png(path: Path) -> Path:
    png(path, np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:1000])
    return path


def vast_png(path: Path) -> Path:
    buffer = io.BytesIO()
    Image.new("1", (10, 10)).save(buffer, "png")
    data = bytearray(buffer.getvalue())
    data[16:24] = (30_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    path.write_bytes(bytes(data))
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def text(path: Path) -> Path:
    path.write_text("not what its name says")
    return path


def no_bytes(path: Path) -> Path:
    path.touch()
    return path


BAD: list[tuple[str, Callable[[Path], Path], type[UserError], str]] = [
    ("none.npy", lambda p: p, UserError, "no such file"),
    ("cut.npy", truncated, DamagedFile, "truncated"),
    ("vast.npy", lambda p: header_only(p, (1 << 33,)), UserError, r"32\.0 GiB"),
    ("minus.npy", lambda p: header_only(p, (-1, 3)), DamagedFile, "declares"),
    ("bomb.npz", bomb, UserError, r"bomb\.npz\[x\].* 32\.0 GiB"),
    ("keys.npz", keys, UserError, "left, right"),
    ("cut.npz", cut_zip, DamagedFile, "damaged"),
    ("flip.npz", flipped_zip, DamagedFile, "CRC"),
    ("pickle.npy", lambda p: save(p, np.array([{}], dtype=object)), UserError, "pickles"),
    ("complex.npy", lambda p: save(p, np.zeros((2, 2), complex)), UserError, "complex128"),
    ("words.npy", lambda p: save(p, np.array([["a"]])), UserError, "dtype <U1"),
    ("five.npy", lambda p: save(p, np.zeros((1, 1, 1, 1, 1))), UserError, "5-D"),
    ("axes.npy", lambda p: save(p, np.zeros((2, 7, 5, 6))), UserError, "channels"),
    ("nan.npy", lambda p: save(p, np.array([[1.0], [np.nan]])), UserError, "first row 1 \\(counted from 0\\)"),
    ("range.npy", lambda p: save(p, PIXELS.astype(np.float32)), UserError, "divide by 255"),
    ("deep.npy", lambda p: save(p, PIXELS.astype(np.uint16) * 257), UserError, "of 16 bits .* divide by .* 65535"),
    ("normal.npy", lambda p: save(p, PIXELS / 60.0 - 2), UserError, r"scale them to \[0, 1\]"),
    ("none_wide.npy", lambda p: save(p, np.zeros((200, 0))), UserError, "one column or more"),
    ("scalar.npy", lambda p: save(p, np.float64(3)), UserError, "a single number"),
    ("no_bytes.png", no_bytes, DamagedFile, "an empty file"),
    ("none.npz", text, DamagedFile, "damaged"),
    ("none.npy", text, DamagedFile, "damaged"),
    ("none.parquet", text, DamagedFile, "damaged"),
    ("none.png", text, DamagedFile, "damaged"),
    ("cut.png", cut_png, DamagedFile, "damaged"),
    ("vast.png", vast_png, UserError, "64 megapixels"),
    ("deep.tif", lambda p: png(p, np.zeros((2, 2), np.float32)), UserError, "8 or 16 bits a channel"),
    ("empty", folder, UserError, "in this folder"),
    ("what.pkl", text, UserError, r"cannot read \.pkl; give"),
]


@pytest.mark.parametrize(("name", "make", "kind", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_files_are_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], Path], kind: type[UserError], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_array(make(tmp_path / name))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_large_image_under_pillows_own_limit_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LIMIT_PIXELS", 10)
    with pytest.raises(UserError, match="megapixels"):
        read_array(png(tmp_path / "a.png", PIXELS[0]))


SHAPES = [
    ((2, 28, 28), (1, 28, 28), "image", r"reshape\(-1, 1, 28, 28\)"),
    ((1, 28, 28), (1, 28, 28), "image", r"x\[None\]"),
    ((2, 28, 28, 3), (3, 28, 28), "image", r"permute\(0, 3, 1, 2\)"),
    ((2, 1, 5, 4), (1, 4, 5), "image", r"transpose\(2, 3\)"),
    ((2, 3, 4, 5), (1, 4, 5), "image", "3 channels where 1"),
    ((2, 1, 8, 8), (1, 4, 5), "image", "resize to 4 x 5"),
    ((2, 784), (1, 28, 28), "image", r"reshape\(-1, 1, 28, 28\)"),
    ((3, 9), (3,), "vector", r"x\.T"),
    ((3,), (3,), "vector", r"x\[None\]"),
    ((2, 1, 4, 5), (20,), "vector", r"reshape\(-1, 20\)"),
    ((0, 3), (3,), "vector", "one row or more"),
    ((2, 4), (3,), "vector", r"must have the shape \(N, 3\); it has \(2, 4\)"),
]


@pytest.mark.parametrize(("got", "shape", "kind", "hint"), SHAPES)
def test_wrong_shapes_come_with_the_move_that_mends_them(got: tuple, shape: tuple, kind: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        check_input(torch.zeros(got), shape, kind)


def test_python_input_becomes_float32_in_data_units() -> None:
    x = check_input(torch.full((2, 1, 2, 2), 255, dtype=torch.uint8), (1, 2, 2), "image")
    assert x.dtype == torch.float32
    assert float(x.max()) == 1.0
    for given, kept in ((torch.float32, torch.float32), (torch.float64, torch.float64), (torch.int16, torch.float32)):
        assert check_input(torch.zeros(2, 3, dtype=given), (3,), "vector").dtype == kept
    assert check_input(torch.zeros(2, 1, 2, 2, dtype=torch.float64), (1, 2, 2), "image").dtype == torch.float32
    for bad in (torch.zeros(2, 1, 2, 2, dtype=torch.int64), torch.zeros(2, 1, 2, 2, dtype=torch.complex64)):
        with pytest.raises(UserError, match="must be"):
            check_input(bad, (1, 2, 2), "image")
    with pytest.raises(UserError, match=r"span \[0, 200\]"):
        check_input(torch.tensor([0.0, 200.0]).reshape(2, 1, 1, 1), (1, 1, 1), "image")


@pytest.mark.parametrize("n", [1, 2, 19])
def test_few_rows_are_too_few_to_train_on(n: int) -> None:
    require_trainable(torch.zeros(20, 3))
    with pytest.raises(UserError, match=rf"x: holds {n} rows?, training needs at least 20"):
        require_trainable(torch.zeros(n, 3))
