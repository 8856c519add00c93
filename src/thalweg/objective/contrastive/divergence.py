"""Contrastive divergence: lower the energy of data, raise that of the model's samples.

The likelihood's gradient is -d log p(x) / d theta = dE(x)/d theta - E_model[dE/d theta] (Hinton 2002). The second mean
is estimated by a few steps of Markov chains that begin at the data (CD), where they last stopped (persistent CD;
Tieleman 2008; with a replay buffer: Du & Mordatch 2019), or at noise (short-run; Nijkamp et al. 2019). Hence

    loss = mean E(real) - mean E(fake).

The chains use the frozen energy in evaluation mode; the loss takes real and fake in one forward in train mode. The
energy's constant stays unknown.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.device import in_autocast
from thalweg.core.errors import UserError
from thalweg.energy.base import AnyEnergy, EnergyFn
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.engine.attention import double_backward
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.wrappers import FixedLabels
from thalweg.objective.base import LABELS, Batch
from thalweg.objective.contrastive import health, replay_buffer, starts
from thalweg.objective.contrastive.replay_buffer import Initial, Replay, Visit
from thalweg.objective.contrastive.starts import StartLaw
from thalweg.objective.score.derivatives import Gradient, check_gradient, takes_differences
from thalweg.objective.score.finite_differences import deviation, loss_of_gradient
from thalweg.sampler.base import HasClamp, Info, Sampler, normal_like
from thalweg.sampler.langevin import ULA
from thalweg.sampler.precision import at_precision

ENERGY_PENALTY = 0.1  # by default, and at least after a rollback
LONGER, MOST_TIMES = 1.5, 2  # factor on the chain's length after a collapse, and the most times that it is applied
REINIT = 0.1  # least share of restarted chains after a collapse, doubled after the next


class Augment(Protocol):
    """(positions (B, *), generator, share of training done) -> altered positions (B, *), as `data.augment` has."""

    def __call__(self, x: Tensor, generator: Generator, progress: float) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class ContrastiveDivergence:
    """mean E(real) - mean E(fake) + alpha (mean E(real)² + mean E(fake)²) + lambda mean |grad E(real)|².

    Costs `num_steps` gradients of the energy and one training step on twice the batch. A chain that ends at a
    non-finite position is left out of the loss and restarted; `diverged` is the share of such chains. Where all are,
    the loss is NaN, which the trainer refuses.

    Args:
        sampler: The sampler of the chains. Its schedules count the steps of one visit, from 0.
        num_steps: The chain's length, or (first, last), changing linearly over training.
        start: Where chains begin: "data", "persistent" (a replay buffer) or "noise".
        initial: The law of noise: "uniform" on [low, high]; "normal", fitted to the batch; or "mixture", of factor
            analysers, fitted to `init_rows` rows of the data before training (`contrastive.starts`). None: uniform for
            images (B, C, H, W), normal for rows.
        buffer_size: Chains in the replay buffer.
        reinit: Probability that a visited chain of the buffer is restarted at noise.
        augment: Alters a chain's position between two visits, which improves mixing (Du et al. 2021); restarted chains
            are not altered.
        low: Lower end of uniform noise.
        high: Upper end of uniform noise.
        energy_penalty: alpha, which keeps energies near zero and adds a bias.
        gradient_penalty: lambda, on the gradient at the data (Mescheder et al. 2018).
        gradient: How that penalty is differentiated: by a second derivative, by finite differences (in steps relative
            to the deviation of the batch), or what the energy allows ("auto").
        data_noise: Deviation of Gaussian noise added to the data, not clamped.
        conditional: The energy is E(x, labels): each chain keeps its label, and a step visits chains of the batch's
            labels.
    """

    sampler: Sampler[Any] = field(default_factory=lambda: ULA(step_size=0.01))
    num_steps: int | Sequence[int] = 10
    start: Literal["data", "persistent", "noise"] = "persistent"
    initial: Initial | None = None
    buffer_size: int = 10_000
    reinit: float = 0.05
    augment: Augment | None = None
    low: float = 0.0
    high: float = 1.0
    energy_penalty: float = ENERGY_PENALTY
    gradient_penalty: float = 0.0
    gradient: Gradient = "auto"
    data_noise: float = 0.0
    conditional: bool = False
    normalises = False
    noisy = False

    def __post_init__(self):
        steps = self.num_steps if isinstance(self.num_steps, Sequence) else (self.num_steps,)
        if len(steps) not in (1, 2):
            raise UserError("must be a count, or two of them (first, last)", argument="num_steps", value=self.num_steps)
        for number in steps:
            check.count(num_steps=number)
        check.one_of(("data", "persistent", "noise"), start=self.start)
        if self.initial is not None:
            check.one_of(("uniform", "normal", "mixture"), initial=self.initial)
        if self.augment is not None and not callable(self.augment):
            hint = "write a spec such as {type: thalweg.data.augment:Warp}"
            raise UserError("must be callable", argument="augment", value=self.augment, hint=hint)
        if self.augment is not None and self.start != "persistent":
            raise UserError('has no effect without start="persistent"', argument="augment")
        check.share(reinit=self.reinit)
        check.count(buffer_size=self.buffer_size)
        check.increasing(low=self.low, high=self.high)
        check.non_negative(energy_penalty=self.energy_penalty, gradient_penalty=self.gradient_penalty)
        check.non_negative(data_noise=self.data_noise)
        check_gradient(self.gradient)

    @classmethod
    def example(cls) -> "ContrastiveDivergence":
        """A small instance, for the contract suite."""
        return cls(sampler=ULA(step_size=0.01), num_steps=(1, 3), buffer_size=64, gradient_penalty=0.1)

    def after_rollback(self, times: int) -> "ContrastiveDivergence":
        """The same with an energy penalty of at least `ENERGY_PENALTY`, which stops energies that drift apart."""
        weak = times and self.energy_penalty < ENERGY_PENALTY
        return replace(self, energy_penalty=ENERGY_PENALTY) if weak else self

    def after_collapse(self, times: int) -> "ContrastiveDivergence":
        """The same with longer chains, of which more are restarted: these reach what the others have left."""
        times = min(times, MOST_TIMES)
        if not times or self.start == "data":
            return self
        factor = LONGER**times
        lengths = self.num_steps if isinstance(self.num_steps, Sequence) else (self.num_steps,)
        longer = tuple(math.ceil(factor * length) for length in lengths)
        reinit = max(self.reinit, REINIT * 2 ** (times - 1)) if self.persistent else self.reinit
        num_steps = longer if isinstance(self.num_steps, Sequence) else longer[0]
        return replace(self, num_steps=num_steps, reinit=reinit)

    @property
    def persistent(self) -> bool:
        """Whether there is a buffer."""
        return self.start == "persistent"

    def persistent_chains(self, state: Replay) -> Tensor:
        """All chains of the buffer."""
        return state.x

    def init(self, energy: AnyEnergy, x: Float[Tensor, "b *d"], generator: Generator) -> Replay:
        """`buffer_size` chains at noise; an empty buffer unless chains are persistent."""
        law = starts.fit(x, generator) if self.initial == "mixture" else ()
        persistent = self.start == "persistent"
        chains = self._fresh(self.buffer_size, x, law, generator) if persistent else x.new_empty(0, *x.shape[1:])
        return replay_buffer.start(chains)._replace(finite_differences=self._takes_differences(energy, x), law=law)

    @property
    def init_rows(self) -> int:
        """How many rows of the data `init` should be given: enough for the mixture, where there is one."""
        return starts.ROWS if self.initial == "mixture" else 1

    def start_law(self, state: Replay, shape: Sequence[int]) -> MixtureOfFactorAnalyzers | None:
        """The mixture that new chains are drawn from, of rows of a shape; None where it is another law."""
        return state.law.mixture(tuple(shape)) if isinstance(state.law, StartLaw) else None

    def _takes_differences(self, energy: AnyEnergy, x: Tensor) -> bool:
        """Whether the gradient penalty, where there is one, is differentiated by finite differences."""
        if not self.gradient_penalty:
            return False
        labels = (x.new_zeros(len(x), dtype=torch.int64),) if self.conditional else ()
        return takes_differences(self.gradient, self, energy, (x, *labels))

    def draw(self, state: Replay, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(slots, renew, new x, new labels, data noise, altered x, step numbers, the chain's noise by step).

        The sampler draws from a state of a constant energy, which has the chain's shapes and types.
        """
        x = batch.x
        visit = self._visit(state, batch, generator)
        jitter = self.data_noise * normal_like(x, generator) if self.data_noise else x.new_zeros(())
        altered = x.new_zeros(())
        if self.augment is not None:
            altered = self.augment(state.x[visit.slots], generator, progress)
        steps = torch.arange(self._length(progress), device=x.device)
        like = self.sampler.init(_zero, x)
        chain = [self.sampler.draw(like, generator) for _ in range(len(steps))]
        return *visit, jitter, altered, steps, *(torch.stack(kind) for kind in zip(*chain, strict=True))

    def loss(
        self, energy: AnyEnergy, state: Replay, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Replay, dict[str, Tensor]]:
        """The loss in nats, and the buffer with the moved chains in their slots."""
        visit, (jitter, altered, steps, *chain) = Visit(*noise[:4]), noise[4:]
        real = batch.x + jitter
        begun = self._begin(state, visit, real, altered)
        x, info = self._run(self._of_labels(energy, begun.labels), begun.x, len(steps), chain)
        finite = x.flatten(1).isfinite().all(1)
        moved = replay_buffer.restart_diverged(Replay(x, begun.age + len(steps), begun.labels), visit, finite)
        labels = torch.cat([self._labels(batch), moved.labels])
        if state.finite_differences:
            loss, metrics = self._compare(self._of_labels(energy, labels), real, moved.x, finite, 0.0)
            penalty, more = self._penalty_by_differences(energy, real, labels[: len(real)])
            loss, metrics = loss + self.gradient_penalty * penalty, metrics | more
        else:
            both = self._of_labels(energy, labels)
            loss, metrics = self._compare(both, real, moved.x, finite, self.gradient_penalty)
        clamp = self.sampler.clamp if isinstance(self.sampler, HasClamp) else None
        metrics |= health.of_chains(begun.x, moved.x, finite, real, info, clamp)
        if self.start != "data":
            metrics["energy_noise"] = self._energy_of_noise(energy, visit)
        if self.start == "persistent":
            state = replay_buffer.put(state, visit, moved)
            metrics["buffer_age"] = state.age.float().mean()
        return loss, state, metrics

    def _length(self, progress: float) -> int:
        """The chain's length at this share of training; each length of the range has an equal share."""
        if not isinstance(self.num_steps, Sequence):
            return self.num_steps
        first, last = self.num_steps[0], self.num_steps[-1]
        sign = 1 if last >= first else -1
        return first + sign * int(progress * (abs(last - first) + 1))

    def _fresh(self, n: int, like: Tensor, law: StartLaw | tuple[()], generator: Generator) -> Tensor:
        initial = self.initial or ("uniform" if like.ndim == 4 else "normal")
        return replay_buffer.fresh(n, like, generator, initial=initial, low=self.low, high=self.high, law=law)

    def _visit(self, state: Replay, batch: Batch, generator: Generator) -> Visit:
        """The chains to move: of a conditional energy those of the batch's labels, new ones where there are too few."""
        n, labels = len(batch.x), self._labels(batch)
        if self.start == "data":
            return Visit(torch.arange(n, device=labels.device), torch.ones_like(labels).bool(), batch.x, labels)
        x = self._fresh(n, batch.x, state.law, generator)
        if self.start == "noise":
            return Visit(torch.arange(n, device=labels.device), torch.ones_like(labels).bool(), x, labels)
        slots = (
            replay_buffer.choose_keyed(state, labels, generator)
            if self.conditional
            else replay_buffer.choose(state, n, generator)
        )
        renew = torch.rand(n, generator=generator, device=labels.device) < self.reinit
        return Visit(slots, renew | (state.labels[slots] != labels), x, labels)

    def _labels(self, batch: Batch) -> Tensor:
        """The labels that chains begin with: the batch's, or -1 where the energy takes none."""
        if not self.conditional:
            return replay_buffer.no_labels(len(batch.x), batch.x.device)
        if batch.labels is None:
            raise UserError("needs labels, and the batch has none", argument="conditional", value=True, hint=LABELS)
        return batch.labels

    def _begin(self, state: Replay, visit: Visit, real: Tensor, altered: Tensor) -> Replay:
        """The first positions of the chains: the data as the loss sees them, noise, or where they stopped."""
        if self.start == "persistent":
            found = None if self.augment is None else altered
            return replay_buffer.take(state, visit, found)
        return replay_buffer.start(real if self.start == "data" else visit.x)._replace(labels=visit.labels)

    def _of_labels(self, energy: AnyEnergy, labels: Tensor) -> EnergyFn:
        """E(x), or E(x, labels) at these labels."""
        return FixedLabels(energy, labels) if self.conditional else energy

    @torch.no_grad()
    def _energy_of_noise(self, energy: AnyEnergy, visit: Visit) -> Tensor:
        """The mean energy of noise, which should be above that of the chains."""
        with frozen(self._of_labels(energy, visit.labels)) as constant:
            return constant(visit.x).mean()

    def _run(self, energy: EnergyFn, x: Tensor, num: int, chain: Sequence[Tensor]) -> tuple[Tensor, Info]:
        """The chain's last positions, outside the graph, and its last diagnostics; under autocast, in its precision."""
        bf16 = in_autocast(x.device)
        with FrozenEnergy.of(energy) as fixed, at_precision(fixed, self.sampler, x, bf16) as precise:
            state = self.sampler.init(precise, x.detach())
            info = Info(x.new_ones(len(x)), x.new_zeros(len(x)))
            for k in range(num):
                state, info = self.sampler.step(precise, state, tuple(kind[k] for kind in chain))
        return state.x.detach(), info

    def _compare(
        self, energy: EnergyFn, real: Tensor, fake: Tensor, finite: Bool[Tensor, " b"], penalty: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss from one forward over real and fake (two would break DDP), and its parts.

        `penalty`: the weight of the gradient penalty, where a second derivative differentiates it.
        """
        squared_gradient = real.new_zeros(())
        kernels = double_backward() if penalty else nullcontext()
        with torch.set_grad_enabled(torch.is_grad_enabled() or penalty > 0), kernels:
            real = real.detach().requires_grad_(penalty > 0)
            u_real, u_fake = energy(torch.cat([real, fake])).split([len(real), len(fake)])
            if penalty:
                (g,) = torch.autograd.grad(u_real.sum(), real, create_graph=True)
                squared_gradient = _mean_square(g)
        real_mean, fake_mean = u_real.mean(), _mean_of(u_fake, finite)
        squares = u_real.square().mean() + _mean_of(u_fake.square(), finite)
        loss = real_mean - fake_mean + self.energy_penalty * squares + penalty * squared_gradient
        parts = {"energy_real": real_mean, "energy_fake": fake_mean, "gap": fake_mean - real_mean}
        parts |= {"squared_gradient": squared_gradient, "overlap": health.overlap(u_real.detach(), u_fake.detach())}
        return loss, {name: value.detach() for name, value in parts.items()}

    def _penalty_by_differences(
        self, energy: AnyEnergy, real: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """mean |grad E(real)|², differentiable in the parameters without a second derivative, and its metrics."""
        more, scale = (labels,) if self.conditional else (), deviation(real)
        penalty, _, _, metrics = loss_of_gradient(
            energy, (real, *more), scale, lambda slope: _mean_square(slope / scale), finite_differences=True
        )
        return penalty, {"squared_gradient": penalty.detach(), **metrics}


def _mean_square(g: Float[Tensor, "b *d"]) -> Float[Tensor, ""]:
    """mean |g|² of the rows."""
    return g.flatten(1).square().sum(1).mean()


def _mean_of(u: Float[Tensor, " b"], chosen: Bool[Tensor, " b"]) -> Float[Tensor, ""]:
    """The mean over the chosen rows; NaN where there are none."""
    return torch.where(chosen, u, 0).sum() / chosen.sum()


def _zero(x: Tensor) -> Tensor:
    """An energy that is zero everywhere, with a gradient."""
    return 0 * x.flatten(1).sum(1)
