"""Some messages by text, one for each kind of mistake; other tests assert type, `argument` and exit code."""

import pytest

MESSAGES = {
    "train two-moon --steps 2": "'two-moon': no such data set or path; did you mean two-moons? the names are digits, "
    "mnist, fashion-mnist, two-moons, eight-gaussians, checkerboard, rings",
    "train cut.npy --steps 2": "cut.npy: declares 320 bytes, holds 311; it is truncated, so fetch it again",
    "train object.npy --steps 2": "object.npy: holds Python objects, and pickles are not opened; save float32 or uint8",
    "train words.csv --steps 2": "words.csv: holds 1 row, training needs at least 20; give more data",
    "train one.npy --steps 2": "one.npy: holds 1 row, training needs at least 20; give more data",
    "train nan.npy --steps 2": "nan.npy: must be finite in float32; 4 of 4 rows are not, first row 0 (counted "
    "from 0); drop or fill them",
    "train two-moons --steps 2 --recipe nothing.yaml": "nothing.yaml: cannot be read (No such file or directory)",
    "train two-moons --steps 2 energy.widht=3": "energy.widht: no such key; did you mean 'width'?",
    "train two-moons --steps 2 energy.width=many": "energy.width='many': must be a whole number",
    "train two-moons --steps 2 energy.widths=[8": "energy.widths= line 1: the bracket [ is not closed; close it with ]",
    "train two-moons --steps 2 width": "'width': must be an assignment; write it as section.key=value",
    "train two-moons --steps 2 energy.type=os:system": "energy.type='os:system': is refused: only classes of "
    "thalweg.energy, thalweg.sampler, thalweg.objective, thalweg.data may be built",
    "train two-moons --steps 2 seed=3": "seed: must be given as an argument, not as an override; see "
    "`thalweg train --help`",
    "train two-moons --steps 2 --minutes 1": "steps: must be given alone, not with minutes; give one of them",
    "train two-moons --steps 2 -o plane.npy": "plane.npy: must be a folder, and is a file; name another folder with -o",
    "train two-moons --steps 2 -o other --resume": "other: must be of format 2, and was written by thalweg 7.0 "
    "in format 99; train or fit again with this version",
    "sample empty": "empty: must hold a config.json, as every run does; give the folder that `thalweg train` wrote",
    "sample nothing": "nothing: no such folder; check the spelling and the working directory",
    "score DIGITS bright.npy": "bright.npy: must be uint8 in 0..255 or float in [0, 1]; these floats span [200, 200]; "
    "divide by 255?",
    "score DIGITS large.npy": "large.npy: must have the shape (N, 1, 8, 8); it has (4, 1, 9, 9); resize to "
    "8 x 8 pixels",
    "score DIGITS plane.npy -o no/s.csv": "no/s.csv: must be in a folder that exists; make the folder no first",
}


@pytest.mark.parametrize("words", MESSAGES)
def test_message(words, thalweg_command, place, runs):
    code, out, err = thalweg_command(*(str(runs / "digits") if word == "DIGITS" else word for word in words.split()))
    assert (code, out, err[-1]) == (2, "", f"thalweg: {MESSAGES[words]}")
