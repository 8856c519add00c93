"""Pictures in files: what a viewer shows is what is read, by one rule, and what is left out is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from thalweg.core.errors import UserError
from thalweg.data.catalog import load
from thalweg.data.files import read_rows
from thalweg.data.formats.images import decode, probe
from thalweg.data.image_files import list_images
from thalweg.data.options import DataOptions

ORIENTATION = 0x0112
LEFT_BRIGHT = np.repeat(np.arange(250, 10, -30, np.uint8)[None], 6, 0)  # (6, 8), so that no turn looks like another
LEFT_BRIGHT[0] = 0
UNDO = {  # the pixels that are stored, for those that a viewer shows; TIFF 6.0, tag 274
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, 3),
}


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[ORIENTATION] = orientation
    return found


def photos(folder: Path, classes: dict[str, int], size: tuple[int, int] = (12, 9)) -> Path:
    for k, (name, n) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new("RGB", size, (40 * k, 10 * i % 256, 90)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", UNDO)
def test_a_turned_picture_is_the_one_that_it_shows(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(UNDO[orientation](LEFT_BRIGHT)))
    options = {"lossless": True} if suffix == "webp" else {}
    stored.save(tmp_path / f"a.{suffix}", exif=exif(orientation), **options)
    header = probe(tmp_path / f"a.{suffix}")
    assert (header.width, header.height) == (8, 6)
    np.testing.assert_array_equal(decode(tmp_path / f"a.{suffix}", channels=1)[0], LEFT_BRIGHT)


def test_turned_files_have_the_size_of_the_others(tmp_path: Path) -> None:
    """A mutant that asks the stored size refuses the phone's."""
    for i in range(3):
        Image.new("L", (30, 20), i).save(tmp_path / f"{i}.png")
    Image.new("L", (20, 30)).save(tmp_path / "phone.jpg", exif=exif(6))
    assert read_rows(tmp_path).x.shape == (4, 1, 20, 30)


def test_hidden_colours_do_not_count(tmp_path: Path) -> None:
    """White shows through, half of it where alpha is half; of masks black."""
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (2, 8, 8, 4), np.uint8)
    pixels[..., 3] = 0
    pixels[:, 2:6, 2:6] = (200, 30, 30, 255)
    pixels[:, 0, 0] = (0, 0, 0, 128)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{i}.png")
    x = read_rows(tmp_path).x.numpy()
    np.testing.assert_array_equal(x[0], x[1])
    assert x[0, :, 0, 1].tolist() == [255] * 3
    assert x[0, :, 3, 3].tolist() == [200, 30, 30]
    assert 126 <= x[0, 0, 0, 0] <= 128
    masks = read_rows(tmp_path, bounded=False).x.numpy()
    assert masks[0, :, 0, 1].tolist() == [0] * 3


def palette(path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=0)


@pytest.mark.parametrize(
    ("name", "write", "shown"),
    [
        ("palette.png", palette, [[255, 255, 255], [40, 50, 60]]),
        ("bits.png", lambda p: Image.fromarray(np.array([[False, True]])).save(p), [[0], [255]]),
        ("deep.png", lambda p: Image.fromarray(np.array([[0x80FF, 0xFFFF]], np.uint16)).save(p), [[0x80], [255]]),
        ("deep.pgm", lambda p: p.write_bytes(b"P5 2 1 1023\n" + bytes([2, 0, 3, 255])), [[0x80], [255]]),
        ("bits.pgm", lambda p: p.write_bytes(b"P5 2 1 1\n" + bytes([0, 1])), [[0], [255]]),
        ("grey.png", lambda p: Image.new("LA", (2, 1), (7, 255)).save(p), [[7], [7]]),
        ("ink.tif", lambda p: Image.new("CMYK", (2, 1), (0, 255, 255, 0)).save(p), [[255, 0, 0]] * 2),
        ("camera.jpg", lambda p: frames(p, "MPO"), [[0], [0]]),
    ],
)
def test_every_kind_of_pixel_is_read_by_the_rule(tmp_path: Path, name: str, write, shown: list) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path / name)
    assert decode(tmp_path / name)[:, 0].T.tolist() == shown


def frames(path: Path, format: str) -> None:
    first = Image.new("L", (2, 1))
    first.save(path, format, save_all=True, append_images=[Image.new("L", (2, 1), 255)])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("two.png", lambda p: frames(p, "PNG"), "several frames"),
        ("two.gif", lambda p: frames(p, "GIF"), "several frames"),
        ("two.tif", lambda p: frames(p, "TIFF"), "several frames"),
        ("two.webp", lambda p: frames(p, "WEBP"), "several frames"),
        ("float.tif", lambda p: Image.fromarray(np.ones((1, 2), np.float32)).save(p), "8 or 16 bits a channel"),
        ("wide.tif", lambda p: Image.fromarray(np.ones((1, 2), np.int32)).save(p), "8 or 16 bits a channel"),
        ("lab.tif", lambda p: Image.new("LAB", (2, 1)).save(p), "grey or RGB"),
        ("post.png", lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "not what its name says"),
    ],
)
def test_what_nothing_shows_alike_is_refused(tmp_path: Path, name: str, write, message: str) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path / name)
    for read in (probe, decode):
        with pytest.raises(UserError, match=message) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png"])
def test_zeros_and_ones_in_bytes_are_refused(tmp_path: Path, suffix: str) -> None:
    """They would be black. As bool or float they are read; so is a dark photograph with a bright pixel of 1."""
    bits = np.tile(np.eye(4, dtype=np.uint8), (30, 1, 2, 2))
    path = tmp_path / f"bits{suffix}"

    def save(x: np.ndarray) -> None:
        if suffix == ".png":
            Image.fromarray(x[0, 0]).save(path)
        else:
            np.save(path, x) if suffix == ".npy" else np.savez(path, x=x)

    save(bits)
    with pytest.raises(UserError, match=r"0 and 1 alone.*multiply by 255"):
        read_rows(path)
    save(255 * bits)
    assert read_rows(path).x.max() == 255
    dark = np.zeros((30, 1, 40, 40), np.uint8)
    dark[0, 0, 0, 0] = 1
    save(dark)
    assert read_rows(path).x.max() == 1
    if suffix != ".png":
        save(bits.astype(bool))
        assert read_rows(path).x.unique().tolist() == [0, 1]


def test_size_takes_the_middle_with_antialiasing(tmp_path: Path) -> None:
    """A fine stripe pattern becomes its mean; a mutant that picks pixels keeps black and white."""
    image = Image.new("RGB", (120, 60), "red")
    stripes = np.zeros((60, 60), np.uint8)
    stripes[:, ::2] = 255
    image.paste(Image.fromarray(stripes), (30, 0))
    image.save(tmp_path / "a.png")
    x = decode(tmp_path / "a.png", size=6)
    assert x.shape == (3, 6, 6)
    assert 110 < x[:, :, 1:5].min() <= x[:, :, 1:5].max() < 145
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif(6))
    np.testing.assert_allclose(decode(tmp_path / "turned.png", size=6).astype(int), x, atol=1)
    image.resize((1200, 600)).save(tmp_path / "large.jpg", quality=95)  # decoded at a part of its size
    np.testing.assert_allclose(decode(tmp_path / "large.jpg", size=6).astype(int)[:, :, 1:5], x[:, :, 1:5], atol=30)
    assert decode(tmp_path / "a.png", size=90).shape == (3, 90, 90)


def test_folders_in_the_folder_are_read_and_others_counted(tmp_path: Path) -> None:
    root = photos(tmp_path / "in", {"b": 2, "a/deep": 2, ".hidden": 1, "run": 1})
    (root / "b" / ".dot.png").write_bytes(b"")
    (root / "notes.txt").write_text("x")
    for name in ("config.json", "manifest.json"):
        (root / "run" / name).write_text("{}")
    (root / "again").symlink_to(root)
    found = list_images(root)
    names = ["a/deep/0.png", "a/deep/1.png", "b/0.png", "b/1.png"]
    assert [file.relative_to(root).as_posix() for file in found.files] == names == read_rows(root).names
    assert (found.hidden, found.foreign) == (2, 1 + 3)
    assert found.passed_over == "2 hidden and 4 of other kinds"


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    root = photos(tmp_path / "in", {"a": 20})
    Image.new("L", (30, 31)).save(root / "odd.png")
    with pytest.raises(UserError, match=r"odd\.png: is 30 x 31 pixels, most are 12 x 9; size=64 \(--size 64\)"):
        load(str(root))
    data = load(str(root), DataOptions(size=8))
    assert data.shape == (3, 8, 8)
    assert "the shorter side resized to 8 pixels, the middle kept" in data.source
    left = load(str(root), DataOptions(skip_bad=True))
    assert (left.shape, len(left.train) + len(left.held_out)) == ((3, 9, 12), 20)
    assert "1 left out" in left.source
    assert any(line.startswith("left out odd.png: ") and "30 x 31" in line for line in left.notes)


def test_skip_bad_names_each_file(tmp_path: Path) -> None:
    """One whose header is wrong, one that breaks off, and a link to none; without it the first is one line."""
    root = photos(tmp_path / "in", {"a": 30})
    ImageDraw.Draw(noisy := Image.effect_noise((12, 9), 90)).point((0, 0), 1)
    noisy.convert("RGB").save(root / "a" / "cut.png")
    (root / "a" / "cut.png").write_bytes((root / "a" / "cut.png").read_bytes()[:-90])
    (root / "a" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"bad\.png: damaged"):
        load(str(root))
    data = load(str(root), DataOptions(skip_bad=True))
    assert [line.partition(":")[0] for line in data.notes[:2]] == ["left out a/bad.png", "left out a/cut.png"]
    assert "2 of 32 images left out" in data.notes[2]
    (root / "a" / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"a\.png: a link to .*gone\.png, which is not there") as caught:
        load(str(root))
    assert caught.value.skippable
    assert load(str(root), DataOptions(skip_bad=True)).notes[0].startswith("left out a/a.png: a link to ")
    assert len(data.train) + len(data.held_out) == 30


def test_folders_are_classes(tmp_path: Path) -> None:
    data = load(str(photos(tmp_path / "in", {"cat": 12, "ant/far": 8, "bee": 10})), DataOptions(labels="folder"))
    assert (data.class_names, data.num_classes) == (("ant", "bee", "cat"), 3)
    assert data.train_labels is not None
    assert data.held_out_labels is not None
    counts = data.train_labels.bincount() + data.held_out_labels.bincount(minlength=3)
    assert counts.tolist() == [8, 10, 12]
    red = {0: 40, 1: 80, 2: 0}  # by the order in which they were written
    assert data.train[:, 0, 0, 0].tolist() == [red[int(label)] for label in data.train_labels]
    digits = load(str(photos(tmp_path / "digits", {"10": 10, "9": 10, "2": 10})), DataOptions(labels="folder"))
    assert digits.class_names == ("2", "9", "10")


@pytest.mark.parametrize("head", ["file,kind\n", ""], ids=["header", "no header"])
def test_a_table_gives_classes(tmp_path: Path, head: str) -> None:
    root, table = photos(tmp_path / "in", {"a": 12, "b": 12}), tmp_path / "labels.csv"
    lines = [
        f"{'./' * (i % 2)}{name},{'even' if i % 2 == 0 else 'odd'}" for i, name in enumerate(read_rows(root).names)
    ]
    table.write_text(head + "\n".join(lines) + "\n")
    data = load(str(root), DataOptions(labels=str(table)))
    assert data.class_names == ("even", "odd")
    assert data.train_labels is not None
    assert data.train_labels.bincount().tolist() == [11, 11] or sum(data.train_labels.bincount().tolist()) == 22
    data.files.write(tmp_path)
    table.write_text(head + "\n".join([lines[1].replace("odd", "even"), *lines[2:], lines[0]]) + "\n")
    changed = load(str(root), DataOptions(labels=str(table)))
    assert changed.files.changes(tmp_path) == "changed: labels.csv"
    assert changed.fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], r"must name each image of .*, and lacks 'b/9\.png'"),
        (lambda lines: [*lines, "c/1.png,x"], r"names 'c/1\.png', which is not there"),
        (lambda lines: [*lines, lines[3]], r"line 22: must name each image once, and names 'a/3\.png' twice"),
        (lambda lines: [lines[0].replace("x", ""), *lines[1:]], r"must give each image a class, .*'a/0\.png' none"),
        (lambda lines: [f"{line},1" for line in lines], "too many"),
        (lambda lines: [line.replace("y", "x") for line in lines], "two classes or more, and gives 'x' alone"),
        (lambda lines: [*lines[:-1], "b/9.png,z"], "each class 2 images or more, and gives 'z' one"),
    ],
)
def test_labels_that_do_not_match_are_one_line(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    root, table = photos(tmp_path / "in", {"a": 10, "b": 10}), tmp_path / "labels.csv"
    lines = [f"{name},{'xy'[i // 10]}" for i, name in enumerate(read_rows(root).names)]
    table.write_text("name,class\n" + "\n".join(change(lines)) + "\n")
    with pytest.raises(UserError, match=message) as caught:
        load(str(root), DataOptions(labels=str(table)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        ({"a": 20}, {"labels": "folder"}, "two classes or more, and gives 'a' alone"),
        ({"a": 20, "b": 1}, {"labels": "folder"}, "2 images or more, and gives 'b' one"),
        ({"a": 20, "b": 0}, {"labels": "folder"}, "has none in 'b'"),
        ({"a": 20, ".": 2}, {"labels": "folder"}, r"'0\.png', '1\.png' lie beside"),
        ({"a": 20}, {"labels": "none.csv"}, "no such file"),
        ({"a": 20}, {"labels": "."}, "labels='.': must be a table, and is a folder; give \"folder\" where"),
        ({}, {}, r"no \.png, .* in this folder"),
        ({"a": 20}, {"header": True}, "is for tables, and .* is images in files; leave it out"),
        ({"a": 20}, {"column": "image"}, "is for images in Parquet"),
        ({"a": 20}, {"size": 0}, r"size=0: must be a whole number in \[1, 4096\]"),
    ],
)
def test_bad_folders_are_one_line(tmp_path: Path, classes: dict, options: dict, message: str) -> None:
    root = tmp_path / "in"
    root.mkdir()
    photos(root, classes)
    with pytest.raises(UserError, match=message) as caught:
        load(str(root), DataOptions(**options))
    assert "\n" not in str(caught.value)
