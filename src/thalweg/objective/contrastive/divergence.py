"""Contrastive divergence: lower the energy of data, raise it where the model's own chains go.

The likelihood's gradient is -d log p(x) / d theta = dE(x)/d theta - E_model[dE/d theta] (Hinton 2002). The
second mean is estimated with a few steps of Markov chains that begin at the data (CD), where they last
stopped (persistent CD; Tieleman 2008; with a replay buffer: Du & Mordatch 2019), or at noise (short-run;
Nijkamp et al. 2019). Hence

    loss = mean E(real) - mean E(fake),

in this order: with the opposite sign real energies go *up*. The chain sees the energy with spectral norms
frozen and in eval mode; the loss takes real and fake in one forward in train mode. The energy's constant
stays unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import EnergyFn
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.wrappers import FixedLabels
from thalweg.objective.base import Batch
from thalweg.objective.contrastive import health, replay_buffer
from thalweg.objective.contrastive.replay_buffer import Initial, Replay, Visit
from thalweg.sampler.base import HasClamp, Info, Sampler, normal_like
from thalweg.sampler.langevin import ULA
from thalweg.sampler.precision import at_precision

FIRM = 0.1  # the energy penalty by default, and the least one after a rollback


class Augment(Protocol):
    """(positions (B, *), generator, share of training done) -> altered positions (B, *), as `data.augment` has."""

    def __call__(self, x: Tensor, generator: Generator, progress: float) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class ContrastiveDivergence:
    """mean E(real) - mean E(fake) + alpha (mean E(real)² + mean E(fake)²) + lambda mean |grad E(real)|².

    Costs `num_steps` gradients of the energy and one training step on twice the batch.

    - `num_steps`: the chain's length, or (first, last), growing linearly over training.
    - `start`: where chains begin: "data", "persistent" (a buffer of `buffer_size` chains, each begun anew
      with probability `reinit` when it is visited) or "noise".
    - `augment` alters a chain's position between two visits (a jump that the energy must answer, so that chains leave
      the places they wore in; Du et al. 2021); chains that begin anew are not altered.
    - `initial`: what noise is: "uniform" on [`low`, `high`] (images) or "normal", fitted to the batch
      (vectors).
    - `energy_penalty` (alpha) holds the energies near zero, at the price of a bias; `gradient_penalty`
      (lambda) the slope at the data (Mescheder et al. 2018); `data_noise` is the deviation of noise added to
      the data, not clamped.
    - `conditional`: the energy is E(x, labels); each chain keeps its label, and a step visits chains of the batch's
      labels, so that real and fake differ in nothing else.

    A chain that ends at a non-finite position is left out of the loss and begun anew; `diverged` is the share
    of such chains. When all are, the loss is NaN, for the trainer to refuse.
    """

    sampler: Sampler[Any]
    num_steps: int | Sequence[int] = 10
    start: Literal["data", "persistent", "noise"] = "persistent"
    initial: Initial = "uniform"
    buffer_size: int = 10_000
    reinit: float = 0.05
    augment: Augment | None = None
    low: float = 0.0
    high: float = 1.0
    energy_penalty: float = FIRM
    gradient_penalty: float = 0.0
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
        check.one_of(("uniform", "normal"), initial=self.initial)
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

    @classmethod
    def example(cls) -> "ContrastiveDivergence":
        """A small instance, for the contract suite."""
        return cls(sampler=ULA(step_size=0.01), num_steps=(1, 3), buffer_size=64, gradient_penalty=0.1)

    def after_rollback(self, times: int) -> "ContrastiveDivergence":
        """With an energy penalty of `FIRM` at least, all of it at once.

        Without one only the chains answer an energy that runs away from them, at any learning rate, and they answer
        late. Its price is the penalty's bias, which is why a healthy run does not pay it.
        """
        return replace(self, energy_penalty=FIRM) if times and self.energy_penalty < FIRM else self

    def init(self, energy: Any, x: Float[Tensor, "b *d"], generator: Generator) -> Replay:
        """`buffer_size` chains at fresh positions; no buffer where chains do not outlive a step."""
        if self.start != "persistent":
            return replay_buffer.start(x.new_empty(0, *x.shape[1:]))
        return replay_buffer.start(self._fresh(self.buffer_size, x, generator))

    def draw(self, state: Replay, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(slots, renew, fresh x, fresh labels, data noise, altered x, step numbers, the chain's noise by step).

        The sampler's `draw` sees a state of a flat energy: the chain's shapes and types, not its values.
        """
        x = batch.x
        visit = self._visit(state, batch, generator)
        jitter = self.data_noise * normal_like(x, generator) if self.data_noise else x.new_zeros(())
        altered = x.new_zeros(())
        if self.augment is not None:
            altered = self.augment(state.x[visit.slots], generator, progress)
        steps = torch.arange(self._length(progress), device=x.device)
        like = self.sampler.init(_flat, x)
        chain = [self.sampler.draw(like, generator) for _ in steps]
        return *visit, jitter, altered, steps, *(torch.stack(kind) for kind in zip(*chain, strict=True))

    def loss(
        self, energy: Any, state: Replay, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Replay, dict[str, Tensor]]:
        """The loss in nats, and the buffer with the moved chains in their slots."""
        visit, (jitter, altered, steps, *chain) = Visit(*noise[:4]), noise[4:]
        real = batch.x + jitter
        begun = self._begin(state, visit, real, altered)
        x, info = self._run(self._given(energy, begun.labels), begun.x, len(steps), chain)
        finite = x.flatten(1).isfinite().all(1)
        moved = replay_buffer.mend(Replay(x, begun.age + len(steps), begun.labels), visit, finite)
        both = self._given(energy, torch.cat([self._labels(batch), moved.labels]))
        loss, metrics = self._compare(both, real, moved.x, finite)
        clamp = self.sampler.clamp if isinstance(self.sampler, HasClamp) else None
        metrics |= health.of_chains(begun.x, moved.x, finite, real, info, clamp)
        if self.start != "data":
            metrics["energy_noise"] = self._energy_of_noise(energy, visit)
        if self.start == "persistent":
            state = replay_buffer.put(state, visit, moved)
            metrics["buffer_age"] = state.age.float().mean()
        return loss, state, metrics

    def _length(self, progress: float) -> int:
        """The chain's length at this share of training; each length of the range lasts equally long."""
        if not isinstance(self.num_steps, Sequence):
            return self.num_steps
        first, last = self.num_steps[0], self.num_steps[-1]
        sign = 1 if last >= first else -1
        return first + sign * int(progress * (abs(last - first) + 1))

    def _fresh(self, n: int, like: Tensor, generator: Generator) -> Tensor:
        return replay_buffer.fresh(n, like, generator, initial=self.initial, low=self.low, high=self.high)

    def _visit(self, state: Replay, batch: Batch, generator: Generator) -> Visit:
        """Whom to move: in a conditional model chains of the batch's labels, others anew where there are too few."""
        n, labels = len(batch.x), self._labels(batch)
        if self.start == "data":
            return Visit(torch.arange(n, device=labels.device), torch.ones_like(labels).bool(), batch.x, labels)
        x = self._fresh(n, batch.x, generator)
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
            raise UserError("conditional=True needs labels, and the batch has none: give labelled data")
        return batch.labels

    def _begin(self, state: Replay, visit: Visit, real: Tensor, altered: Tensor) -> Replay:
        """Where the chains begin: at the data as the loss sees them, at noise, or where they stopped."""
        if self.start == "persistent":
            found = None if self.augment is None else altered
            return replay_buffer.take(state, visit, found)
        return replay_buffer.start(real if self.start == "data" else visit.x)._replace(labels=visit.labels)

    def _given(self, energy: Any, labels: Tensor) -> EnergyFn:
        """The energy of positions alone."""
        return FixedLabels(energy, labels) if self.conditional else energy

    @torch.no_grad()
    def _energy_of_noise(self, energy: Any, visit: Visit) -> Tensor:
        """The mean energy of the fresh starts, which a sound energy ranks above its chains and those above the data."""
        with frozen(self._given(energy, visit.labels)) as still:
            return still(visit.x).mean()

    def _run(self, energy: EnergyFn, x: Tensor, num: int, chain: Sequence[Tensor]) -> tuple[Tensor, Info]:
        """The chain's last positions, outside the graph, and its last diagnostics; under autocast, in its precision."""
        bf16 = torch.is_autocast_enabled(x.device.type)
        with FrozenEnergy.of(energy) as fixed, at_precision(fixed, self.sampler, x, bf16) as precise:
            state = self.sampler.init(precise, x.detach())
            info = Info(x.new_ones(len(x)), x.new_zeros(len(x)))
            for k in range(num):
                state, info = self.sampler.step(precise, state, tuple(kind[k] for kind in chain))
        return state.x.detach(), info

    def _compare(
        self, energy: EnergyFn, real: Tensor, fake: Tensor, finite: Bool[Tensor, " b"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss from one forward over real and fake (two would break DDP), and what it is made of."""
        slope = real.new_zeros(())
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.gradient_penalty > 0):
            real = real.detach().requires_grad_(self.gradient_penalty > 0)
            u_real, u_fake = energy(torch.cat([real, fake])).split([len(real), len(fake)])
            if self.gradient_penalty:
                (g,) = torch.autograd.grad(u_real.sum(), real, create_graph=True)
                slope = g.flatten(1).square().sum(1).mean()
        real_mean, fake_mean = u_real.mean(), _mean_of(u_fake, finite)
        size = u_real.square().mean() + _mean_of(u_fake.square(), finite)
        loss = real_mean - fake_mean + self.energy_penalty * size + self.gradient_penalty * slope
        parts = {"energy_real": real_mean, "energy_fake": fake_mean, "gap": fake_mean - real_mean}
        parts |= {"slope_squared": slope, "overlap": health.overlap(u_real.detach(), u_fake.detach())}
        return loss, {name: value.detach() for name, value in parts.items()}


def _mean_of(u: Float[Tensor, " b"], chosen: Bool[Tensor, " b"]) -> Float[Tensor, ""]:
    """The mean over the chosen rows; NaN where there are none."""
    return torch.where(chosen, u, 0).sum() / chosen.sum()


def _flat(x: Tensor) -> Tensor:
    """An energy that is zero everywhere, with a gradient."""
    return 0 * x.flatten(1).sum(1)
