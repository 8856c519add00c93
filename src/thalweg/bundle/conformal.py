"""Conformal p-values: the share of normal data whose energy is at least as high.

    p(x) = (1 + #{i: u_i >= E(x)}) / (1 + n),    u_1 … u_n energies of normal rows that the energy has not seen.

For a normal row exchangeable with those n, P(p <= a) <= a at every a, ties or not: an equal energy counts as at least
as odd, which errs on the safe side (Vovk, Gammerman & Shafer 2005; Laxhammar & Falkman 2015).

An energy in float32 depends in its last digits on the program that sums it and on the rows beside it, so that a row
equal to one of the n may lie a little above it. `raised` lifts the u_i by that much: such rows tie in every program,
and no p-value gets smaller.
"""

import numpy as np

SINGLE = 1e-5  # of an energy, or of 1 nat where it is smaller: what float32 may change


def raised(energies: np.ndarray) -> np.ndarray:
    """The u_i (n,) of float32, lowest first, each raised by its rounding."""
    u = np.sort(np.asarray(energies, np.float64))
    with np.errstate(over="ignore"):
        return (u + SINGLE * np.maximum(np.abs(u), 1.0)).astype(np.float32)


def at_least(ranked: np.ndarray, u: np.ndarray) -> np.ndarray:
    """#{i: u_i >= u}, (B,) whole numbers in 0 … n; `ranked` (n,) are the u_i, lowest first."""
    return len(ranked) - np.searchsorted(ranked, u, side="left")


def p_values(ranked: np.ndarray, u: np.ndarray) -> np.ndarray:
    """p of energies u, (B,) in [1 / (n + 1), 1], small = anomalous; `ranked` (n,) are the u_i, lowest first."""
    return p_of_ranks(at_least(ranked, u), len(ranked))


def p_of_ranks(ranks: np.ndarray, n: int) -> np.ndarray:
    """p by #{i: u_i >= E(x)}, whole numbers in 0 … n."""
    return (1 + ranks) / (1 + n)
