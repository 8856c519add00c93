"""Chains that begin at a mixture of the data: its law, what it is fitted to, and that the bundle's chains begin there.

Each test of a law has a mutant, which the same bound rejects.
"""

import pytest
import torch

import thalweg
from thalweg.bundle.chain_length import chain_length, chain_steps, start_law
from thalweg.bundle.from_config import parts_of
from thalweg.core.errors import DamagedFile
from thalweg.core.rng import generator
from thalweg.data.toy import eight_gaussians
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.objective.base import Batch, rows_for, start_law_of
from thalweg.objective.combined import Combined
from thalweg.objective.contrastive import starts
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.contrastive.starts import StartLaw
from thalweg.run.fit import Request, fit
from thalweg.run.in_memory import fit_in_memory
from thalweg.sampler.langevin import ULA

N = 20_000


def law():
    """Two components in two of three directions, float64."""
    return StartLaw(
        mean=torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64),
        basis=torch.eye(3, dtype=torch.float64)[:, :2],
        log_weights=torch.tensor([0.3, 0.7], dtype=torch.float64).log(),
        means=torch.tensor([[2.0, 0.0], [-1.0, 0.5]], dtype=torch.float64),
        factors=torch.tensor([[[0.5, 0.0], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.6]]], dtype=torch.float64),
        psi=torch.tensor(0.2, dtype=torch.float64),
    )


def moments(of):
    """(mean (3,), covariance (3, 3)) of the law in closed form."""
    w, means = of.log_weights.exp(), of.means @ of.basis.T + of.mean
    mean = w @ means
    within = of.basis @ (w[:, None, None] * (of.factors @ of.factors.mT)).sum(0) @ of.basis.T
    off = means - mean
    return mean, within + (w * off.T) @ off + of.psi * torch.eye(3, dtype=torch.float64)


def off_by(x, of):
    """The largest error of mean and covariance, in standard errors of normal moments."""
    mean, covariance = moments(of)
    spread = covariance.diagonal()
    of_mean = (x.mean(0) - mean).abs() / (spread / len(x)).sqrt()
    scale = ((torch.outer(spread, spread) + covariance.square()) / len(x)).sqrt()
    return max(of_mean.max(), ((torch.cov(x.T) - covariance).abs() / scale).max())


def test_draws_have_the_mean_and_covariance_of_the_law():
    x = starts.draw(law(), N, (3,), generator(0, "starts"))
    assert off_by(x, law()) < 5
    mutant = law()._replace(psi=law().psi.square())  # whose residual has the variance for its deviation
    assert off_by(starts.draw(mutant, N, (3,), generator(0, "starts")), law()) > 5


def clusters(n, share=0.2):
    """Rows of two clusters, 8 apart, the first a `share` of them, and which is which."""
    first = torch.rand(n, generator=generator(0, "cluster")) < share
    return torch.randn(n, 2, generator=generator(0, "rows")) + 4.0 * (2 * first - 1)[:, None], first


def test_rows_that_come_twice_are_no_clusters():
    x, _ = clusters(300)
    once = starts.fit(x, generator(0, "fit"))
    many = starts.fit(x.repeat(20, 1), generator(0, "fit"))
    assert len(once.log_weights) == len(many.log_weights) == 300 // starts.EACH
    for a, b in zip(once, many, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def share_of_first(objective, x):
    """The share of new chains in the first cluster, of 40 visits of 50 chains that are all restarted."""
    energy = MLPEnergy(shape=(2,), width=4, depth=1)
    state = objective.init(energy, x, generator(0, "init"))
    visits = [objective.draw(state, Batch(x[:50]), generator(0, "draw", k), 0.0)[2] for k in range(40)]
    return (torch.cat(visits).mean(1) > 0).double().mean()


def test_new_chains_are_in_each_cluster_as_often_as_the_data():
    x, first = clusters(3000)
    wanted = first.double().mean()
    bound = 5 * (wanted * (1 - wanted) / 2000).sqrt()
    given = {"num_steps": 1, "buffer_size": 64, "reinit": 1.0}
    assert (share_of_first(ContrastiveDivergence(initial="mixture", **given), x) - wanted).abs() < bound
    assert (share_of_first(ContrastiveDivergence(initial="normal", **given), x) - wanted).abs() > bound  # the mutant


@pytest.mark.parametrize("shape", [(1, 8, 8), (5,)])
def test_images_begin_within_the_range_of_pixels_and_rows_where_they_will(shape):
    x = torch.rand(200, *shape, generator=generator(0, "x"))
    objective = ContrastiveDivergence(initial="mixture", buffer_size=500)
    chains = objective.init(lambda y: y.flatten(1).sum(1), x, generator(0, "init")).x
    inside = bool(((chains >= 0) & (chains <= 1)).all())
    assert inside == (len(shape) == 3)


def test_objectives_of_parts_ask_for_the_rows_and_give_the_law():
    chains = ContrastiveDivergence(initial="mixture", buffer_size=64, num_steps=1)
    assert rows_for(ContrastiveDivergence()) == 1
    both, (x, _) = Combined(parts=(ContrastiveDivergence(buffer_size=64), chains)), clusters(200)
    assert rows_for(both) == rows_for(chains) == starts.ROWS
    state = both.init(MLPEnergy(shape=(2,), width=4, depth=1), x, generator(0, "init"))
    found = start_law_of(both, state, (2,))
    assert found is not None
    assert torch.equal(found.means.float(), state.parts[1].law.means)
    assert start_law_of(ContrastiveDivergence(), state.parts[0], (2,)) is None


class Descent:
    """What `chain_length` asks of a bundle: chains that descend E = |x|² / 2 from |x| = 8, by a factor 0.9 a step."""

    def chains(self, n, *, seed=0):
        return ULA(step_size=0.1, temperature=0.0), self.energy, torch.full((n, 1), 8.0, dtype=torch.float64)

    def energy(self, x):
        return 0.5 * x.square().sum(1)

    def decode(self, z):
        return z


@pytest.mark.parametrize(("level", "steps"), [(40.0, 5), (1.0, 15), (0.1, 25), (0.0, 1000)])
def test_chains_end_before_they_are_below_held_out_energies(level, steps):
    """E = 32 · 0.81^k; its last multiple of 5 above the level is known. One look later, the mutant, is below it."""
    assert chain_length(Descent(), torch.tensor([level, level])) == steps
    if level in (1.0, 0.1):
        assert 32 * 0.81**steps >= level > 32 * 0.81 ** (steps + 5)


SMALL = ["energy.width=8", "train.batch_size=16", "objective.buffer_size=32", "data.limit=2000", "train.precision=fp32"]


def off_the_data(x, rows):
    """The mean distance to the nearest row."""
    return torch.cdist(x, rows).amin(1).mean()


def test_a_bundle_starts_its_chains_there_and_so_when_loaded(tmp_path):
    request = Request(data="eight-gaussians", recipe="pcd", steps=2, overrides=[*SMALL, "objective.initial=mixture"])
    bundle = fit(request, tmp_path / "run", tensorboard=False)
    assert start_law(bundle) is bundle.mixture_prior is not None
    assert 5 <= chain_steps(bundle) <= 1000
    begun, rows = bundle.chains(500)[2], bundle.encode(eight_gaussians(500, generator(0, "rows")).float())
    assert off_the_data(begun, rows) < 0.5 * off_the_data(torch.randn(500, 2, generator=generator(0, "normal")), rows)
    again = thalweg.load(tmp_path / "run")
    assert torch.equal(again.chains(500)[2], begun)
    assert torch.equal(again.sample(5, num_steps=3), bundle.sample(5, num_steps=3))
    assert torch.equal(fit_in_memory(request).sample(5, num_steps=3), bundle.sample(5, num_steps=3))


@pytest.mark.parametrize("chains", [3, {"steps": 0}, {"steps": True}, {"steps": "20"}])
def test_a_length_that_is_none_is_a_damaged_file(tmp_path, chains):
    config = {
        "run": {"transform": {"type": "thalweg.data.transform:Identity"}, "energy": {}, "sampler": {"type": "x"}},
        "data": {"kind": "image", "shape": [1, 8, 8], "dtype": "float32"},
        "normalised": False,
        "chains": chains,
    }
    with pytest.raises(DamagedFile, match="chains gives no whole number of steps"):
        parts_of(config, tmp_path / "config.json", ULA(step_size=0.1))


def test_a_bundle_of_other_chains_starts_at_noise(tmp_path):
    bundle = fit(Request(data="two-moons", recipe="pcd", steps=2, overrides=SMALL), tmp_path / "run", tensorboard=False)
    assert bundle.mixture_prior is not None
    assert start_law(bundle) is None
    assert chain_steps(bundle) == 1000
