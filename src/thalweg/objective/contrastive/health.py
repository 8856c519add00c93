"""Health signals of contrastive training: figures of each step that show whether the chains sample the energy.

| signal | healthy | otherwise |
|---|---|---|
| `gap` = mean E(fake) - mean E(real) | small, around zero | growing: the chains do not reach low energies |
| `energy_noise`, mean E of noise | well above the chains' | near theirs: chains have not left the noise |
| `overlap` of the two energy histograms | near 1 | near 0: chains no longer reach the data's energies |
| `chain_grad_norm`, mean of abs(dE/dx) where chains end | constant | vanishing: the chains only diffuse |
| `displacement`, root mean square move a coordinate and visit | constant | zero: the chains do not move |
| `acceptance` of the last step (1 where nothing is tested) | 0.3 to 0.9 | near 0: the step is too long |
| `clamped`, share of coordinates on the clamp's walls | as the data | near 1: the chains are stuck |
| `spread` = deviation of the chains over that of the data | near 1 | near 0: collapse of diversity |
| `lineages`, share of distinct chains in the batch | 1 | less: several chains are copies of one |
| `diverged`, share of chains that ended non-finite | 0 | anything else |

`thalweg.training.guard` compares them with limits.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thalweg.sampler.base import Info


def of_chains(
    begun: Float[Tensor, "b *d"],
    ended: Float[Tensor, "b *d"],
    finite: Bool[Tensor, " b"],
    real: Float[Tensor, "n *d"],
    info: Info,
    clamp: tuple[float, float] | None,
) -> dict[str, Tensor]:
    """The signals of positions: where chains began and ended (finite ones; the others count as `diverged`)."""
    moved = (ended - begun).flatten(1).square().mean(1).sqrt()
    signals = {
        "chain_grad_norm": _mean(info.grad_norm.detach(), finite),
        "acceptance": info.acceptance.detach().float().mean(),
        "displacement": _mean(moved, finite),
        "diverged": (~finite).float().mean(),
        "spread": _deviation(ended) / _deviation(real).clamp(min=torch.finfo(real.dtype).tiny),
        "lineages": _distinct(ended),
    }
    if clamp is not None:
        low, high = clamp
        signals["clamped"] = ((ended <= low) | (ended >= high)).float().mean()
    return signals


def overlap(u_real: Float[Tensor, " n"], u_fake: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """1 - sup |F_real - F_fake|, the distributions of two sets of energies: 1 where alike, 0 where apart (Smirnov)."""
    both = torch.cat([u_real, u_fake]).sort().values
    shares = [torch.searchsorted(u.sort().values, both, right=True) / len(u) for u in (u_real, u_fake)]
    return 1 - (shares[0] - shares[1]).abs().max()


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)


def _deviation(x: Tensor) -> Tensor:
    """Root of the mean variance of the coordinates; 1 for fewer than two rows."""
    return x.flatten(1).var(0).mean().sqrt() if len(x) > 1 else x.new_ones(())


def _distinct(x: Tensor) -> Tensor:
    """The share of rows that equal no earlier one, by a checksum of fixed weights."""
    flat = x.flatten(1).double()
    weights = torch.linspace(1, 2, flat.shape[1], dtype=torch.float64, device=x.device)
    sums = (flat @ weights).sort().values
    return 1 - (sums.diff() == 0).double().mean() if len(x) > 1 else flat.new_ones(())
