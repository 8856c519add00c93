"""A table's energy as learned: two networks U_k(y, t), trained by dual score matching on half of the rows each.

    E(y) = -log (1/2) sum_k exp(-U_k(y, t)),    t the likeliest for rows that the network had not seen

Each row is new to one of the two, whose energy of it is as honest as that of a new row. U_k is normalised at every t
(`objective.dual`), so likelihoods at different t can be compared, as for the exact form, and E is in nats too.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from thalweg.apps.fit import Request, settings
from thalweg.apps.in_memory import train_in_memory
from thalweg.core.errors import UserError
from thalweg.data.catalog import split
from thalweg.energy.residual import ResidualEnergy

LEAST = 60  # rows
WITHIN = 30.0  # standard deviations; numbers further out are moved here, where a network still has its footing
WIDTH, BLOCKS, BATCH = 96, 2, 128
SIGMA_MIN, SIGMA_MAX = 0.05, 10.0
LEVELS = np.geomspace(SIGMA_MIN, 1.5, 12) ** 2


class LearnedForm:
    """E(y), (B,) nats, of standardised rows y (B, D); `unseen` (N,): of the fitted rows by the network new to them."""

    unseen: np.ndarray

    def __init__(self, networks: list[ResidualEnergy], t: float):
        self.networks, self.t = networks, t

    @classmethod
    def fit(cls, y: np.ndarray, *, seed: int = 0, steps: int = 400) -> Self:
        """Train both; `steps` of 128 rows each, some 5 CPU milliseconds a step. UserError for fewer than 60 rows."""
        if len(y) < LEAST:
            raise UserError(f"X: {len(y)} rows; the learned form wants {LEAST} or more")
        half = np.random.default_rng(seed).permutation(np.arange(len(y)) % 2)
        networks = [_train(y[half == k], seed, steps) for k in range(2)]
        levels = np.empty((len(LEVELS), len(y)))
        for k, network in enumerate(networks):
            for row, t in zip(levels, LEVELS, strict=True):
                row[half != k] = _energy(network, y[half != k], t)
        at = int(np.median(levels, axis=1).argmin())  # one row where the network errs shall not choose for all
        self = cls(networks, float(LEVELS[at]))
        self.unseen = levels[at]
        return self

    def __call__(self, y: np.ndarray) -> np.ndarray:
        u = [_energy(network, y, self.t) for network in self.networks]
        return np.log(2) - np.logaddexp(-u[0], -u[1])

    def state(self) -> dict[str, np.ndarray]:
        """All that was learned, as arrays."""
        out = {"t": np.array(self.t)}
        for k, network in enumerate(self.networks):
            out |= {f"{k}.{name}": value.numpy() for name, value in network.state_dict().items()}
        return out

    @classmethod
    def from_state(cls, state: Mapping[str, Any], num_columns: int) -> Self:
        """The form that `state` came from."""
        networks = [_network(num_columns) for _ in range(2)]
        for k, network in enumerate(networks):
            mine = {n.partition(".")[2]: torch.as_tensor(a) for n, a in state.items() if n.startswith(f"{k}.")}
            network.load_state_dict(mine)
        return cls([network.eval().requires_grad_(False) for network in networks], float(state["t"]))


def _network(num_columns: int) -> ResidualEnergy:
    return ResidualEnergy(
        shape=(num_columns,), width=WIDTH, num_blocks=BLOCKS, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX
    )


def _train(y: np.ndarray, seed: int, steps: int) -> ResidualEnergy:
    """A network trained on these rows."""
    overrides = [f"energy.width={WIDTH}", f"energy.num_blocks={BLOCKS}", f"train.batch_size={BATCH}"]
    overrides += ["train.precision=fp32", "train.warmup=20", "train.ema=0.98"]
    overrides += ["transform={type: thalweg.data.transform:Identity}"]
    run = settings(Request(data="rows", recipe="dual", steps=steps, seed=seed, overrides=overrides), "vector")
    rows = torch.from_numpy(np.clip(y, -WITHIN, WITHIN).astype(np.float32))
    network = train_in_memory(run, split(rows, name="rows", source="rows", held_out=0.05, seed=seed))
    assert isinstance(network, ResidualEnergy)
    return network


@torch.no_grad()
def _energy(network: ResidualEnergy, y: np.ndarray, t: float) -> np.ndarray:
    rows = torch.from_numpy(np.clip(y, -WITHIN, WITHIN).astype(np.float32))
    parts: list[Tensor] = [network(part, part.new_full((len(part),), t)) for part in rows.split(4096)]
    return torch.cat(parts).double().numpy() if parts else np.empty(0)
