"""All states of small discrete systems, and sums over the states of a lattice column by column."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from thalweg.core.errors import UserError

MAX_UNITS = 20  # binary ones: 2^20 states
MAX_STATES = 1 << MAX_UNITS
MAX_COLUMN_STATES = 1 << 10  # of a transfer matrix, (S, S)
_CHUNK = 1 << 14


def all_states(num_units: int, num_states: int = 2) -> Float[Tensor, "n *d"]:
    """Every state of `num_units` units in float64: (2^n, n) of 0 and 1, or one-hot (K^n, n, K) for K > 2 states.

    In the order of numbers in base K, the first unit leading. UserError where there are more than 2^20.
    """
    return torch.cat(list(state_chunks(num_units, torch.empty(0, dtype=torch.float64), num_states)))


def state_chunks(num_units: int, like: Tensor, num_states: int = 2) -> Iterator[Tensor]:
    """The same in chunks that fit into memory, in the type and on the device of `like`."""
    if num_states**num_units > MAX_STATES:
        most = f"at most {MAX_UNITS}" if num_states == 2 else f"so few that there are at most {MAX_STATES} states"
        condition = f"must be {most}, as there are {num_states}^{num_units} states to count"
        raise UserError(condition, argument="num_units", value=num_units)
    place = num_states ** torch.arange(num_units - 1, -1, -1, device=like.device)
    for number in torch.arange(num_states**num_units, device=like.device).split(_CHUNK):
        state = (number[:, None] // place) % num_states
        yield (state if num_states == 2 else functional.one_hot(state, num_states)).to(like.dtype)


def log_z_of_columns(
    within: Float[Tensor, " s"], between: Float[Tensor, "s s"], length: int, *, periodic: bool
) -> Float[Tensor, ""]:
    """log of the sum over all states of a lattice, exact, by its transfer matrix (Kramers & Wannier 1941).

    The lattice is `length` columns in a row. With T(a, b) = exp(w_a / 2 + b_ab + w_b / 2), the sum is
    trace T^length where the last column joins the first, else exp(w / 2)' T^(length - 1) exp(w / 2).

    Args:
        within: w, minus the energy of each state of a column (S,), in nats.
        between: b, minus the energy of each pair of states of neighbouring columns (S, S), symmetric.
        length: Number of columns. With 1, a periodic lattice has no bonds between columns.
        periodic: Whether the last column joins the first.
    """
    if length == 1:
        return within.logsumexp(0)
    log_t = between + 0.5 * (within[:, None] + within)
    top = log_t.detach().amax()
    t = (log_t - top).exp()
    if periodic:
        eigenvalues = torch.linalg.eigvalsh(t)
        largest = eigenvalues.abs().amax()
        # Bonds of negative coupling have negative eigenvalues too; |e / largest|^length cannot overflow.
        return (eigenvalues / largest).pow(length).sum().log() + length * (largest.log() + top)
    v, log_scale = (0.5 * (within - within.detach().amax())).exp(), 0.5 * within.detach().amax()
    for _ in range(length - 1):
        v = t @ v
        log_scale = log_scale + v.amax().log() + top
        v = v / v.amax()
    return (0.5 * within).add(v.log()).logsumexp(0) + log_scale
