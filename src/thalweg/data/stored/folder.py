"""A folder of images that are decoded when a step needs them."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thalweg.data.file_digests import FileDigests
from thalweg.data.image_files import ImageSurvey
from thalweg.data.stored_rows import StoredRows, UnchangedFiles


class FolderRows(StoredRows):
    """Images in files, uint8 (N, C, H, W), whose headers have been read.

    Args:
        found: The files, and the shape that all are decoded to.
        root: The folder that their names are told from.
    """

    dtype = torch.uint8

    def __init__(self, found: ImageSurvey, root: Path):
        self.found, self.root, self.files = found, root, FileDigests(found.files, root)
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
        """Of the files' names and bytes, and of how they are read."""
        how = f"{tuple(self.shape)} {self.found.size} {self.found.background} {self.files.together}"
        return hashlib.sha256(how.encode()).hexdigest()
