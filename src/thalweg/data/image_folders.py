"""Images in files as data to train on: a folder of them, their classes, and what is left out or altered."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from thalweg.core.errors import UserError
from thalweg.data import stored_rows
from thalweg.data.file_digests import FileDigests
from thalweg.data.image_files import ImageListing, ImageSurvey, pictures_of, read_pixels, survey
from thalweg.data.image_labels import classes_of_images
from thalweg.data.options import FOLDER, DataOptions
from thalweg.data.sets.base import RawData
from thalweg.data.stored.folder import FolderRows
from thalweg.data.validate import LEAST_ROWS

SHOWN = 5  # names in a message
PROPOSED = 64  # pixels, the most that is proposed for images of several sizes


def read_images(path: Path, options: DataOptions) -> RawData:
    """The images of a folder, or in a file, as `options` say: `size`, `labels`, `skip_bad`.

    UserError: a folder without images; without `size` images of several sizes; without `skip_bad` one that cannot be
    read; labels as `image_labels.classes_of_images` says.
    """
    listed = pictures_of(path)
    classes = None if options.labels is None else classes_of_images(listed.files, path, options.labels)
    found = surveyed(listed.files, path, options)
    if len(found.files) * math.prod(found.shape) > stored_rows.KEPT_BYTES:
        codes = None if classes is None else classes.of(found.files)[0]
        x = FolderRows(found, path, codes, skip_bad=options.skip_bad)
    else:
        pixels, found = read_pixels(found, path, skip_bad=options.skip_bad)
        x = torch.from_numpy(pixels)
    if found.left_out and len(x) < LEAST_ROWS:
        lost = ", ".join(each.name for each in found.left_out[:SHOWN]) + (", …" if len(found.left_out) > SHOWN else "")
        text = f"holds {len(x)} images that can be used, training needs at least {LEAST_ROWS}, and "
        raise UserError(f"{text}{len(found.left_out)} were left out: {lost}", argument=str(path), hint="give more")
    lost = f", {len(found.left_out):,} left out" if found.left_out else ""
    what = f"{path}, {len(x):,} images of {' x '.join(map(str, found.shape))}{resized(options.size)}{lost}"
    labels, names = (None, ()) if classes is None else classes.of(found.files)
    notes = tuple(reading_notes(path, listed, found, names))
    files = x.files if isinstance(x, FolderRows) else FileDigests(found.files, path)
    if options.labels not in (None, FOLDER):
        files = FileDigests([Path(options.labels)], path, beside=files)
    return RawData(x, labels, what, class_names=names, notes=notes, files=files)


def surveyed(files: Sequence[Path], path: Path, options: DataOptions) -> ImageSurvey:
    """The headers of images to train on; images of several sizes are refused with the option that mends it."""
    mend = f"size={PROPOSED} (--size {PROPOSED}) resizes and crops all"
    return survey(files, path, size=options.size, skip_bad=options.skip_bad, mend=mend)


def resized(size: int | None) -> str:
    """What was done to images of other sizes, in a few words."""
    return "" if size is None else f" (the shorter side resized to {size} pixels, the middle kept)"


def reading_notes(path: Path, listed: ImageListing, found: ImageSurvey, names: Sequence[str]) -> list[str]:
    """Lines for people: what was passed over and left out, and what of the images is not as it is stored."""
    notes = [f"{path}: {listed.passed_over} passed over"] if listed.passed_over else []
    if names:
        notes.append(f"classes: {', '.join(f'{i} {name}' for i, name in enumerate(names))}")
    notes += [f"left out {each.name}: {each.reason}" for each in found.left_out]
    if found.left_out:
        notes.append(f"{path}: {len(found.left_out):,} of {len(listed.files):,} images left out")
    return [*notes, *(f"{path}: {line}" for line in found.altered())]
