"""The structured Gaussian of larger images against dense formulas in float64; each check names a mutant it rejects."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.linalg import sqrtm
from scipy.stats import multivariate_normal
from torch.autograd import gradcheck, gradgradcheck

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.density import stationary
from thalweg.energy.density.gaussian import SmoothedGaussian
from thalweg.energy.density.stationary import StationaryGaussian, anchor_of, cosines

SHAPE, D = (3, 4, 5), 60
EYE = torch.eye(D, dtype=torch.float64)


def rows(n=300, shape=SHAPE, seed=0):
    """Smooth images with a bright middle of random strength, which no stationary law has; float64."""
    gen = generator(seed, "stationary")
    channels, height, width = shape
    down, across = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    middle = torch.exp(-2 * (down.square() + across.square()))
    strength, colour = torch.randn(n, 1, 1, 1, generator=gen), torch.randn(n, channels, 1, 1, generator=gen)
    x = 0.5 + strength * middle + 0.2 * colour + 0.1 * torch.randn(n, *shape, generator=gen)
    return x.double().flatten(1)


@pytest.fixture(scope="module")
def law():
    """Fitted, a full block of 20 of the 60 frequencies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stationary, "LOW", 20)
        return StationaryGaussian(SHAPE).double().fit(rows(), t=0.01)


def covariance(law):
    v = law.coordinates(EYE)  # rows of V, since row i is V' e_i
    return v @ law.spectrum.diag() @ v.T


def test_the_cosines_are_those_of_scipy():
    x = np.random.default_rng(0).standard_normal((6, 7))
    assert np.allclose(cosines(6) @ x @ cosines(7).T, dctn(x, norm="ortho"), atol=1e-12)


def far(law, t, shift=0.0, factor=1.0, dim=D):
    """The largest distance of -log p from scipy's, with the terms of three mutants."""
    y = rows(8, seed=1) + 0.3
    u = law(y, torch.full((8,), t * factor, dtype=torch.float64))[0] + shift + 0.5 * (dim - D) * math.log(2 * math.pi)
    exact = multivariate_normal(law.mean.numpy(), (covariance(law) + t * EYE).numpy())
    return float(np.abs(u.numpy() + exact.logpdf(y.numpy())).max())


@pytest.mark.parametrize("t", [1e-4, 0.3, 50.0])
def test_log_p_is_scipys_constant_included(law, t):
    assert far(law, t) < 1e-8
    assert far(law, t, factor=1.01) > 1e-4  # noise that is not t
    assert far(law, t, dim=D - 1) > 0.5  # one dimension missing from the constant
    rotated = law.block.clone()
    law.block.copy_(rotated.T)  # a rotation the wrong way round changes the law, not only its form
    wrong = covariance(law)
    law.block.copy_(rotated)
    assert float((wrong - covariance(law)).abs().max()) > 1e-3


def test_the_basis_is_orthogonal_and_combination_inverts_coordinates(law):
    z = rows(5, seed=2)
    assert torch.allclose(law.combination(law.coordinates(z)), z, atol=1e-12)
    assert torch.allclose(law.coordinates(z).norm(dim=1), z.norm(dim=1), atol=1e-12)


def test_derivatives_denoiser_whitened_point_and_their_jacobians(law):
    y, t = rows(4, seed=3).requires_grad_(True), torch.tensor([0.01, 0.1, 1.0, 9.0]).double().requires_grad_(True)
    assert gradcheck(lambda y, t: law(y, t)[0], (y, t))
    assert gradgradcheck(lambda y, t: law(y[:1], t[:1])[0], (y, t))
    u, wiener, white = law(y, t)
    of_y, of_t = torch.autograd.grad(u.sum(), (y, t), retain_graph=True)
    found = law.derivatives(y.detach(), t.detach())
    for value, want in zip((*found[:4], found[5]), (u, of_y, of_t, wiener, white), strict=True):
        assert torch.allclose(value, want, atol=1e-10)
    step = 1e-6
    for k, fall in ((1, found[4]), (2, found[6])):
        moved = law(y, t + step)[k] - law(y, t - step)[k]
        assert torch.allclose(fall, moved / (2 * step), atol=1e-4, rtol=1e-6)
    g, h = rows(4, seed=4), rows(4, seed=5)
    c = covariance(law)
    gain = [c @ torch.linalg.inv(c + s * EYE) for s in t.detach()]
    roots = [torch.from_numpy(sqrtm((c + s * EYE).numpy())).real for s in t.detach()]
    want = torch.stack([a @ b for a, b in zip(gain, y - law.mean, strict=True)])
    assert torch.allclose(wiener, want, atol=1e-9)
    back = torch.stack([a @ b for a, b in zip(roots, white, strict=True)])
    assert torch.allclose(back, y - law.mean, atol=1e-9)
    (want,) = torch.autograd.grad((wiener * g + white * h).sum(), y)
    assert torch.allclose(law.pull_back(g, h, t), want, atol=1e-9)
    assert not torch.allclose(law.pull_back(h, g, t), want, atol=1e-3)  # the two exchanged
    scale = torch.stack([a.trace() / D for a in gain]).sqrt()
    assert torch.allclose(law.residual_scale(t), scale, atol=1e-10)


def test_draws_have_the_covariance(law):
    """Five standard errors of 20,000 draws; twice the noise, the mutant, is 2 sigma² off the diagonal."""
    n, t = 20_000, 0.5
    x, c = law.draw(n, t, generator(0, "draw")), covariance(law) + t * EYE
    error = ((c.square() + torch.outer(c.diagonal(), c.diagonal())) / n).sqrt()
    assert float(((x.T.cov() - c).abs() / error).max()) < 5
    assert float(((x.T.cov() - c - t * EYE).abs() / error).max()) > 20
    assert float(((x.mean(0) - law.mean).abs() / (c.diagonal() / n).sqrt()).max()) < 5


def test_held_out_rows_choose_the_full_block_where_images_have_a_middle_and_not_where_they_do_not(monkeypatch):
    monkeypatch.setattr(stationary, "LOW", 20)
    law = StationaryGaussian(SHAPE).double().fit(rows(), t=0.01)
    assert law.choice["share"] < 1
    nats = law.choice["nats_per_number"]
    assert nats[str(law.choice["share"])] == max(nats.values()) > nats["1.0"] + 0.01
    noise = torch.randn(60, D, generator=generator(0, "noise")).double()
    plain = StationaryGaussian(SHAPE).double().fit(noise, t=0.01)
    assert plain.choice["share"] == 1  # 48 rows say nothing sure of 190 covariances
    assert torch.equal(plain.block, torch.eye(20).double())


def test_the_figures_of_the_choice_are_those_of_the_rows_left_out(monkeypatch):
    """Against log p of every fifth row by the law of the others; rows of the fit, the mutant, score higher."""
    monkeypatch.setattr(stationary, "LOW", 20)
    x, t = rows(80), 0.01
    for share in (0.2, 1.0):
        monkeypatch.setattr(stationary, "SHARES", (share,))
        law = StationaryGaussian(SHAPE).double().fit(x, t=t)
        inside = torch.arange(len(x)) % 5 != 4
        again = StationaryGaussian(SHAPE).double()
        monkeypatch.setattr(again, "_chosen", lambda *_, share=share: share)
        again.fit(x[inside], t=t)

        def nats(some, again=again):
            return float(-again(some, torch.full((len(some),), t).double())[0].mean() / D)

        found = law.choice["nats_per_number"][str(share)]
        assert found == pytest.approx(nats(x[~inside]), abs=2e-3)  # the colours' axes are those of all rows
        if share < 1:  # with few numbers to fit, the two are near each other
            assert nats(x[inside]) > found + 0.01


def test_few_rows_constant_pixels_and_rows_that_do_not_vary():
    x = rows(6)
    x[:, :20] = 0.25
    law = StationaryGaussian(SHAPE).double().fit(x, t=0.01)
    assert law.choice is None
    assert float(law.spectrum.min()) > 0
    with pytest.raises(UserError, match="2 rows or more"):
        StationaryGaussian(SHAPE).fit(x[:1])
    with pytest.raises(UserError, match="must vary"):
        StationaryGaussian(SHAPE).fit(x[:1].expand(50, -1))


def test_the_anchor_of_64_by_64_colours_takes_less_than_20_megabytes_and_small_images_keep_a_full_covariance():
    large = anchor_of((3, 64, 64))
    assert sum(v.numel() * v.element_size() for v in large.state_dict().values()) < 20e6
    assert sum(v.numel() * v.element_size() for v in large.buffers()) < 20e6
    for shape in ((1, 28, 28), (3, 22, 22), (2000,)):
        assert isinstance(anchor_of(shape), SmoothedGaussian)
