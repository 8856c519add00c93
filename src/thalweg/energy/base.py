"""The contract of an energy: a callable from a batch of positions to a batch of scalars, low = likely.

p(x) = exp(-E(x)) / Z. An energy knows nothing of labels, masks, temperatures or noise levels: those are
wrappers (`thalweg.energy.compose`), so a sampler needs one contract only. A *noise-conditional* energy U(y,
t) takes the noise variance t as well; `thalweg.energy.compose.AtNoise` fixes t and gives an ordinary energy
back.

Adding an energy is one new file in this package. The contract suite (tests/contract/test_energies.py) takes
every class that is named ...Energy or offers `example()`, a small instance (the defaults serve where there is
none). `shape` says what one position looks like ((2,) where it is missing), and `noisy = True` that the
energy takes (y, t).
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError


@runtime_checkable
class EnergyFn(Protocol):
    """E(x): (B, *) positions to (B,) energies in nats."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """E(x)."""
        ...


@runtime_checkable
class NoisyEnergyFn(Protocol):
    """U(y, t): (B, *) noisy positions and (B,) noise variances to (B,) energies in nats."""

    def __call__(self, y: Tensor, t: Tensor, /) -> Tensor:
        """U(y, t)."""
        ...


@runtime_checkable
class HasNoiseLevels(Protocol):
    """An energy U(y, t) that says between which noise variances it is known: 0 < t_min < t_max, in model units.

    Objectives over noise levels and annealed samplers read their levels here, where alone they are stated. They refuse
    an energy without (`sigma_range`). Both are attributes or properties: a module's buffer is not seen by isinstance.
    """

    @property
    def t_min(self) -> float:
        """The lowest noise variance."""
        ...

    @property
    def t_max(self) -> float:
        """The highest noise variance."""
        ...


@runtime_checkable
class NoiseConditional(HasNoiseLevels, Protocol):
    """An energy U(y, t) that annealed sampling starts from: it knows how to draw its law at t_max.

    Asked for by `sampler.annealed.anneal` and where a run begins; an energy without `prior` is refused there.
    """

    def __call__(self, y: Tensor, t: Tensor, /) -> Tensor:
        """U(y, t)."""
        ...

    def prior(self, n: int, generator: Generator) -> Tensor:
        """n draws of y at t_max, (n, *)."""
        ...


@runtime_checkable
class HasGradient(Protocol):
    """An energy with a way of its own to its gradient; without one the gradient is autograd's."""

    def value_and_grad(self, x: Tensor, /, *t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(E(x), dE/dx), both detached; None where the way does not apply."""
        ...


@runtime_checkable
class HasGradients(Protocol):
    """An energy U(y, t) with a way of its own to both its gradients, for losses of them; else autograd takes them."""

    def slopes(self, y: Tensor, t: Tensor, /) -> tuple[Tensor, Tensor, Tensor] | None:
        """(U, dU/dy, dU/dt), differentiable in the parameters; None where the way does not apply."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """An energy of data and label together: p(label | x) = softmax of its logits.

    Asked for by `objective.joint` and where a run with labels begins.
    """

    @property
    def num_classes(self) -> int:
        """K; labels are 0 … K - 1."""
        ...

    def logits(self, x: Tensor, /, *t: Tensor) -> Tensor:
        """Scores of the classes, (B, K); of noisy data with their noise variances t (B,)."""
        ...


@runtime_checkable
class Bipartite(Protocol):
    """An energy of two layers of 0-1 units, which Gibbs sampling draws in turn (`energy.lattice.Conditionals`)."""

    @property
    def conditionals(self) -> Any:
        """The layers' laws given each other; None where a wrapper's energy has none."""
        ...


def sigma_range(energy: object) -> tuple[float, float]:
    """(sigma_min, sigma_max), the noise deviations between which an energy U(y, t) is known: roots of t_min and t_max.

    UserError for an energy without noise levels, or where they are not 0 < t_min < t_max.
    """
    if not isinstance(energy, HasNoiseLevels):
        raise UserError(f"must have noise levels; {lacking(energy, 't_min', 't_max')}", argument="energy")
    t_min, t_max = float(energy.t_min), float(energy.t_max)
    check.positive(t_min=t_min)
    check.increasing(t_min=t_min, t_max=t_max)
    return math.sqrt(t_min), math.sqrt(t_max)


def require_noise_conditional(energy: object) -> None:
    """UserError, with what it lacks, for an energy that annealed sampling cannot start from."""
    if not isinstance(energy, NoiseConditional):
        lacks = lacking(energy, "t_min", "t_max", "prior", "__call__")
        raise UserError(f"must be noise-conditional for an annealed sampler; {lacks}", argument="energy")
    sigma_range(energy)


def lacking(thing: object, *names: str) -> str:
    """What a message says of the parts that a thing does not have, or none as a plain attribute."""
    return f"{type(thing).__name__} lacks {', '.join([n for n in names if not hasattr(thing, n)] or names)}"


def energy_and_grad(energy: EnergyFn, x: Float[Tensor, "b *d"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b *d"]]:
    """(E(x), dE/dx) in one forward and one backward pass, both detached.

    The sum over the batch is differentiated, which gives each row its own gradient as long as the energy
    treats rows independently (so no BatchNorm in train mode). Under `torch.compile` the pull-back of
    `torch.func.vjp` is used, because `autograd.grad` does not trace; in eager mode `autograd.grad`, because
    it works with every module. An energy may bring a `value_and_grad(x)` of its own, which may return None where it
    does not apply; `energy.fused` does.
    """
    if torch.compiler.is_compiling():
        u, pull = torch.func.vjp(energy, x)  # pyright: ignore[reportAssignmentType]
        return u.detach(), pull(torch.ones_like(u))[0].detach()
    own = getattr(energy, "value_and_grad", None)
    if own is not None and (both := own(x)) is not None:
        return both
    try:
        return _by_autograd(energy, x)
    except RuntimeError as error:
        again = getattr(energy, "without_layout", None)
        if again is None or not again(error):
            raise
    return _by_autograd(energy, x)


def _by_autograd(energy: EnergyFn, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        u = energy(x)
        (g,) = torch.autograd.grad(u.sum(), x)
    return u.detach(), g


def marginal(f: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """-log sum_k exp f_k, the free energy of K scores; for one score it is -f."""
    return -f.squeeze(1) if f.shape[1] == 1 else -torch.logsumexp(f, dim=1)


def check_image_shape(shape: Sequence[int], num_halvings: int) -> tuple[int, int, int]:
    """(C, H, W) as a tuple; ValueError where a side is under 8 pixels or would be halved away."""
    least = max(8, 2**num_halvings)
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < least:
        raise ValueError(f"shape={tuple(shape)}: want (channels, height, width), {least} pixels a side or more")
    channels, height, width = (int(s) for s in shape)
    return channels, height, width
