"""Draws of x | seen where the law is known: Gaussian data in closed form, a mixture by exact chains; with mutants."""

import pytest
import torch

from thalweg.apps.inpaint import posterior
from thalweg.apps.inpaint.operators import Blur, Downsample, Pixels, matrix
from thalweg.apps.inpaint.posterior import GaussianPrior, Observation, RowNoise, Schedule, sample_posterior
from thalweg.core.rng import generator
from thalweg.energy import linear_observation
from thalweg.energy.density.gaussian import SmoothedGaussian
from thalweg.energy.density.stationary import StationaryGaussian
from thalweg.energy.linear_observation import LinearObservation, PosteriorEnergy
from thalweg.energy.wrappers import AtNoise
from thalweg.sampler.chain import run_chain
from thalweg.sampler.langevin import MALA

from .stats import assert_law, normal_cdf

N = 4000
SHAPE = (1, 4, 4)
SIGMA = 0.02
CHECKED = Pixels(torch.arange(16).reshape(SHAPE) % 3 == 0)


class GaussianData(torch.nn.Module):
    """U(y, t) of smooth Gaussian images, exact; its anchor is itself."""

    shape, t_min, t_max, noisy = SHAPE, SIGMA**2, 100.0, True

    def __init__(self):
        super().__init__()
        place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
        covariance = torch.exp(-torch.cdist(place, place).square() / 8) + 0.05 * torch.eye(16)
        self.anchor = SmoothedGaussian(16)
        spectrum, basis = torch.linalg.eigh(covariance)
        self.anchor.spectrum.copy_(spectrum)
        self.anchor.basis.copy_(basis)
        self.anchor.mean.copy_(torch.linspace(-1, 1, 16))
        self.covariance = covariance

    def forward(self, y, t):
        return self.anchor(y.flatten(1), t)[0]


class StationaryData(GaussianData):
    """The same of a law whose covariance is known by its products alone, with a condition number of 400."""

    def __init__(self):
        super().__init__()
        self.anchor = StationaryGaussian(SHAPE)
        self.anchor.spectrum.copy_(2 / (1 + torch.arange(16.0)) ** 1.5 + 0.005)
        self.anchor.mean.copy_(torch.linspace(-1, 1, 16))
        v = self.anchor.coordinates(torch.eye(16))
        self.covariance = (v * self.anchor.spectrum) @ v.T


def case(operator, noise, data=GaussianData):
    """One image's observation, for N rows: (energy, observations, conditional mean, conditional covariance)."""
    energy = data()
    a = matrix(operator, SHAPE)
    gen = generator(5, "case")
    truth = energy.anchor.draw(1, 0.0, gen)
    seen = truth @ a.T + noise * torch.randn(1, len(a), generator=gen)
    d = LinearObservation.from_matrix(a, noise)
    m, c = energy.anchor.mean.double(), energy.covariance.double()
    a = a.double()
    inner = a @ c @ a.T + max(noise, 1e-4) ** 2 * torch.eye(len(a))
    gain = torch.linalg.solve(inner, a @ c).T
    mean = m + (seen.double()[0] - a @ m) @ gain.T
    observations = [Observation(torch.arange(N), d, d.project(seen).expand(N, -1))]
    return energy, observations, mean, c - gain @ a @ c


def uniformise(mean, covariance):
    """Draws to uniform numbers, along the directions that are open given what was seen."""
    spread, basis = torch.linalg.eigh(covariance)
    kept = spread > 0.03  # a direction known to 0.17 or less is compared by its mean below, not its law
    return lambda x: normal_cdf((x.double() - mean) @ basis[:, kept] / (spread[kept] + SIGMA**2 / 2).sqrt())


class Together(RowNoise):
    """The noise of all rows from one generator, which is quicker."""

    def __init__(self, seed):
        self.generator = generator(seed, "rows")

    def normal(self):
        return torch.randn(N, 16, generator=self.generator)

    def uniform(self):
        return torch.rand(N, generator=self.generator)


def drawn(energy, observations, how, seed=0):
    return sample_posterior(energy, observations, Together(seed), how)


PLAIN = Schedule(num_steps=40, resampling=1, sigma_start=3.0, corrected=0)
HOWS = {"plain": PLAIN, "resampling": Schedule(num_steps=60, resampling=2, sigma_start=3.0, corrected=0)}
HOWS["corrected"] = Schedule(num_steps=40, resampling=1, sigma_start=3.0, corrected=3, num_corrections=3)
CASES = {
    "pixels": (CHECKED, 0.0),
    "noisy pixels": (CHECKED, 0.3),
    "blur": (Blur(width=0.7), 0.3),
    "downsample": (Downsample(factor=2), 0.0),
}


@pytest.mark.parametrize(("case_name", "how"), [*((c, "plain") for c in CASES), ("blur", "resampling")])
def test_the_conditional_law_of_gaussian_data(case_name, how):
    energy, observations, mean, covariance = case(*CASES[case_name])
    x = drawn(energy, observations, HOWS[how])
    assert_law(x, uniformise(mean, covariance), power=0.05)


@pytest.mark.parametrize("case_name", ["pixels", "blur"])
def test_corrections_keep_the_law(case_name):
    energy, observations, mean, covariance = case(*CASES[case_name])
    x = drawn(energy, observations, HOWS["corrected"])
    assert_law(x, uniformise(mean, covariance), power=0.05)


@pytest.mark.parametrize("case_name", ["pixels", "noisy pixels", "blur"])
def test_the_conditional_law_where_the_covariance_is_products(case_name, monkeypatch):
    """The mutant ends conjugate gradients after one round."""
    energy, observations, mean, covariance = case(*CASES[case_name], StationaryData)
    x = drawn(energy, observations, PLAIN)
    assert_law(x, uniformise(mean, covariance), power=0.05)
    if case_name == "noisy pixels":
        monkeypatch.setattr(linear_observation, "ITERATIONS", 1)
        with pytest.raises(AssertionError, match="exceed"):
            assert_law(drawn(energy, observations, PLAIN), uniformise(mean, covariance), power=0.05)


@pytest.mark.parametrize("case_name", CASES)
def test_products_condition_as_the_matrix_does(case_name):
    energy, observations, _, _ = case(*CASES[case_name], StationaryData)
    linear = observations[0].linear
    residual = torch.randn(5, len(linear.noise), generator=generator(0, "residual"))
    for t in (None, 0.3, 1e-3):
        products = GaussianPrior.of(energy).covariance(t)
        want = linear.update(products(torch.eye(16)), residual)
        assert torch.allclose(linear.update(products, residual), want, atol=2e-3 * float(want.abs().max()))


def replaced(guess, covariance, observations, z=None):
    """The mutant that only sets the observed pixels, as replacement does: no news reaches the missing ones."""
    told = guess.clone()
    for observation in observations:
        told[observation.rows] = observation.linear.set_projections(guess[observation.rows], observation.projections)
    return told


def unshrunk(guess, covariance, observations, z=None):
    """The mutant that takes noisy observations for exact ones."""
    exact = [s._replace(linear=s.linear._replace(noise=0 * s.linear.noise)) for s in observations]
    return GOOD(guess, covariance, exact, z)


GOOD = posterior._conditioned


@pytest.mark.parametrize(
    ("mutant", "case_name"), [(replaced, "pixels"), (unshrunk, "noisy pixels"), (unshrunk, "blur")]
)
def test_mutants_are_rejected(mutant, case_name, monkeypatch):
    energy, observations, mean, covariance = case(*CASES[case_name])
    monkeypatch.setattr(posterior, "_conditioned", mutant)
    x = drawn(energy, observations, PLAIN)
    with pytest.raises(AssertionError, match="exceed"):
        assert_law(x, uniformise(mean, covariance), power=0.05)


# A skewed mixture in the plane, u = 0.8 x_0 + 0.6 x_1 observed with noise: PosteriorEnergy's chain at t, then x | y.
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.8], [0.6, -0.4]], dtype=torch.float64)
VARIANCES = torch.tensor([0.2, 0.5], dtype=torch.float64)
ALONG = torch.tensor([[0.8, 0.6]], dtype=torch.float64)
ACROSS = torch.tensor([[-0.6, 0.8]], dtype=torch.float64)


def mixture(y, t):
    v = VARIANCES + t[:, None]
    square = (y[:, None] - MEANS).square().sum(-1)
    return -torch.logsumexp(WEIGHTS.log() - square / (2 * v) - v.log(), 1)


def clean(y, t, gen):
    """A draw of x | y, exact."""
    v = VARIANCES + t
    square = (y[:, None] - MEANS).square().sum(-1)
    k = torch.multinomial(torch.softmax(WEIGHTS.log() - square / (2 * v) - v.log(), 1), 1, generator=gen)[:, 0]
    share = (VARIANCES / v)[k, None]
    return MEANS[k] + share * (y - MEANS[k]) + (share * t).sqrt() * torch.randn(y.shape, generator=gen).double()


def cdf_across(x, value, noise):
    """The distribution function of the unseen coordinate given the seen one, exact."""
    along, across = (MEANS @ ALONG.T)[:, 0], (MEANS @ ACROSS.T)[:, 0]
    v = VARIANCES + noise**2
    weights = torch.softmax(WEIGHTS.log() - (value - along).square() / (2 * v) - 0.5 * v.log(), 0)
    z = (x.double() @ ACROSS.T - across) / VARIANCES.sqrt()
    return (weights * torch.special.ndtr(z)).sum(1, keepdim=True)


def chain(noise, t, value=-0.1, wrong=None):
    """x from PosteriorEnergy's chain at level t, the fixed direction at `value`; and y's projection on it."""
    gen = generator(1, "mixture")
    d = LinearObservation.from_matrix(ALONG, noise)
    read = torch.full((N, 1), value, dtype=torch.float64) * (d.basis.T @ ALONG.T)
    held = posterior.set_noisy_projections(
        torch.randn(N, 2, generator=gen, dtype=torch.float64), t, d, read, torch.zeros(N, 2).double()
    )
    given = PosteriorEnergy(AtNoise(mixture, t), t, d, read, held)
    given.precision = given.precision if wrong is None else wrong
    y = given.restore(run_chain(MALA(step_size=0.15), given, held, num_steps=200, seed=2))
    return clean(y, t, gen)


@pytest.mark.parametrize(("noise", "t"), [(0.0, 0.3), (0.7, 0.3)], ids=["held", "likelihood"])
def test_chains_given_what_was_seen_have_the_conditional_law(noise, t):
    """A direction that is held is one seen with noise sqrt(t); a coarser one is exact as it is."""
    x = chain(noise, t)
    assert_law(x, lambda x: cdf_across(x, -0.1, max(noise, t**0.5)), power=0.05)


def test_the_likelihood_of_the_whole_noise_is_rejected():
    """The mutant N(seen; <v, y>, s²) counts the noise of y twice."""
    t, noise, value = 0.3, 0.6, -0.1
    along, total = (MEANS @ ALONG.T)[:, 0], VARIANCES + noise**2
    weights = torch.softmax(WEIGHTS.log() - (value - along).square() / (2 * total) - 0.5 * total.log(), 0)
    centre, v = along + VARIANCES / total * (value - along), VARIANCES * noise**2 / total

    def uniform(x):
        return (weights * torch.special.ndtr((x @ ALONG.T - centre) / v.sqrt())).sum(1, keepdim=True)

    assert_law(chain(noise, t), uniform, power=0.05)
    with pytest.raises(AssertionError, match="exceed"):
        assert_law(chain(noise, t, wrong=torch.tensor([1 / noise**2], dtype=torch.float64)), uniform, power=0.05)
