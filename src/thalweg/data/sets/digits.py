"""The 8 x 8 digits of scikit-learn."""

import numpy as np
import torch

from thalweg.data.sets.base import NamedSet, RawData


class Digits(NamedSet):
    """1,797 images (1, 8, 8) in [0, 1] with their labels."""

    name = "digits"

    def load(self, seed: int) -> RawData:
        """All of them."""
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(np.asarray(pixels / 16, np.float32)).reshape(-1, 1, 8, 8)
        what = "digits, the 8 x 8 digits of scikit-learn"
        return RawData(x, torch.from_numpy(np.asarray(labels, np.int64)), what)
