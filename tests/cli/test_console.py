"""An output is no input: by its name, by links, or as one of a folder's files."""

import pytest

from thalweg.cli import console
from thalweg.core.errors import UserError


@pytest.fixture
def place(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "run").mkdir()
    for name in ("images/a.png", "images/scores.csv", "run/config.json", "run/preview.png", "run/mine.png", "x.npy"):
        (tmp_path / name).write_bytes(b"held")
    (tmp_path / "link.npy").symlink_to(tmp_path / "x.npy")
    (tmp_path / "twin.npy").hardlink_to(tmp_path / "x.npy")
    (tmp_path / "twin.png").hardlink_to(tmp_path / "images" / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("x.npy", "the file that is read"),
        ("images/../x.npy", "the file that is read"),
        ("link.npy", "the file that is read"),
        ("twin.npy", "the file that is read"),
        ("images", "the folder that is read"),
        ("run/", "the folder that is read"),
        ("images/a.png", "a file of .*images, which is read"),
        ("twin.png", "a file of .*images, which is read"),
        ("run/preview.png", "a file of .*run, which is read"),
    ],
)
def test_no_input_is_overwritten(place, out, message):
    with pytest.raises(UserError, match=f"{message}; name another place"):
        console.refuse_overwrite(place / out, place / "x.npy", None, place / "images", place / "run", place / "gone")


@pytest.mark.parametrize("out", ["new.png", "images/new.png", "images/scores.csv", "run/mine.png", "run/new.png"])
def test_other_places_are_free(place, out):
    """Mutant: everything in a folder that is read refused, by which no command could be given twice."""
    console.refuse_overwrite(place / out, place / "x.npy", place / "images", place / "run", place / "gone")
