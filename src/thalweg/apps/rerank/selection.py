"""Choosing K of N candidates for quality and variety: a list of indices from energies u (N,) and features f (N, F).

The K of least energy are often nearly the same. `maximal_marginal_relevance` takes them one by one, each
time the least of energy plus a penalty for being near what was taken (Carbonell & Goldstein 1998). `perturbed` makes
any choice by energy a random one, as strict as its temperature says. All is deterministic; ties go to the lower index.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.rng import generator

Variety = Literal["maximal_marginal_relevance", "none"]


def choose(u: Float[Tensor, " n"], f: Float[Tensor, "n f"], keep: int, variety: Variety) -> Tensor:
    """`keep` indices, best first or in the order that they were taken; features count where variety does."""
    return maximal_marginal_relevance(u, f, keep) if variety == "maximal_marginal_relevance" else best(u, keep)


def best(u: Float[Tensor, " n"], keep: int) -> Tensor:
    """The `keep` of least energy, best first."""
    return u.sort(stable=True).indices[:keep]


def perturbed(u: Float[Tensor, " n"], temperature: float, seed: int, *address: int | str) -> Float[Tensor, " n"]:
    """u - temperature G, G standard Gumbel: the order of a Plackett-Luce law with log-weights -u / temperature.

    Its first K are K draws without replacement by weights exp(-u / temperature) (Gumbel-top-K; Kool, van Hoof & Welling
    2019). At temperature 1, of energies -log p_data / p_gen, these are the weights that turn draws of p_gen into draws
    of p_data. Temperature 0 changes nothing: the first K are the least energies.
    """
    if not temperature:
        return u
    stream = "/".join(map(str, ("rerank-choice", *address)))
    uniform = torch.rand(len(u), generator=generator(seed, stream), dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny
    return u + temperature * (-uniform.clamp(min=tiny).log()).clamp(min=tiny).log().to(u.dtype)


def distinct(x: Tensor) -> Tensor:
    """Indices of the rows that are no copy, bit by bit, of an earlier one, in order."""
    first = {row.tobytes(): i for i, row in reversed(list(enumerate(x.flatten(1).numpy())))}
    return torch.tensor(sorted(first.values()), dtype=torch.long)


def best_of_groups(u: Float[Tensor, " n"], size: int, *, considered: int | None = None) -> Tensor:
    """The least of each `size` neighbours in turn (the last group may be smaller), (ceil(N / size),).

    Only the first `considered` of each group can be taken, if given.
    """
    starts = range(0, len(u), size)
    found = [low + u[low : low + size][:considered].argmin() for low in starts]
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.long)


def maximal_marginal_relevance(
    u: Float[Tensor, " n"], f: Float[Tensor, "n f"], keep: int, *, strength: float = 1.0, width: float = 0.6
) -> Tensor:
    """Greedy: next the least u + strength * max over the taken of exp(-|f - f'|² / (2 width²)); O(N keep F).

    `strength` in standard deviations of u, `width` where typical squared distances of the features are 2. Only the
    nearest that was taken counts, so a crowd of good ones costs that and no more.
    """
    f, near, taken = _scaled(f), torch.zeros(len(u), dtype=u.dtype), []
    u = (u - u.mean()) / u.std().clamp(min=1e-12) if len(u) > 1 else u.clone()
    squares = f.square().sum(1)
    for _ in range(keep):
        i = int((u + strength * near).argmin())
        taken.append(i)
        apart = (squares + squares[i] - 2 * (f @ f[i])).clamp(min=0)
        near = torch.maximum(near, torch.exp(-apart / (2 * width**2)))
        u[i] = math.inf
    return torch.tensor(taken, dtype=torch.long)


def _scaled(f: Tensor) -> Tensor:
    """Features centred and divided by their mean distance from the centre, so that typical squared distances are 2."""
    f = f.flatten(1).float()
    f = f - f.mean(0)
    return f / f.square().sum(1).mean().sqrt().clamp(min=1e-12)
