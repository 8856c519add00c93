"""Choosing K of N candidates for quality and variety: a list of indices from energies u (N,) and features f (N, F).

The best by energy alone are often K times nearly the same; three ways out of that, each told what to keep as `keep`:

- `strata`: the candidates fall into clusters of features; each gets seats in proportion to its share of the data's law
  as the energies tell it, sum exp(-u), and fills them with its best;
- `repelled`: one by one the least u + strength * (nearness to the nearest that was taken);
- `determinantal`: the most probable set of a determinantal point process, by greedy steps.

Deterministic; ties go to the lower index.
"""

import math

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from thalweg.core.rng import generator


def best(u: Tensor, keep: int) -> Tensor:
    """The `keep` of least energy, best first."""
    return u.sort(stable=True).indices[:keep]


def distinct(x: Tensor) -> Tensor:
    """Indices of the rows that are no copy, bit by bit, of an earlier one, in order."""
    seen = {row.tobytes(): i for i, row in reversed(list(enumerate(x.flatten(1).numpy())))}
    return torch.tensor(sorted(seen.values()), dtype=torch.long)


def best_of_groups(u: Tensor, size: int) -> Tensor:
    """The least energy of each `size` neighbours in turn (the last group may be smaller), (ceil(N / size),)."""
    return torch.stack([low + part.argmin() for low, part in _starts(u, size)]) if len(u) else u.long()


def _starts(u: Tensor, size: int) -> list[tuple[int, Tensor]]:
    return [(low, u[low : low + size]) for low in range(0, len(u), size)]


def scaled(f: Tensor) -> Tensor:
    """Features centred and divided by their mean distance from the centre, so that typical squared distances are 2."""
    f = f.flatten(1).float()
    f = f - f.mean(0)
    return f / f.square().sum(1).mean().sqrt().clamp(min=1e-12)


def strata(u: Tensor, f: Tensor, keep: int, *, per_stratum: float = 10.0, seed: int = 0) -> Tensor:
    """Clusters by k-means, seats by mass (largest remainders), each stratum's best; about `per_stratum` seats each.

    The weight of a row is exp(-u) with u below its 1st percentile raised to it, so that no single row rules.
    """
    num = max(1, min(round(keep / per_stratum), len(u)))
    where = _clusters(scaled(f), num, seed)
    floor = u.quantile(0.01) if len(u) > 1 else u.min()
    weight = torch.exp(-(u.clamp(min=float(floor)) - floor)).double()
    mass = torch.zeros(num, dtype=torch.float64).index_add_(0, where, weight)
    seats = _apportion(mass, torch.bincount(where, minlength=num), keep)
    order = u.sort(stable=True).indices
    taken = [order[where[order] == k][: int(seats[k])] for k in range(num)]
    chosen = torch.cat(taken)
    return chosen[u[chosen].sort(stable=True).indices]


def repelled(u: Tensor, f: Tensor, keep: int, *, strength: float = 1.0, width: float = 0.6) -> Tensor:
    """Greedy: next the least u + strength * max over the taken of exp(-|f - f'|² / (2 width²)); O(N keep F).

    `strength` in standard deviations of u. The nearest alone repels, so a crowd of good ones costs that and no more.
    """
    f, near, taken = scaled(f), torch.zeros(len(u), dtype=u.dtype), []
    u, squares = _standardised(u), f.square().sum(1)
    for _ in range(keep):
        i = int((u + strength * near).argmin())
        taken.append(i)
        apart = (squares + squares[i] - 2 * (f @ f[i])).clamp(min=0)
        near = torch.maximum(near, torch.exp(-apart / (2 * width**2)))
        u[i] = math.inf
    return torch.tensor(taken, dtype=torch.long)


def determinantal(u: Tensor, f: Tensor, keep: int, *, strength: float = 0.5, width: float = 0.3) -> Tensor:
    """Greedy maximum of log det L, L_ij = exp(-strength (u_i + u_j) / 2) k(f_i, f_j), k Gaussian; O(N keep²).

    u in standard deviations; among the 4 `keep` of least energy. (Kulesza & Taskar 2012; Chen, Zhang & Zhou 2018.)
    """
    pool = best(u, 4 * keep)
    f, quality = scaled(f)[pool].double(), -strength * _standardised(u)[pool].double()
    gain, rows = torch.ones(len(pool), dtype=torch.float64), torch.zeros(keep, len(pool), dtype=torch.float64)
    free, taken = torch.ones(len(pool), dtype=torch.bool), []
    for step in range(keep):
        score = torch.where(free, quality + gain.clamp(min=1e-12).log(), -math.inf)
        i = int(score.argmax())
        taken.append(i)
        free[i] = False
        kernel = torch.exp(-(f - f[i]).square().sum(1) / (2 * width**2))
        row = (kernel - rows[:step, i] @ rows[:step]) / gain[i].clamp(min=1e-12).sqrt()
        rows[step] = row
        gain = gain - row.square()
    return pool[torch.tensor(taken, dtype=torch.long)]


def _standardised(u: Tensor) -> Tensor:
    return (u - u.mean()) / u.std().clamp(min=1e-12) if len(u) > 1 else u.clone()


def _clusters(f: Tensor, num: int, seed: int) -> Tensor:
    if num == 1:
        return torch.zeros(len(f), dtype=torch.long)
    distinct = len(torch.unique(f, dim=0)) if len(f) <= 4 * num else num
    state = generator(seed, "strata").initial_seed() % 2**32
    means = MiniBatchKMeans(min(num, distinct), random_state=state, batch_size=2048, n_init=1, max_iter=20)
    return torch.from_numpy(means.fit_predict(f.numpy())).long()


def _apportion(mass: Tensor, room: Tensor, keep: int) -> Tensor:
    """Whole seats in proportion to mass, `keep` in all, none beyond the room; what does not fit goes to the others."""
    seats, open_ = torch.zeros_like(room), room > 0
    while (left := keep - int(seats.sum())) > 0:
        share = torch.where(open_, mass.clamp(min=1e-300), 0.0)
        ideal = seats + left * share / share.sum()
        whole = torch.minimum(torch.maximum(ideal.floor().long(), seats), room)
        if int(whole.sum()) == int(seats.sum()):  # remainders only: one each, the largest first
            rest = torch.where(open_, ideal - seats, -math.inf).sort(descending=True, stable=True).indices
            whole[rest[: min(left, int(open_.sum()))]] += 1
        seats, open_ = whole, whole < room
    return seats
