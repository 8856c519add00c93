"""Many pictures as one array: which files of a folder they are, and pixels of one shape."""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thalweg.core.errors import UserError
from thalweg.data.formats.base import check_size
from thalweg.data.formats.images import IMAGE_SUFFIXES, WHITE, ImageHeader, decode, is_broken, probe
from thalweg.data.run_folders import looks_like_run, refuse_run

THREADS = min(8, os.cpu_count() or 1)  # decoders release Python's lock


class ImageListing(NamedTuple):
    """What a folder holds.

    Args:
        files: Its pictures and those of the folders in it, sorted by their path from it.
        hidden: How many files and folders were passed over as their name begins with a dot.
        foreign: How many files have another ending, or lie in the folder of a run.
    """

    files: list[Path]
    hidden: int
    foreign: int

    @property
    def passed_over(self) -> str:
        """What is not read, in a few words; empty where all is."""
        counts = {"hidden": self.hidden, "of other kinds": self.foreign}
        return " and ".join(f"{n:,} {what}" for what, n in counts.items() if n)


class LeftOut(NamedTuple):
    """A file that is not used, by its path from the folder, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ImageSurvey:
    """Pictures whose headers have been read, and which agree; none is decoded yet.

    Attributes:
        files: Those to decode.
        headers: What each header says.
        shape: (C, H, W) of all.
        size: As `decode` takes it.
        background: The same.
        left_out: Those that cannot be used.
    """

    files: list[Path]
    headers: list[ImageHeader]
    shape: tuple[int, int, int]
    size: int | None = None
    background: int = WHITE
    left_out: list[LeftOut] = field(default_factory=list)

    def decode(self, i: int) -> np.ndarray:
        """Picture i, uint8 (C, H, W); UserError where it is not what its header said."""
        file, (channels, height, width) = self.files[i], self.shape
        pixels = decode(file, channels=channels, size=self.size, background=self.background)
        if pixels.shape != self.shape:
            what = f"is {pixels.shape[2]} x {pixels.shape[1]} pixels, the others are {width} x {height}"
            raise UserError(what, argument=str(file), hint="resize it")
        return pixels

    def altered(self, *, resized: bool = False) -> list[str]:
        """What of the pictures is not as it is stored, a line each; `resized`: which have another size among it."""
        side, ground = self.size or 0, "white" if self.background else "black"
        counts = {
            "turned as their EXIF orientation says": sum(h.turned for h in self.headers),
            f"with transparency, laid on {ground}": sum(h.alpha for h in self.headers),
            "of 16 bits, of which the upper 8 are read": sum(h.deep for h in self.headers),
            f"smaller than {side} pixels, enlarged": sum(min(h.width, h.height) < side for h in self.headers),
        }
        if resized and side:
            odd = sum((h.width, h.height) != (side, side) for h in self.headers)
            counts[f"resized to {side} x {side} pixels, the middle kept, as in training"] = odd
        return [f"{n:,} of {len(self.headers):,} images {what}" for what, n in counts.items() if n]


def list_images(folder: Path) -> ImageListing:
    """The pictures of a folder and of the folders in it. Linked folders are followed once; runs are not entered.

    A link that leads nowhere counts as a picture, which whoever reads it finds missing.
    """
    found: list[tuple[str, str]] = []  # as strings: 100,000 paths are slow to compare
    hidden = foreign = 0
    waiting, seen = [(os.fspath(folder), "")], set()
    while waiting:
        place, prefix = waiting.pop()
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(place) as entries:
            inside = [*entries]
        names = {entry.name for entry in inside}
        if prefix and looks_like_run(names):
            foreign += len(inside)
            continue
        for entry in inside:
            if entry.name.startswith("."):
                hidden += 1
            elif entry.is_dir():
                waiting.append((entry.path, f"{prefix}{entry.name}/"))
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and (entry.is_file() or is_broken(entry)):
                found.append((prefix + entry.name, entry.path))
            else:
                foreign += 1
    return ImageListing([Path(path) for _, path in sorted(found)], hidden, foreign)


def image_files(folder: Path) -> list[Path]:
    """The pictures of a folder and of the folders in it, sorted by their path from it; `listing` counts the others."""
    return list_images(folder).files


def relative(file: Path, root: Path) -> str:
    """The path of a file from a folder, with slashes; the name of a file that is not in it."""
    return file.relative_to(root).as_posix() if file != root and root in file.parents else file.name


def pictures_of(path: Path) -> ImageListing:
    """The pictures of a folder, or one picture; UserError where there is none, and for the folder of a run."""
    if not path.is_dir():
        return ImageListing([path], 0, 0)
    refuse_run(path)
    found = list_images(path)
    if not found.files:
        also = f", {found.passed_over} passed over" if found.passed_over else ""
        what = f"no {', '.join(IMAGE_SUFFIXES)} in this folder{also}"
        raise UserError(what, argument=str(path), hint="name the one that holds them")
    return found


def survey(
    files: Sequence[Path],
    root: Path,
    *,
    shape: tuple[int, ...] | None = None,
    size: int | None = None,
    background: int = WHITE,
    skip_bad: bool = False,
    mend: str = "resize it",
) -> ImageSurvey:
    """Read the headers of pictures and settle what all are read as: grey if none has colour, and one size.

    Args:
        files: The pictures.
        root: The folder that they are named from.
        shape: (C, H, W) picks grey or colour.
        size: The side to which all are resized and cropped; None: they must have one size, which is that of most.
        background: As `decode` takes it.
        skip_bad: Leave out those that cannot be used; else the first is a UserError, `skippable` where there are more.
        mend: What to do about another size.
    """
    good: list[tuple[Path, ImageHeader]] = []
    left_out: list[LeftOut] = []
    for file in files:
        try:
            good.append((file, probe(file)))
        except UserError as error:
            _leave_out(left_out, error, file, root, skip_bad)
    if good and size is None:
        (most, _), *_ = Counter((h.width, h.height) for _, h in good).most_common(1)
        others = "most are"
        if shape is not None and len(shape) == 3:
            most, others = (shape[2], shape[1]), "the model's are"
        for file, header in good:
            if (header.width, header.height) != most:
                what = f"is {header.width} x {header.height} pixels, {others} {most[0]} x {most[1]}"
                _leave_out(left_out, UserError(what, argument=str(file), hint=mend), file, root, skip_bad)
        good = [(file, header) for file, header in good if (header.width, header.height) == most]
    _require_some(good, root, len(files), left_out)
    channels = shape[0] if shape is not None and len(shape) == 3 else None
    grey = channels == 1 or (channels != 3 and all(header.grey for _, header in good))
    height, width = (good[0][1].height, good[0][1].width) if size is None else (size, size)
    return ImageSurvey(
        files=[file for file, _ in good],
        headers=[header for _, header in good],
        shape=(1 if grey else 3, height, width),
        size=size,
        background=background,
        left_out=left_out,
    )


def read_pixels(found: ImageSurvey, root: Path, *, skip_bad: bool = False) -> tuple[np.ndarray, ImageSurvey]:
    """All pictures, uint8 (N, C, H, W), and the survey without those that cannot be decoded, if `skip_bad`."""
    check_size(len(found.files) * math.prod(found.shape), str(root))
    pixels = np.empty((len(found.files), *found.shape), np.uint8)

    def fill(i: int) -> UserError | None:
        try:
            pixels[i] = found.decode(i)
        except UserError as error:
            return error
        return None

    bad = dict(_first_faults(fill, len(found.files), every=skip_bad))
    if not bad:
        return pixels, found
    left_out = [*found.left_out]
    for i, error in bad.items():
        _leave_out(left_out, error, found.files[i], root, skip_bad)
    kept = [i for i in range(len(found.files)) if i not in bad]
    _require_some(kept, root, len(found.files), left_out)
    rest = replace(
        found,
        files=[found.files[i] for i in kept],
        headers=[found.headers[i] for i in kept],
        left_out=left_out,
    )
    return pixels[kept], rest


def _first_faults(work: Callable[[int], UserError | None], n: int, *, every: bool) -> list[tuple[int, UserError]]:
    """Do 0 … n - 1 in threads; the faults in order, or the first one alone."""
    if n == 1:
        error = work(0)
        return [] if error is None else [(0, error)]
    faults = []
    with ThreadPoolExecutor(THREADS) as pool:
        for i, error in enumerate(pool.map(work, range(n))):
            if error is not None:
                faults.append((i, error))
                if not every:
                    pool.shutdown(wait=False, cancel_futures=True)
                    break
    return faults


def _leave_out(left_out: list[LeftOut], error: UserError, file: Path, root: Path, skip_bad: bool) -> None:
    if not skip_bad:
        raise error.replace(skippable=file != root)
    left_out.append(LeftOut(relative(file, root), error.reason))


def _require_some(good: Sequence[object], root: Path, count: int, left_out: Sequence[LeftOut]) -> None:
    if not good:
        first = left_out[0]
        which = "it" if root.name == first.name else f"the first of {count}, {first.name},"
        raise UserError(f"must hold an image that can be used, and {which} is not: {first.reason}", argument=str(root))
