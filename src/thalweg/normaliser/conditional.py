"""The conditional law p(y | x) = exp(-E(x, y)) / Z(x): its likelihood, its probabilities and draws of y.

The energy is a `energy.outcomes.Conditional`, or any callable E(x, y), (B, *) and outcomes of B rows to (B,) nats; then
`outcomes` says what y may be. Where y can be counted, all is exact and Z(x) is a
sum (`energy.outcomes`). Elsewhere Z(x) is annealed row by row by `log_z`, with an interval, and y is drawn by chains.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.core.rng import generator as address
from thalweg.energy.outcomes import (
    MOST_PAIRS,
    Binary,
    Classes,
    Conditional,
    Continuous,
    JointEnergyFn,
    LinearGaussian,
    Outcomes,
    gaussian_of,
    log_mixture,
    state_energies,
    surprise,
)
from thalweg.normaliser.log_z import log_z
from thalweg.sampler.base import normal_like
from thalweg.sampler.chain import run_chain
from thalweg.sampler.langevin import MALA

DRAWS, SCALES, MOST_WEIGHED = 8192, (0.5, 1.0, 2.0, 4.0), 4  # of importance sampling; up to so many dimensions
CANDIDATES, SPREAD = 256, 2.0  # draws that a chain's start is chosen of, and their deviation in the Gaussian law's
SWEEPS, STEPS, STEP_SIZE = 50, 100, 0.02  # of chains on binary vectors; on standardised vectors


log = logging.getLogger("thalweg")
LEAST_ESS = 100  # of the weights, for their mean's upper end
AnyConditional = JointEnergyFn | Conditional


class ConditionalLogProb(NamedTuple):
    """log p(y | x) in nats with its interval, each (B,); `ess`: so many draws carry the weight."""

    estimate: Float[Tensor, " b"]
    low: Float[Tensor, " b"]
    high: Float[Tensor, " b"]
    ess: Float[Tensor, " b"]


class ConditionalProbs(NamedTuple):
    """Probabilities (B, K), of each class or of each unit being 1, and the most probable y, (B,) or (B, K)."""

    probs: Float[Tensor, "b k"]
    mode: Shaped[Tensor, "b *k"]


def conditional_log_prob(
    energy: AnyConditional,
    x: Float[Tensor, "b *d"],
    y: Shaped[Tensor, "b *k"],
    outcomes: Outcomes | None = None,
) -> Float[Tensor, " b"]:
    """log p(y | x) = -E(x, y) - log sum_y' exp(-E(x, y')), (B,) nats, exact, with its gradient.

    Costs E at all outcomes of each row, 65,536 pairs at a time. UserError where y cannot be counted, or is none of the
    outcomes.
    """
    joint, outcomes = _parts(energy, outcomes)
    outcomes.check(y, len(x))
    return -surprise(joint, x, y, outcomes)


@torch.no_grad()
def conditional_log_prob_interval(
    energy: AnyConditional,
    x: Float[Tensor, "b *d"],
    y: Shaped[Tensor, "b k"],
    outcomes: Outcomes | None = None,
    *,
    seed: int = 0,
    tolerance: float = 0.1,
    anneal: bool = True,
    **options: Any,
) -> ConditionalLogProb:
    """log p(y | x) with an interval of three standard errors, where y cannot be counted.

    For up to 4 continuous numbers Z(x) is a mean of 8,192 weights, of draws from a Gaussian law of y at several scales;
    the draws are the same for all rows. Where half the interval's width is over `tolerance`, and for all else, Z(x) is
    annealed by `log_z`, in a second or more a row. UserError as there.

    Args:
        energy: E(x, y). One with a Gaussian law of y given x (`HasGaussian`) has y annealed in its coordinates.
        x: Rows (B, *).
        y: Their outcomes (B, K).
        outcomes: What y may be; None: the energy's own.
        seed: Of all draws.
        tolerance: In nats.
        anneal: Whether rows with a wide interval are annealed; otherwise they keep it.
        options: Those of `log_z`, such as `num_chains`.
    """
    joint, outcomes = _parts(energy, outcomes)
    if isinstance(outcomes, Classes):
        hint = "take conditional_log_prob, which is exact"
        raise UserError("must be binary or continuous to be annealed", argument="outcomes", value=outcomes, hint=hint)
    check.positive(tolerance=tolerance)
    outcomes.check(y, len(x))
    found = torch.full((len(x), 4), torch.inf, dtype=torch.float64)
    if isinstance(outcomes, Continuous) and outcomes.num <= MOST_WEIGHED:
        found = _weighed(energy, x, outcomes, seed)
    wide = ~(found[:, 2] - found[:, 1] <= 2 * tolerance)
    for i in wide.nonzero().squeeze(1).tolist() if anneal else ():
        found[i] = torch.tensor(_annealed(energy, x[i : i + 1], outcomes, seed, tolerance, options))
    estimate, low, high, ess = found.T
    u = joint(x, y).double().cpu()
    return ConditionalLogProb(*(v.to(x.device) for v in (-u - estimate, -u - high, -u - low, ess)))


def _weighed(energy: AnyConditional, x: Tensor, outcomes: Continuous, seed: int) -> Float[Tensor, "b 4"]:
    """log Z(x) of each row by importance sampling: estimate, low, high, effective size."""
    joint, _ = _parts(energy, outcomes)
    draws, law = address(seed, "conditional-weights", device=x.device), gaussian_of(energy, x, outcomes)
    scales = torch.tensor(SCALES, dtype=x.dtype, device=x.device)
    u = normal_like(law.mean[:1].expand(DRAWS, -1), draws) * scales.repeat(DRAWS // len(SCALES))[:, None]
    log_w = []
    for some, mean in zip(x.split(MOST_PAIRS // DRAWS), law.mean.split(MOST_PAIRS // DRAWS), strict=True):
        y = mean + (u @ law.scale.T)[:, None]
        e = joint(some.repeat(DRAWS, *[1] * (x.ndim - 1)), y.flatten(0, 1)).view(DRAWS, len(some))
        log_w.append((law.log_det() - e - log_mixture(u, scales)[:, None]).double().cpu())
    log_w = torch.cat(log_w, 1)
    log_z, w = torch.logsumexp(log_w, 0) - math.log(DRAWS), torch.softmax(log_w, 0) * DRAWS
    error = 3 * w.std(0) / math.sqrt(DRAWS)  # of w / mean w
    low = torch.where(error < 1, torch.log1p(-error.clamp(max=1 - 1e-9)), -torch.inf)
    ess = DRAWS**2 / w.square().sum(0)
    high = torch.where(ess < LEAST_ESS, torch.inf, torch.log1p(error))  # draws that missed the mass do not know it
    return torch.stack([log_z, log_z + low, log_z + high, ess], 1)


def _annealed(
    energy: AnyConditional, x: Tensor, outcomes: Binary | Continuous, seed: int, tolerance: float, options: Any
) -> list[float]:
    """The same of one row by annealed importance sampling, forward and reverse."""
    law = gaussian_of(energy, x, outcomes) if isinstance(outcomes, Continuous) else None
    joint, _ = _parts(energy, outcomes)
    given = _BinaryGivenX(joint, x) if law is None else _GivenX(joint, x, law)
    z = log_z(given, shape=(outcomes.num,), seed=seed, tolerance=tolerance, **options)
    if z.warning is not None:
        log.warning("log p(y | x): %s", z.warning)
    shift = 0.0 if law is None else float(law.log_det())  # dy = |scale| du
    return [z.estimate + shift, z.low + shift, z.high + shift, z.ess]


@torch.no_grad()
def conditional_probs(
    energy: AnyConditional,
    x: Float[Tensor, "b *d"],
    outcomes: Outcomes | None = None,
    *,
    num_draws: int = 200,
    seed: int = 0,
) -> ConditionalProbs:
    """Probabilities of classes or units, and the most probable y: exact where y can be counted.

    Of longer binary vectors: shares of `num_draws` draws by chains, and the draw of lowest energy. UserError for a
    continuous y.
    """
    joint, outcomes = _parts(energy, outcomes)
    if isinstance(outcomes, Continuous):
        hint = "take sample_conditional"
        raise UserError("must be classes or binary vectors", argument="outcomes", value=outcomes, hint=hint)
    if outcomes.enumerable:
        p, states = torch.softmax(-state_energies(joint, x, outcomes), 1), outcomes.states(x.device)
        return ConditionalProbs(p if isinstance(outcomes, Classes) else p @ states.to(p), states[p.argmax(1)])
    draws = sample_conditional(joint, x, num_draws, outcomes, seed=seed)
    u = joint(x.repeat(num_draws, *[1] * (x.ndim - 1)), draws.flatten(0, 1)).view(num_draws, len(x))
    return ConditionalProbs(draws.mean(0), draws[u.argmin(0), torch.arange(len(x), device=x.device)])


@torch.no_grad()
def sample_conditional(
    energy: AnyConditional, x: Float[Tensor, "b *d"], n: int, outcomes: Outcomes | None = None, *, seed: int = 0
) -> Shaped[Tensor, "n b *k"]:
    """n draws of y for each x, (n, B) or (n, B, K): exact where y can be counted.

    Else by chains, one a draw: of binary vectors by 50 sweeps of Gibbs over the units; of continuous ones by 100 steps
    of MALA from one of 256 draws of a Gaussian law, chosen by weight.
    """
    n, (joint, outcomes) = check.whole("n", n, 1), _parts(energy, outcomes)
    draws = address(seed, "conditional-sample", device=x.device)
    if outcomes.enumerable:
        p = torch.softmax(-state_energies(joint, x, outcomes).double(), 1)
        return outcomes.states(x.device)[torch.multinomial(p, n, replacement=True, generator=draws).T]
    many = x.repeat(n, *[1] * (x.ndim - 1))
    if isinstance(outcomes, Continuous):
        y = _continuous(energy, many, outcomes, draws)
    else:
        y = _gibbs(joint, many, outcomes.num, draws)
    return y.unflatten(0, (n, len(x)))


def _gibbs(energy: JointEnergyFn, x: Tensor, num: int, draws: Generator) -> Float[Tensor, "b k"]:
    """Each unit in turn by p(y_k = 1 | the others, x) = sigmoid(E at 0 - E at 1)."""
    y = torch.randint(0, 2, (len(x), num), generator=draws, device=x.device).to(x.dtype)
    both = x.repeat(2, *[1] * (x.ndim - 1))
    for k in torch.arange(num).repeat(SWEEPS).tolist():
        pair = y.repeat(2, 1)
        pair[: len(y), k], pair[len(y) :, k] = 0, 1
        low, high = energy(both, pair).chunk(2)
        uniform = torch.rand(len(y), generator=draws, dtype=low.dtype, device=x.device)
        y[:, k] = (uniform < torch.sigmoid(low - high)).to(y.dtype)
    return y


def _continuous(energy: AnyConditional, x: Tensor, outcomes: Continuous, draws: Generator) -> Float[Tensor, "b k"]:
    """Chains of u in the Gaussian law's standardised coordinates, as y."""
    joint, _ = _parts(energy, outcomes)
    law, starts = gaussian_of(energy, x, outcomes), []
    for some, mean in zip(x.split(MOST_PAIRS // CANDIDATES), law.mean.split(MOST_PAIRS // CANDIDATES), strict=True):
        u = SPREAD * normal_like(mean.expand(CANDIDATES, *mean.shape), draws)
        y = mean + u @ law.scale.T
        e = joint(some.repeat(CANDIDATES, *[1] * (x.ndim - 1)), y.flatten(0, 1)).view(CANDIDATES, len(some))
        log_w = u.square().sum(-1) / (2 * SPREAD**2) - e  # of exp(-E) to the candidates' law
        chosen = torch.multinomial(torch.softmax(log_w.double(), 0).T, 1, generator=draws).squeeze(1)
        starts.append(u[chosen, torch.arange(len(some), device=x.device)])
    chains, seed = _GivenX(joint, x, law), draws.initial_seed() % 2**63
    return law.at(run_chain(MALA(step_size=STEP_SIZE), chains, torch.cat(starts), num_steps=STEPS, seed=seed))


def _parts(energy: AnyConditional, outcomes: Outcomes | None) -> tuple[JointEnergyFn, Outcomes]:
    """E(x, y), and what y may be."""
    if isinstance(energy, Conditional):
        return energy.joint, outcomes or energy.outcomes
    if outcomes is None:
        hint = "give Classes(num), Binary(num) or Continuous(num)"
        raise UserError("must be given for an energy that does not state its own", argument="outcomes", hint=hint)
    return energy, outcomes


@dataclass(frozen=True)
class _GivenX:
    """E(x, .) as an energy of y, x one row for all or one for each; of u = law^-1(y) where a law is given."""

    energy: JointEnergyFn
    x: Tensor
    law: LinearGaussian | None = None

    def __call__(self, y: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        x = self.x.expand(len(y), *self.x.shape[1:])
        return self.energy(x, y if self.law is None else self.law.at(y))


@dataclass(frozen=True)
class _BinaryGivenX(_GivenX):
    """The same of a binary vector."""

    num_states = 2
