"""The contract of an energy: a callable from a batch of positions to a batch of scalars, low = likely.

p(x) = exp(-E(x)) / Z. Labels, masks, temperatures and fixed noise levels are wrappers (`thalweg.energy.wrappers`), so
that a sampler needs one contract only. A noise-conditional energy U(y, t) takes the noise variance t as well;
`thalweg.energy.wrappers.AtNoise` fixes t and gives an ordinary energy.

What an energy offers beside its value is a capability: one of the Protocols below. Callers ask by `isinstance`, once a
chain or step. An energy offers a capability by having its members.

A new energy is one new file in this package. The contract suite (tests/contract/test_energies.py) takes every class
that is named ...Energy or has `example()`, which gives a small instance.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError

AnyEnergy = Callable[..., Tensor]  # E(x), U(y, t) or E(x, labels): (B, *) and more (B,) to (B,) energies in nats


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


_ProtocolType = type if TYPE_CHECKING else type(Protocol)


class Capability(_ProtocolType):
    """The type of the Protocols below: isinstance asks an object for their members by `hasattr`.

    The library's own answer takes ten times as long in Python 3.11, and from 3.12 on does not see what a wrapper
    forwards by `__getattr__`.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        for name in cls.members():  # noqa: SIM110 - a generator costs more than the question
            if not hasattr(instance, name):
                return False
        return True

    @functools.cache  # noqa: B019 - a handful of classes
    def members(cls) -> tuple[str, ...]:
        """The names of the capability's members, those of the capabilities that it extends first."""
        capabilities = [c for c in reversed(cls.__mro__) if isinstance(c, Capability)]
        return tuple(name for c in capabilities for name in vars(c) if not name.startswith("_"))


@runtime_checkable
class HasShape(Protocol, metaclass=Capability):
    """States the shape of one position. Applications ask, to check their input before the work."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one position, without the batch dimension."""
        ...


@runtime_checkable
class HasGradient(Protocol, metaclass=Capability):
    """Has a shorter way to its gradient than autograd. `energy_and_grad` asks, and so does every sampler through it."""

    def value_and_grad(self, x: Tensor, /, *more: Tensor) -> tuple[Tensor, Tensor] | None:
        """(E(x), dE/dx), (B,) and (B, *), both detached; None where autograd is to serve, for positions like these.

        `more` is what the energy's own call takes beside x: noise variances or labels.
        """
        ...


@runtime_checkable
class HasTimeGradient(Protocol, metaclass=Capability):
    """U(y, t) with a shorter way to both its gradients. Dual score matching asks, instead of autograd."""

    def value_and_grads(self, y: Tensor, t: Tensor, /) -> tuple[Tensor, Tensor, Tensor] | None:
        """(U, dU/dy, dU/dt), differentiable in the parameters once; None where autograd is to serve."""
        ...


@runtime_checkable
class HasNoiseLevels(NoisyEnergyFn, Protocol, metaclass=Capability):
    """U(y, t) that states its lowest and highest noise variance, 0 < t_min < t_max, in squared model units.

    No other part states them: objectives over noise levels and annealed samplers ask (`sigma_range`).
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
class NoiseConditional(HasNoiseLevels, Protocol, metaclass=Capability):
    """U(y, t) for t in [t_min, t_max], whose law at t_max is known. Annealed samplers ask, and begin there."""

    def prior(self, n: int, generator: Generator, /) -> Tensor:
        """n draws (n, *) of y at t_max."""
        ...

    def prior_log_prob(self, y: Tensor, /) -> Tensor:
        """log p(y) at t_max, (B,) nats: the density of `prior`."""
        ...


class GaussianMoments(Protocol):
    """A Gaussian N(m, V diag(l) V') with V orthogonal: `mean` m (D,), `spectrum` l (D,), and products with V."""

    mean: Tensor
    spectrum: Tensor

    def coordinates(self, x: Tensor, /) -> Tensor:
        """V' x of each row, (B, D)."""
        ...

    def combination(self, z: Tensor, /) -> Tensor:
        """V z of each row, (B, D)."""
        ...


@runtime_checkable
class Anchored(Protocol, metaclass=Capability):
    """Keeps a Gaussian of the data. In-painting asks, for the uncertainty of a denoiser."""

    @property
    def anchor(self) -> GaussianMoments:
        """The Gaussian of the data in model units, such as an `energy.density.gaussian.SpectralGaussian`."""
        ...


@runtime_checkable
class HasOutputs(Protocol, metaclass=Capability):
    """A network whose outputs (B, K) become an energy. `ClassifierEnergy` asks, and takes them for class scores."""

    @property
    def num_outputs(self) -> int:
        """K."""
        ...

    def outputs(self, x: Tensor, /) -> Tensor:
        """f(x), (B, K)."""
        ...


@runtime_checkable
class Classifier(Protocol, metaclass=Capability):
    """E(x) or U(x, t) that knows labels too. Classification asks, and calibrates, scores and samples classes."""

    def __call__(self, x: Tensor, /, *t: Tensor) -> Tensor:
        """The energy of x, (B,) nats."""
        ...

    @property
    def num_classes(self) -> int:
        """How many labels there are, 0 … num_classes - 1."""
        ...

    def logits(self, x: Tensor, /, *t: Tensor) -> Tensor:
        """(B, num_classes), whose softmax is p(label | x); with noise variances t (B,), of noisy data."""
        ...


@runtime_checkable
class HasTemperature(Protocol, metaclass=Capability):
    """Divides its scores by a temperature. Calibration asks, and sets it on held-out labels when a run ends."""

    @property
    def inverse_temperature(self) -> Tensor:
        """A number (), 1 before calibration: `logits` are multiplied by it."""
        ...


class Conditionals(NamedTuple):
    """The two conditional laws of a bipartite model, as log-odds of 1: `hidden(v)` (B, H), `visible(h)` (B, *)."""

    hidden: Callable[[Tensor], Tensor]
    visible: Callable[[Tensor], Tensor]


@runtime_checkable
class Bipartite(Protocol, metaclass=Capability):
    """Binary units in two layers, independent within a layer given the other. `Gibbs` asks, and takes no gradient."""

    @property
    def conditionals(self) -> Conditionals:
        """The conditional laws of the two layers."""
        ...


@runtime_checkable
class Discrete(EnergyFn, Protocol, metaclass=Capability):
    """Is an energy of states, not of real positions. Discrete samplers and the normaliser ask.

    With two states every number of a position is 0 or 1; with K > 2 the last axis of a position has length K and is
    one-hot. The energy is smooth between the states, so that its gradient is defined.
    """

    @property
    def num_states(self) -> int:
        """The number of states of a unit, 2 or more."""
        ...


@runtime_checkable
class HasExactLogZ(Discrete, Protocol, metaclass=Capability):
    """Is an energy of states that can be summed over. Evaluation and bundles ask, for exact likelihoods."""

    def log_z(self) -> Tensor:
        """log sum_x exp(-E(x)), () nats, with its gradient in the parameters; UserError for too many states."""
        ...


@runtime_checkable
class Constrained(Discrete, Protocol, metaclass=Capability):
    """Is an energy of states of which some have no mass, such as a letter after the end of a text.

    `PseudoLikelihood` asks, and spends no energies on them.
    """

    def allowed(self, x: Tensor, /) -> Tensor:
        """(B, M, K), bool: the states that a unit may be in while the others stay as they are in x (B, *)."""
        ...


@runtime_checkable
class HasBaseLaw(EnergyFn, Protocol, metaclass=Capability):
    """Is a known normalised law q, changed by a network. Noise-contrastive estimation asks, and takes q as the noise.

    Chains of text begin at its draws.
    """

    @property
    def num_uniforms(self) -> int:
        """How many uniform numbers make a draw."""
        ...

    def base_energy(self, x: Tensor, /) -> Tensor:
        """-log q(x), (B,) nats."""
        ...

    def base_draws(self, uniforms: Tensor, /) -> Tensor:
        """Exact draws (n, *) of q from uniform numbers in [0, 1), (n, num_uniforms): a pure function of them."""
        ...


@runtime_checkable
class Normalised(EnergyFn, Protocol, metaclass=Capability):
    """Has exp(-E) sum, or integrate, to 1 whatever the weights, where `normalised` is true.

    A run asks: -E is then log p under any objective.
    """

    @property
    def normalised(self) -> bool:
        """Whether it does."""
        ...


@runtime_checkable
class HasExactDraws(EnergyFn, Protocol, metaclass=Capability):
    """Can be drawn from without a chain. A bundle asks, and samples so."""

    @property
    def num_uniforms(self) -> int:
        """How many uniform numbers make a draw."""
        ...

    def exact_draws(self, uniforms: Tensor, /) -> Tensor:
        """Draws (n, *) of exp(-E) / Z from uniform numbers in [0, 1), (n, num_uniforms): a pure function of them."""
        ...


@runtime_checkable
class Shiftable(Protocol, metaclass=Capability):
    """U(y, t) with a constant that is learned. A run asks when it ends, to correct it (`run.constant`)."""

    def shift(self, nats: float, /) -> None:
        """Add a constant to U(., t_min), in place; at t_max, where the law is built in, nothing."""
        ...


@runtime_checkable
class HasSequence(Protocol, metaclass=Capability):
    """Is -logsumexp of what modules give one after the other. A chain asks, and then builds no graph at all."""

    def sequence(self) -> list[nn.Module]:
        """The modules, from the positions (B, *) to the scores (B, K)."""
        ...


@runtime_checkable
class Wraps(Protocol, metaclass=Capability):
    """Is made of other energies. A chain asks, to evaluate those inside by their short ways."""

    def over(self, change: Callable[[AnyEnergy], AnyEnergy], /) -> AnyEnergy:
        """The same wrapper over `change` of each of its energies."""
        ...


@runtime_checkable
class Fittable(Protocol, metaclass=Capability):
    """Takes figures of the training data before training. A run asks, and gives it rows in model units."""

    def fit(self, x: Tensor, /) -> object:
        """Set them from x (N, *)."""
        ...


@runtime_checkable
class FittableInParts(Fittable, Protocol, metaclass=Capability):
    """Takes figures of all training data, not of some rows. A run asks, and gives it the rows in parts."""

    def fit_parts(self, parts: Iterable[Tensor], /) -> object:
        """The same as `fit` of all the parts (N_i, *) together."""
        ...


def sigma_range(energy: object) -> tuple[float, float]:
    """(sigma_min, sigma_max), the noise deviations between which an energy U(y, t) is known: roots of t_min and t_max.

    UserError for an energy without noise levels, or where they are not 0 < t_min < t_max.
    """
    if not isinstance(energy, HasNoiseLevels):
        raise UserError(f"must have noise levels; {lacking(energy, HasNoiseLevels)}", argument="energy")
    t_min, t_max = float(energy.t_min), float(energy.t_max)
    check.positive(t_min=t_min)
    check.increasing(t_min=t_min, t_max=t_max)
    return math.sqrt(t_min), math.sqrt(t_max)


def require_noise_conditional(energy: object) -> None:
    """UserError, with what it lacks, for an energy that annealed sampling cannot start from."""
    if not isinstance(energy, NoiseConditional):
        text = f"must be noise-conditional for an annealed sampler; {lacking(energy, NoiseConditional)}"
        raise UserError(text, argument="energy")
    sigma_range(energy)


def lacking(thing: object, *capabilities: Capability) -> str:
    """The part of a message that names the members which a thing does not have."""
    names = (name for capability in capabilities for name in capability.members())
    return f"{type(thing).__name__} lacks {', '.join(name for name in names if not hasattr(thing, name))}"


def energy_and_grad(energy: EnergyFn, x: Float[Tensor, "b *d"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b *d"]]:
    """(E(x), dE/dx) in one forward and one backward pass, both detached.

    The sum over the batch is differentiated, which gives each row its own gradient as long as the energy
    treats rows independently (so no BatchNorm in train mode). Under `torch.compile` the pull-back of
    `torch.func.vjp` is used, because `autograd.grad` does not trace; in eager mode `autograd.grad`, because
    it works with every module. An energy's own way (`HasGradient`) comes first.
    """
    if torch.compiler.is_compiling():
        u, pull = torch.func.vjp(energy, x)  # pyright: ignore[reportAssignmentType]
        return u.detach(), pull(torch.ones_like(u))[0].detach()
    if isinstance(energy, HasGradient) and (both := energy.value_and_grad(x)) is not None:
        return both
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        u = energy(x)
        (g,) = torch.autograd.grad(u.sum(), x)
    return u.detach(), g


def marginal(f: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """-log sum_k exp f_k, the free energy of K scores; for one score it is -f."""
    return -f.squeeze(1) if f.shape[1] == 1 else -torch.logsumexp(f, dim=1)
