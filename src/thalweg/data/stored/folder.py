"""A folder of images that are decoded when a step needs them."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import DamagedFile, UserError
from thalweg.data.file_digests import FileDigests
from thalweg.data.image_files import ImageSurvey, relative
from thalweg.data.stored_rows import StoredRows, UnchangedFiles

log = logging.getLogger("thalweg.damaged_images")
log.setLevel(logging.WARNING)  # of several processes each tells of its own rows, where "thalweg" is silenced


class FolderRows(StoredRows):
    """Images in files, uint8 (N, C, H, W), whose headers have been read.

    With `skip_bad` another image stands in for one that is damaged behind its header, which is told once: the next of
    its class that is whole, in the order of the files. So the same rows come whenever they are read.

    Args:
        found: The files, and the shape that all are decoded to.
        root: The folder that their names are told from.
        labels: The class of each, (N,), if there are any.
        skip_bad: As above; else a damaged image is a UserError, `skippable`.
    """

    dtype = torch.uint8

    def __init__(self, found: ImageSurvey, root: Path, labels: Tensor | None = None, *, skip_bad: bool = False):
        self.found, self.root, self.files = found, root, FileDigests(found.files, root)
        self.labels, self.skip_bad = labels, skip_bad
        self.shape = torch.Size([len(found.files), *found.shape])
        self._unchanged = UnchangedFiles(found.files)
        self._told = set[int]()

    def read(self, rows: Tensor) -> Tensor:
        """Decoded in the calling thread; Pillow lets others run meanwhile."""
        x = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, i in enumerate(rows.tolist()):
            x[place] = self._decoded(i)
        return torch.from_numpy(x)

    def digest(self) -> str:
        """Of the files' names and bytes, and of how they are read."""
        how = f"{tuple(self.shape)} {self.found.size} {self.found.background} {self.files.together}"
        return hashlib.sha256(how.encode()).hexdigest()

    def _decoded(self, i: int) -> np.ndarray:
        try:
            return self._decode(i)
        except DamagedFile as error:
            if not self.skip_bad:
                raise error.replace(skippable=True) from error
            return self._stand_in(i, error)

    def _decode(self, i: int) -> np.ndarray:
        self._unchanged.require(i)
        return self.found.decode(i)

    def _stand_in(self, i: int, error: UserError) -> np.ndarray:
        for j in self._others(i):
            try:
                pixels = self._decode(j)
            except DamagedFile:
                continue
            if i not in self._told:
                self._told.add(i)
                name, other = (relative(self.found.files[k], self.root) for k in (i, j))
                log.warning("%s: %s stands in for %s, which is %s", self.root, other, name, error.reason)
            return pixels
        raise error

    def _others(self, i: int) -> Iterator[int]:
        """The images after i of its class, and then those before it."""
        n = len(self)
        for k in range(1, n):
            j = (i + k) % n
            if self.labels is None or self.labels[j] == self.labels[i]:
                yield j
