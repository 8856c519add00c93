"""The training loop of one network of a likelihood ratio, with early stopping on rows that it does not see."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core.rng import generator
from thalweg.data.augment import Warp
from thalweg.objective.base import Batch
from thalweg.objective.corruption import Damage
from thalweg.objective.ratio import LikelihoodRatio, balanced_loss

BLOCK = 1000


class Rows(NamedTuple):
    """x (N, *), and whether each is data: `real` (N,), True for data and False for generated rows."""

    x: Tensor
    real: Tensor


def train_network(
    network: nn.Module,
    rows: Rows,
    held_out: Rows,
    settings: RatioSettings,
    *,
    preprocess: Callable[[Tensor], Tensor],
    seed: int,
    stream: str,
) -> int:
    """Train `network` in place on `rows`; it ends as it was at the step of the least loss on `held_out`, returned.

    `preprocess` turns rows into what the network reads; it comes after the random warp and before the noise. Step i
    draws at the address (seed, stream, i).
    """
    s = settings
    low, high = s.noise if isinstance(s.noise, tuple) else (s.noise, None)
    objective = LikelihoodRatio(smoothing=s.smoothing, noise=low, noise_max=high)  # pyright: ignore[reportArgumentType]
    warp = Warp(stretch=s.stretch, shift=s.shift) if rows.x.ndim == 4 else None
    optimiser = torch.optim.AdamW(network.parameters(), lr=s.rate, weight_decay=s.weight_decay)
    num_damaged = round(s.damaged * s.batch)
    sides, z_held = (rows.real.nonzero().flatten(), (~rows.real).nonzero().flatten()), preprocess(held_out.x)
    least, best, at = math.inf, copy.deepcopy(network.state_dict()), 0
    for step in range(1, s.steps + 1):
        draws = generator(seed, stream, step)
        chosen = torch.cat([side[torch.randint(len(side), (s.batch,), generator=draws)] for side in sides])
        batch = rows.x[chosen] if warp is None else warp(rows.x[chosen], draws, 0.0)
        if num_damaged:
            batch[-num_damaged:] = Damage()(batch[:num_damaged], draws)  # the data come first, the generated last
        data = Batch(preprocess(batch), rows.real[chosen])
        state = objective.init(network, data.x, draws)
        loss, _, _ = objective.loss(network, state, data, objective.draw(state, data, draws, step / s.steps))
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = s.rate * (1 - (step - 1) / s.steps)
        optimiser.step()
        if step % s.check_every == 0 or step == s.steps:
            now = float(balanced_loss(energies(network, z_held), held_out.real))
            if now < least:
                least, best, at = now, copy.deepcopy(network.state_dict()), step
            elif step - at >= s.patience * s.check_every:
                break
    network.load_state_dict(best)
    return at


@torch.no_grad()
def energies(network: nn.Module, x: Tensor) -> Tensor:
    """E(x) (N,) of preprocessed rows, block by block."""
    return torch.cat([network(part) for part in x.split(BLOCK)])
