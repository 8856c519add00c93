"""A folder of images that are decoded when a step needs them."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thalweg.data.image_files import ImageSurvey, relative
from thalweg.data.stored_rows import StoredRows, UnchangedFiles, hash_file


class FolderRows(StoredRows):
    """Images in files, uint8 (N, C, H, W), whose headers have been read.

    Args:
        found: The files, and the shape that all are decoded to.
        root: The folder that their names are told from.
    """

    dtype = torch.uint8

    def __init__(self, found: ImageSurvey, root: Path):
        self.found, self.root = found, root
        self.shape = torch.Size([len(found.files), *found.shape])
        self._unchanged = UnchangedFiles(found.files)

    def read(self, rows: Tensor) -> Tensor:
        """Decoded in the calling thread; Pillow lets others run meanwhile."""
        x = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, i in enumerate(rows.tolist()):
            self._unchanged.require(i)
            x[place] = self.found.decode(i)
        return torch.from_numpy(x)

    def digest(self) -> str:
        """Of the files' names, sizes and bytes, and of how they are read."""
        digest = hashlib.sha256(f"{tuple(self.shape)} {self.found.size} {self.found.background}".encode())
        for file in self.found.files:
            digest.update(f"{relative(file, self.root)}\0{file.stat().st_size}\0".encode())
            hash_file(file, digest)
        return digest.hexdigest()
