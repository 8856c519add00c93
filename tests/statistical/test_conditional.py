"""p(y | x) = exp(-E(x, y)) / Z(x) against sums over all y, laws that are known, and mutants of the losses."""

import itertools
import math

import pytest
import torch
from torch import nn

import thalweg.energy.outcomes as outcomes_module
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.networks.classifier import ClassifierEnergy
from thalweg.energy.networks.conditional import LabelEnergy, RegressionEnergy
from thalweg.energy.outcomes import Binary, Classes, Continuous, LinearGaussian, state_energies
from thalweg.normaliser import conditional
from thalweg.normaliser.conditional import (
    conditional_log_prob,
    conditional_log_prob_interval,
    conditional_probs,
    sample_conditional,
)
from thalweg.objective.base import Batch
from thalweg.objective.conditional import ConditionalLikelihood
from thalweg.run.in_memory import optimise
from thalweg.training.settings import TrainSettings


def settings(**changed):
    values = {"batch_size": 1000, "learning_rate": 0.05, "weight_decay": 0.0, "ema": 0.95, "warmup": 10}
    return TrainSettings.model_validate({**values, "precision": "fp32", **changed})


def label_energy(num=4, covariates=2, depth=1, coupling=1.0):
    """Labels that come together, and one that keeps away."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        energy = LabelEnergy(shape=(covariates + num,), num_targets=num, width=6, depth=depth)
        with torch.no_grad():
            energy.linear.weight.copy_(torch.randn(num, covariates))
            energy.coupling.copy_(coupling * 1.5 * torch.randn(num, num))
    return energy


def normal(*shape, name="x", dtype=torch.float32):
    return torch.randn(*shape, generator=generator(0, name), dtype=dtype)


def brute_force(energy, x, num):
    """log p of all 2^num labels at one x, by a sum over a loop of Python."""
    states = [torch.tensor([y], dtype=x.dtype) for y in itertools.product((0.0, 1.0), repeat=num)]
    u = torch.stack([energy(x, y).squeeze() for y in states])
    return -u - torch.logsumexp(-u, 0), torch.cat(states)


@pytest.mark.parametrize("most_pairs", [1 << 16, 40])
def test_the_sum_over_all_labels_and_its_gradient_are_those_of_brute_force(monkeypatch, most_pairs):
    """In one block, and in several whose forward pass is repeated."""
    monkeypatch.setattr(outcomes_module, "MOST_PAIRS", most_pairs)
    energy, x = label_energy().double(), normal(5, 2, dtype=torch.float64)
    y = (normal(5, 4, name="y") > 0).double()
    found = conditional_log_prob(energy, x, y)
    mine = torch.autograd.grad(found.sum(), [*energy.parameters()])
    want = []
    for row, label in zip(x.split(1), y, strict=True):
        log_p, states = brute_force(energy.joint, row, 4)
        assert math.isclose(float(log_p.detach().exp().sum()), 1, rel_tol=1e-12)
        want.append(log_p[int((states == label).all(1).nonzero())])
    torch.testing.assert_close(found, torch.stack(want), rtol=0, atol=1e-10)
    theirs = torch.autograd.grad(torch.stack(want).sum(), [*energy.parameters()])
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    probs, mode = conditional_probs(energy, x)
    log_p, states = brute_force(energy.joint, x[:1], 4)
    torch.testing.assert_close(probs[0], log_p.exp() @ states, rtol=0, atol=1e-10)
    assert torch.equal(mode[0], states[log_p.argmax()])
    torch.testing.assert_close(energy(torch.cat([x, y], 1)), -found)  # a row's energy is its surprise


def test_of_a_class_it_is_the_log_softmax_of_the_scores():
    energy = ClassifierEnergy.example()
    x, y = normal(6, 3), torch.arange(6) % 3
    energy.inverse_temperature.fill_(2.0)
    want = torch.log_softmax(2 * energy.trunk.outputs(x), 1)
    torch.testing.assert_close(conditional_log_prob(energy, x, y, Classes(3)), want[torch.arange(6), y])
    torch.testing.assert_close(conditional_probs(energy, x, Classes(3)).probs, want.exp())
    loss, _, _ = ConditionalLikelihood().loss(energy, (), Batch(x, y), ())
    torch.testing.assert_close(loss, -want[torch.arange(6), y].mean())
    own = LabelEnergy(shape=(4,), num_classes=3, width=4)  # the class in the last column
    rows = torch.cat([x, y[:, None].float()], 1)
    torch.testing.assert_close(own(rows), -conditional_log_prob(own, x, y))


def test_draws_follow_the_probabilities():
    """The counts of 16 states over 40,000 draws: chi-square of 15 degrees, below 57 but for 1 in 1,000,000."""
    energy, x = label_energy(), normal(1, 2)
    log_p, states = brute_force(energy.joint, x, 4)
    p = log_p.exp().detach()

    def chi_square(draws, p):
        counts = (draws[:, None] == states).all(2).sum(0)
        return float(((counts - len(draws) * p) ** 2 / (len(draws) * p)).sum())

    assert chi_square(sample_conditional(energy, x, 40_000).squeeze(1), p) < 57
    gibbs = conditional._gibbs(energy.joint, x.expand(4000, -1), 4, generator(0, "gibbs"))
    assert chi_square(gibbs, p) < 57
    assert chi_square(gibbs, torch.softmax(1.25 * log_p.detach(), 0)) > 57  # of a mutant at another temperature


def test_the_interval_of_annealed_labels_holds_the_sum():
    """Six labels, which are counted here and annealed as if they could not be; and one row's constant of 2^30."""
    energy, x = label_energy(num=6), normal(2, 2)
    y = (normal(2, 6, name="y") > 0).float()
    found, exact = conditional_log_prob_interval(energy, x, y, num_chains=128), conditional_log_prob(energy, x, y)
    assert bool(((found.low <= exact) & (exact <= found.high)).all())
    assert float((found.high - found.low).max()) < 0.2  # 1.05 times the energy would be outside
    other = conditional_log_prob(lambda x, y: 1.05 * energy.joint(x, y), x, y, Binary(6))
    assert not bool(((found.low <= other) & (other <= found.high)).all())
    fields = normal(1, 30)
    many = conditional_log_prob_interval(lambda x, y: -(x * y).sum(1), fields, torch.ones(1, 30), Binary(30))
    assert float(many.low) <= float(torch.nn.functional.logsigmoid(fields).sum()) <= float(many.high)


def kl_of_labels(truth, found, x):
    """KL(truth || found) of p(y | x) in nats, the mean over x."""
    with torch.no_grad():
        a, b = (torch.log_softmax(-state_energies(e.joint, x, e.outcomes), 1) for e in (truth, found))
    return float((a.exp() * (a - b)).sum(1).mean())


@pytest.fixture(scope="module")
def labelled_rows():
    """(the law, 20,000 rows of it): 18 numbers are learned, so the best estimate has KL 18 / 40,000 = 0.00045."""
    truth = label_energy(depth=0).eval()
    x = normal(20_000, 2)
    return truth, torch.cat([x, sample_conditional(truth, x, 1)[0]], 1)


def learned(rows, objective=None):
    energy = LabelEnergy(shape=(6,), num_targets=4, depth=0)
    return optimise(energy, objective or ConditionalLikelihood(), rows, settings(steps=120, learning_rate=0.1)).eval()


def test_the_likelihood_recovers_a_law_of_interacting_labels(labelled_rows):
    truth, rows = labelled_rows
    assert kl_of_labels(truth, learned(rows), rows[:2000, :2]) < 0.002
    shuffled = torch.cat([rows[:, :2], rows[torch.randperm(len(rows), generator=generator(0, "mix"))][:, 2:]], 1)
    assert kl_of_labels(truth, learned(shuffled), rows[:2000, :2]) > 0.1


def test_so_does_the_pseudo_likelihood_where_labels_cannot_be_counted(labelled_rows, monkeypatch):
    truth, rows = labelled_rows
    with monkeypatch.context() as patch:
        patch.setattr(outcomes_module, "MOST_BINARY", 3)
        assert not truth.outcomes.enumerable
        found = learned(rows)
    assert kl_of_labels(truth, found, rows[:2000, :2]) < 0.003
    independent = learned(rows)
    independent.coupling.data.zero_()  # a mutant without interactions
    assert kl_of_labels(truth, independent, rows[:2000, :2]) > 0.1


class Quadratic(nn.Module):
    """E(x, y) = (y - b - A x)' P (y - b - A x) / 2, P = L L', of rows of one covariate and two targets."""

    outcomes = Continuous(2)

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 2)
        self.root = nn.Parameter(torch.eye(2))

    def split(self, rows):
        return rows[:, :1], rows[:, 1:]

    def gaussian(self, x):
        """A law to draw candidates from, which is another one."""
        return LinearGaussian(torch.zeros(len(x), 2), torch.tensor([[1.2, 0.0], [-0.8, 0.6]]))

    def joint(self, x, y):
        return 0.5 * ((y - self.line(x)) @ self.root).square().sum(1)

    def forward(self, rows):
        return self.joint(*self.split(rows))


def test_ranked_candidates_recover_a_linear_gaussian_law():
    """The mean and covariance of p(y | x), which are known, with candidates from another Gaussian law."""
    x, eps = normal(20_000, 1), normal(20_000, 2, name="eps")
    root = torch.tensor([[0.7, 0.0], [0.4, 0.5]])
    y = 0.3 + x * torch.tensor([0.8, -0.5]) + eps @ root.T
    torch.manual_seed(0)
    found = optimise(Quadratic(), ConditionalLikelihood(num_candidates=16), torch.cat([x, y], 1), settings(steps=250))
    covariance = torch.linalg.inv(found.root @ found.root.T)
    assert float((covariance - root @ root.T).abs().max()) < 0.03
    assert float((found.line.weight.squeeze(1) - torch.tensor([0.8, -0.5])).abs().max()) < 0.03
    assert float((found.line.bias - 0.3).abs().max()) < 0.03


def bimodal(x, y):
    """log p(y | x) of y = ±(1 + x) + 0.3 eps, (B,) nats: a regression's mean is 0, where there is no mass."""
    modes = torch.stack([y - 1 - x, y + 1 + x]) / 0.3
    return torch.logsumexp(-0.5 * modes**2, 0) - math.log(2 * 0.3 * math.sqrt(2 * math.pi))


GRID = torch.linspace(-8, 8, 1601)


def log_density(energy, x):
    """log p on the grid of y for one covariate x, normalised by a sum."""
    with torch.no_grad():
        log_p = -energy.joint(torch.full((len(GRID), 1), x), GRID[:, None]).double()
    return log_p - torch.logsumexp(log_p, 0) - math.log(float(GRID[1] - GRID[0]))


def kl_of_densities(energy):
    total, places = 0.0, (-0.5, 0.0, 0.5, 1.0)
    for x in places:
        want = bimodal(x, GRID.double())
        total += float((want.exp() * (want - log_density(energy, x))).sum() * (GRID[1] - GRID[0]))
    return total / len(places)


@pytest.fixture(scope="module")
def bimodal_energies():
    """(a regression, and the energy that was trained on the same rows)."""
    x = 3 * torch.rand(10_000, 1, generator=generator(0, "bimodal")) - 1
    sign = torch.randint(0, 2, (10_000, 1), generator=generator(0, "sign")) * 2.0 - 1
    rows = torch.cat([x, sign * (1 + x) + 0.3 * normal(10_000, 1)], 1)
    torch.manual_seed(0)
    energy = RegressionEnergy(shape=(2,), width=24, depth=2).fit(rows)
    regression = RegressionEnergy(shape=(2,), width=1, depth=1).fit(rows)
    nn.init.zeros_(regression.network[-1].weight)
    objective = ConditionalLikelihood(num_candidates=16)
    how = settings(steps=400, batch_size=200, learning_rate=0.01)
    return regression.eval(), optimise(energy, objective, rows, how).eval()


def test_ranked_candidates_recover_two_modes_where_a_regression_has_none(bimodal_energies):
    regression, energy = bimodal_energies
    assert kl_of_densities(energy) < 0.05
    assert kl_of_densities(regression) > 0.5


def test_the_interval_holds_the_integral_over_a_grid(bimodal_energies):
    _, energy = bimodal_energies
    x = torch.linspace(-0.5, 1.5, 12)[:, None]
    y = 1 + x
    found = conditional_log_prob_interval(energy, x, y)
    with torch.no_grad():
        at = torch.stack(
            [log_density(energy, float(v))[int((GRID - w).abs().argmin())] for v, w in zip(x, y, strict=True)]
        )
        moved = torch.stack([energy.joint(x, GRID[(GRID - y).abs().argmin(1)][:, None]), energy.joint(x, y)]).double()
    want = at + moved[0] - moved[1]  # from the grid's nearest y to y itself
    assert bool(((found.low <= want) & (want <= found.high)).all())
    assert float((found.high - found.low).max()) < 0.25
    assert float((found.estimate - want).abs().max()) < 0.1


def test_draws_of_a_continuous_y_have_the_law_s_moments():
    """Of a regression, whose mean and covariance are known: 5 standard errors of 4,000 draws."""
    x = normal(500, 2)
    y = (
        5
        + x @ torch.tensor([[2.0, 0.0], [1.0, -1.0]])
        + normal(500, 2, name="eps") @ torch.tensor([[1.0, 0.6], [0.0, 0.5]])
    )
    energy = RegressionEnergy(shape=(4,), num_targets=2, width=1, depth=1).fit(torch.cat([x, y], 1))
    nn.init.zeros_(energy.network[-1].weight)
    at = x[:2]
    law, draws = energy.gaussian(at), sample_conditional(energy, at, 4000)
    covariance = law.scale @ law.scale.T
    for mean, some in zip(law.mean, draws.unbind(1), strict=True):
        assert bool(((some.mean(0) - mean).abs() < 5 * (covariance.diagonal() / 4000).sqrt()).all())
        assert (
            float(((some - mean).T @ (some - mean) / 4000 - covariance).abs().max()) < 5 * float(covariance.max()) / 45
        )
    assert float((draws.mean((0, 1)) - 0).abs().min()) > 1  # a mutant that gives standardised numbers
    log_p = conditional_log_prob_interval(energy, at, law.mean)
    want = -math.log(2 * math.pi) - float(law.log_det())
    assert bool(((log_p.low < want) & (want < log_p.high)).all())


@pytest.mark.parametrize(
    ("outcomes", "y", "argument"),
    [
        (Binary(4), torch.full((3, 4), 0.5), "y"),
        (Binary(4), torch.full((3, 4), torch.nan), "y"),
        (Binary(4), torch.zeros(3, 5), "y"),
        (Classes(3), torch.tensor([0, 1, 3]), "y"),
        (Classes(3), torch.tensor([0, 1, -1]), "y"),
        (Classes(3), torch.zeros(3, 1), "y"),
        (Continuous(2), torch.zeros(3, 2), "outcomes"),
        (Continuous(2), torch.full((3, 2), torch.nan), "y"),
        (Binary(13), torch.zeros(3, 13), "num"),
        (None, torch.zeros(3, 2), "outcomes"),
    ],
)
def test_what_is_no_outcome_is_refused(outcomes, y, argument):
    with pytest.raises(UserError) as caught:
        conditional_log_prob(lambda x, y: x[:, 0], torch.zeros(3, 2), y, outcomes)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    "make", [lambda: Binary(0), lambda: Classes(1), lambda: LabelEnergy(shape=(3,), num_targets=3)]
)
def test_outcomes_that_leave_nothing_are_refused(make):
    with pytest.raises(UserError):
        make()
    with pytest.raises(UserError):
        conditional_probs(RegressionEnergy.example(), torch.zeros(1, 1))
