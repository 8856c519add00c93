"""p-values and flags of a trained energy, by the energies of its held-out rows."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thalweg.bundle import conformal

log = logging.getLogger("thalweg")


class ConformalFlags:
    """Compares energies with held-out ones. These are sorted once, as that takes longer than a small call.

    Args:
        path: Of the model, for a warning.
    """

    def __init__(self, path: Path):
        self.path = path
        self._warned = False
        self._of: tuple[Tensor, int] | None = None  # the held-out energies that are sorted
        self._ranked = np.empty(0, np.float32)

    def __call__(self, held_out: Tensor, u: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """(p-values, flags) of energies u, (B,) each.

        An alpha below the smallest p-value there is, 1 / (1 + the number of held-out rows), is warned of once.
        """
        if self._of is None or self._of[0] is not held_out or self._of[1] != held_out._version:
            self._of, self._ranked = (held_out, held_out._version), conformal.raised(held_out.cpu().numpy())
        p = torch.from_numpy(conformal.p_values(self._ranked, u.cpu().numpy())).to(u.device, torch.float32)
        self._warn_of(alpha, 1 / (1 + len(self._ranked)))
        return p, p <= alpha

    def _warn_of(self, alpha: float, smallest: float) -> None:
        if alpha < smallest and not self._warned:
            self._warned = True
            log.warning(
                f"{self.path}: alpha={alpha:g} is below the smallest p-value of {smallest:.3g} that the held-out rows "
                f"allow, so no row can be flagged; use alpha={smallest:.3g} or more, or train with more held-out rows"
            )
