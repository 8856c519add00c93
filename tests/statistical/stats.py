"""What a random test is built of: exact distribution functions, the DKW test, and what it could have seen.

Dvoretzky-Kiefer-Wolfowitz (Massart 1990): P(sup |F_n - F| > eps) <= 2 exp(-2 n eps²). With m projections and
a false alarm rate alpha, eps = sqrt(log(2 m / alpha) / (2 n)).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

ALPHA = 1e-6
Uniformise = Callable[[Tensor], Tensor]  # (B, *) draws to (B, m): uniform on [0, 1] in each column, if exact


def dkw_eps(num_draws: int, num_tests: int, alpha: float = ALPHA) -> float:
    """The smallest distance between distribution functions that the test rejects."""
    return math.sqrt(math.log(2 * num_tests / alpha) / (2 * num_draws))


def distance_to_uniform(v: Tensor) -> Tensor:
    """sup |F_n - F| of each column of v, (n, m) to (m,), for F uniform on [0, 1]."""
    n = len(v)
    v = v.sort(dim=0).values
    rank = torch.arange(n, dtype=v.dtype).unsqueeze(1)
    return torch.maximum((rank + 1) / n - v, v - rank / n).amax(0)


def assert_law(x: Tensor, uniformise: Uniformise, *, power: float, alpha: float = ALPHA) -> None:
    """x follows the law that `uniformise` makes uniform, by a test that could have seen `power`."""
    v = uniformise(x)
    eps = dkw_eps(len(v), v.shape[1], alpha)
    assert eps <= power, f"too few draws: eps {eps:.4f} > {power}"
    distance = distance_to_uniform(v)
    assert bool((distance <= eps).all()), f"distances {distance.tolist()} exceed {eps:.4f}"


def assert_near(value: Tensor | float, expected: float, error: Tensor | float, sigmas: float = 5) -> None:
    """|value - expected| is within so many standard errors."""
    z = (float(value) - expected) / float(error)
    assert abs(z) < sigmas, f"{float(value):.5f} against {expected:.5f}: z = {z:.1f}"


def normal_cdf(z: Tensor) -> Tensor:
    return torch.special.ndtr(z)
