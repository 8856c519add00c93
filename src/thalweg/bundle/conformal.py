"""Conformal p-values: the share of normal data whose energy is at least as high.

    p(x) = (1 + #{i: u_i >= E(x)}) / (1 + n),    u_1 … u_n energies of normal rows that the energy has not seen.

For a normal row exchangeable with those n, P(p <= a) <= a at every a, ties or not: an equal energy counts as at least
as odd, which errs on the safe side (Vovk, Gammerman & Shafer 2005; Laxhammar & Falkman 2015).
"""

import numpy as np


def at_least(ranked: np.ndarray, u: np.ndarray) -> np.ndarray:
    """#{i: u_i >= u}, (B,) whole numbers in 0 … n; `ranked` (n,) are the u_i, lowest first."""
    return len(ranked) - np.searchsorted(ranked, u, side="left")


def p_values(ranked: np.ndarray, u: np.ndarray) -> np.ndarray:
    """p of energies u, (B,) in [1 / (n + 1), 1], small = anomalous; `ranked` (n,) are the u_i, lowest first."""
    return p_of_ranks(at_least(ranked, u), len(ranked))


def p_of_ranks(ranks: np.ndarray, n: int) -> np.ndarray:
    """p by #{i: u_i >= E(x)}, whole numbers in 0 … n."""
    return (1 + ranks) / (1 + n)
