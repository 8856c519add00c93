"""The contract of a sampler: hyper-parameters frozen, tensors in the state, draws outside.

A sampler is a frozen, keyword-only dataclass. `init` makes the state from positions, `draw` alone uses
randomness and returns the tensors that one step consumes, `step` is a pure function of (energy, state,
noise). A step holds no `randn`, no `.item()`, no branch on a tensor's value: so it compiles whole, resumes
exactly and tests without luck. Adding a sampler is one new file with these three methods. The contract suite
(tests/contract/test_samplers.py) finds every public class that has `step`; each builds from a classmethod
`example()`, or from its defaults, and says `noisy = True` where its energy takes (y, t). One whose step uses the
energy's gradient alone says `gradient_only = True`: with a network in bfloat16 it is spared the energies in full
precision.
"""

from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Generator, Tensor

from thalweg.energy.base import EnergyFn

S = TypeVar("S")


class Info(NamedTuple):
    """For diagnostics, (B,) each: the acceptance probability (1 where unadjusted) and the gradient's norm."""

    acceptance: Tensor
    grad_norm: Tensor


class Sampler(Protocol[S]):
    """One Markov kernel (or one step of an annealed scheme). `state.x` holds the positions, (B, *)."""

    def init(self, energy: EnergyFn, x: Tensor) -> S:
        """The state at positions x."""
        ...

    def draw(self, state: S, generator: Generator) -> tuple[Tensor, ...]:
        """The randomness that one step consumes."""
        ...

    def step(self, energy: EnergyFn, state: S, noise: tuple[Tensor, ...]) -> tuple[S, Info]:
        """The next state, and what diagnostics need; pure."""
        ...


def normal_like(x: Tensor, generator: Generator) -> Tensor:
    """Standard normal noise of x's shape, type and device, from the generator."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def row_norm(g: Tensor) -> Tensor:
    """Euclidean norm of each row, (B, *) to (B,)."""
    return torch.linalg.vector_norm(g.flatten(1), dim=1)


def per_row(v: Tensor, like: Tensor) -> Tensor:
    """(B,) reshaped to (B, 1, ..., 1) so that it broadcasts against `like`."""
    return v.reshape(-1, *([1] * (like.ndim - 1)))
