"""The training of one network of a likelihood ratio, with early stopping on rows that it does not see."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core.rng import generator
from thalweg.data.augment import Warp
from thalweg.objective.corruption import Damage
from thalweg.objective.ratio import LikelihoodRatio, balanced_loss
from thalweg.run.in_memory import TrainSettings, TrainState, optimise

BLOCK = 1000


class Rows(NamedTuple):
    """Data and generated rows.

    Args:
        x: The rows, (N, *).
        real: True for data, False for generated rows, (N,).
    """

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
) -> int:
    """Train `network` in place on `rows`, where these lie; the step of the least loss on `held_out`, whose weights it
    gets.

    `preprocess` turns rows into what the network reads; it comes after the random warp and before the noise.
    """
    s = settings
    low, high = s.noise if isinstance(s.noise, tuple) else (s.noise, None)
    objective = LikelihoodRatio(smoothing=s.smoothing, noise=low, noise_max=high)  # pyright: ignore[reportArgumentType]
    z_held_out, least, best, at = preprocess(held_out.x), math.inf, copy.deepcopy(network.state_dict()), 0

    def stop_early(state: TrainState) -> bool:
        nonlocal least, best, at
        if state.step % s.check_every and state.step != s.steps:
            return False
        loss = float(balanced_loss(energies(network, z_held_out), held_out.real))
        if loss < least:
            least, best, at = loss, copy.deepcopy(network.state_dict()), state.step
        return state.step - at >= s.patience * s.check_every

    optimise(
        network,
        objective,
        _Batches(rows, s, preprocess, seed),
        _train_settings(s),
        seed=seed,
        device=rows.x.device,
        after_step=stop_early,
    )
    network.load_state_dict(best)
    return at


def _train_settings(s: RatioSettings) -> TrainSettings:
    found = {"steps": s.steps, "batch_size": 2 * s.batch, "learning_rate": s.rate, "weight_decay": s.weight_decay}
    fixed = {"betas": (0.9, 0.999), "warmup": 0, "decay": "linear", "clip": None, "precision": "fp32"}
    return TrainSettings.model_validate(found | fixed)


class _Batches:
    """Batches of data and generated rows in equal numbers, the data first: warped, damaged and preprocessed."""

    def __init__(self, rows: Rows, settings: RatioSettings, preprocess: Callable[[Tensor], Tensor], seed: int):
        self.rows, self.size, self.preprocess, self.seed = rows, settings.batch, preprocess, seed
        self.sides = [side.nonzero().flatten() for side in (rows.real, ~rows.real)]
        self.warp = Warp(stretch=settings.stretch, shift=settings.shift) if rows.x.ndim == 4 else None
        self.num_damaged = round(settings.damaged * settings.batch)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(network input (2 size, *), whether each row is data (2 size,)) of a step."""
        draws = generator(self.seed, "ratio-rows", step, device=self.rows.x.device)
        lots = [torch.randint(len(s), (self.size,), generator=draws, device=draws.device) for s in self.sides]
        chosen = torch.cat([side[lot] for side, lot in zip(self.sides, lots, strict=True)])
        x = self.rows.x[chosen] if self.warp is None else self.warp(self.rows.x[chosen], draws, 0.0)
        if self.num_damaged:
            x[-self.num_damaged :] = Damage()(x[: self.num_damaged], draws)
        return self.preprocess(x), self.rows.real[chosen]


@torch.no_grad()
def energies(network: nn.Module, x: Tensor) -> Tensor:
    """E(x) (N,) of preprocessed rows, block by block."""
    return torch.cat([network(part) for part in x.split(BLOCK)])
