"""Images of more than 1,536 numbers, from training to completions, with no matrix of D x D numbers."""

import json
import math

import pytest
import torch

import thalweg
from thalweg.apps.inpaint import inpaint as inpainting
from thalweg.apps.inpaint.operators import Blur, Downsample, matrix
from thalweg.apps.inpaint.posterior import SpectralCovariance
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.density.stationary import StationaryGaussian
from thalweg.energy.linear_observation import LinearObservation, SeparableBasis
from thalweg.evaluate.likelihood import gaussian_prior
from thalweg.evaluate.samples import gaussian_noise
from thalweg.run.fit import Request, fit

SHAPE = (3, 24, 24)
TINY = ["energy.widths=[8,8]", "energy.num_blocks=[1,1]", "energy.embed=8", "train.batch_size=4", "sampler.num_steps=3"]


def gradients_and_blobs(n, shape=SHAPE, seed=0):
    """Colour gradients with a disc, uint8."""
    gen = generator(seed, "images")
    _, height, width = shape
    down, across = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    a, b, disc = torch.rand(3, n, 3, 1, 1, generator=gen)
    place, size = torch.rand(2, n, 1, 1, 1, generator=gen), 0.1 + 0.2 * torch.rand(n, 1, 1, 1, generator=gen)
    inside = (down - place[0]).square() + (across - place[1]).square() < size.square()
    x = torch.where(inside, disc, a * down + b * across * (1 - down))
    return ((x + 0.02 * torch.randn(x.shape, generator=gen)).clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    import numpy as np

    folder = tmp_path_factory.mktemp("large")
    np.save(folder / "x.npy", gradients_and_blobs(80).numpy())
    request = Request(data=str(folder / "x.npy"), recipe="dual-image-64", steps=2, overrides=TINY)
    fit(request, folder / "run", tensorboard=False)
    return folder / "run"


@pytest.fixture
def no_large_matrix(monkeypatch):
    """Fails where an eigendecomposition or a Cholesky factor of more than 1,100 rows is asked for."""
    for name in ("eigh", "cholesky", "svd"):
        real = getattr(torch.linalg, name)

        def bounded(a, *args, real=real, **kwargs):
            assert min(a.shape[-2:]) <= 1100, "a matrix of D x D numbers"
            return real(a, *args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, bounded)


def test_a_run_keeps_what_its_anchor_chose_and_loads(run):
    config = json.loads((run / "config.json").read_text("utf-8"))
    nats = config["anchor"]["nats_per_number"]
    assert config["anchor"]["share"] == float(max(nats, key=nats.get))
    assert config["anchor"]["covariance"] in (run / "card.md").read_text("utf-8")
    assert (run / "model.safetensors").stat().st_size < 6e6  # the full covariance has 12 MB
    bundle = thalweg.load(run)
    assert isinstance(bundle.model.anchor, StationaryGaussian)
    x = gradients_and_blobs(4, seed=1)
    assert bool(bundle.log_prob(x).isfinite().all())
    assert bundle.sample(2, seed=0).shape == (2, *SHAPE)


def test_completions_keep_what_is_observed(run, no_large_matrix):
    bundle = thalweg.load(run)
    x = gradients_and_blobs(2, seed=2).float() / 255
    observed = torch.ones(2, *SHAPE, dtype=torch.bool)
    observed[:, :, :, 14:] = False
    found = bundle.inpaint(x, observed, n=2, seed=0)
    assert found.shape == (2, 2, *SHAPE)
    assert torch.equal(torch.where(observed, found, 0), torch.where(observed, x, 0).expand(2, -1, -1, -1, -1))
    missing = ~observed.expand_as(found)
    error = (found - x)[missing].square().mean()
    assert float(error) < 0.5 * float((x.mean() - x)[missing[0]].square().mean())  # gradients go on; noise does not


@pytest.mark.parametrize("operator", [Blur(width=1.0), Downsample(factor=4)], ids=["blur", "downsample"])
def test_an_operator_on_large_images_needs_no_matrix(operator, run, no_large_matrix, monkeypatch):
    """What was seen is there again; a mutant that spreads over the wrong axis is far from it."""
    monkeypatch.setattr(inpainting, "LARGEST_MATRIX", 1000)
    monkeypatch.setattr(inpainting, "matrix", lambda *_: pytest.fail("a matrix was made"))
    x = gradients_and_blobs(2, seed=2).float() / 255
    found = inpainting.restore(thalweg.load(run), operator(x), operator, n=2).images
    error = torch.stack([operator(images) - operator(x) for images in found]).square().mean().sqrt()
    assert float(error) < 0.03


@pytest.mark.parametrize("noise", [0.003, 0.05, 0.3])
@pytest.mark.parametrize("operator", [Blur(width=1.5), Downsample(factor=2)], ids=["blur", "downsample"])
def test_a_separable_observation_is_that_of_the_matrix(operator, noise, caplog):
    """Directions turn where singular values are equal, and the posterior mean does not: products against a factor.

    Also with noise that differs from direction to direction, where one preconditioner does not reach the tolerance.
    """
    shape = (2, 12, 8)
    x = torch.randn(5, *shape, generator=generator(0, "images"))
    fitted = StationaryGaussian(shape).fit(gradients_and_blobs(60, (3, 12, 8)).float().flatten(1)[:, :192] / 255)
    whole = LinearObservation.from_matrix(2 * matrix(operator, shape), noise)
    parts = LinearObservation.from_separable(SeparableBasis.of(*operator.factors(12, 8), 2, 2.0), 192, noise)
    assert len(parts.noise) == len(whole.noise)
    assert torch.allclose(parts.noise.sort().values, whole.noise.sort().values, rtol=1e-3)
    seen = parts.project(operator(2 * x))
    assert torch.allclose(seen, parts.projections_of(x.flatten(1)), atol=2e-2)
    v = torch.randn(len(parts.noise), generator=generator(1, "values"))
    assert torch.allclose(parts.projections_of(parts.spread(v)), v, atol=1e-4)
    covariance = SpectralCovariance(fitted, fitted.spectrum)
    dense = covariance(torch.eye(192))
    wanted = whole.update(dense, whole.project(operator(2 * x)))
    assert torch.allclose(parts.update(covariance, seen), wanted, atol=1e-2 * float(wanted.abs().max()))
    assert not caplog.records
    some = torch.arange(len(v)) % 2 == 0
    assert torch.allclose(parts.select(some).projections_of(x.flatten(1)), parts.projections_of(x.flatten(1))[:, some])


def test_an_operator_that_would_be_a_large_matrix_is_refused(run, monkeypatch):
    monkeypatch.setattr(inpainting, "LARGEST_MATRIX", 1000)
    x = gradients_and_blobs(1, seed=2).float().flatten(1) / 255
    with pytest.raises(UserError, match="must be a mask, or a separable operator") as raised:
        inpainting.restore(thalweg.load(run), x, lambda images: images.flatten(1).cumsum(1))
    assert raised.value.argument == "operator"
    assert f"has {math.prod(SHAPE):,} numbers ({' x '.join(map(str, SHAPE))})" in raised.value.message
    assert raised.value.message.endswith("for at most 1,000")


def test_baselines_make_no_large_matrix(no_large_matrix):
    x = gradients_and_blobs(60).float() / 255
    z = gaussian_noise(x, 3)
    assert z.shape == (3, *SHAPE)
    log_prob = gaussian_prior(x, 1e-3)
    assert float(log_prob(x).mean()) > float(log_prob(x.flip(1) * 0.5 + torch.rand(x.shape) * 0.5).mean()) + 100
