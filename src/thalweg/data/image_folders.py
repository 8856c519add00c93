"""Images in files as data to train on: a folder of them, their classes, and what is left out."""

from pathlib import Path

from thalweg.core.errors import UserError
from thalweg.data.files import read_rows
from thalweg.data.formats.images import IMAGE_SUFFIXES
from thalweg.data.options import DataOptions
from thalweg.data.sets.base import RawData


def is_image(path: Path) -> bool:
    """Whether a file's ending is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def read_images(path: Path, options: DataOptions) -> RawData:
    """The images of a folder, or in a file, as `options` say: `size`, `labels`, `skip_bad`."""
    if options.size is not None or options.labels is not None or options.skip_bad:
        raise UserError("is not read yet", argument="size, labels, skip_bad")
    x = read_rows(path).x
    return RawData(x, None, f"{path}, {len(x):,} images of {' x '.join(map(str, x.shape[1:]))}")
