"""S33, S34: R-hat, effective sample sizes and Monte Carlo errors, against ArviZ's own and against known values."""

import math

import numpy as np
import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.evaluate.diagnostics import Diagnosis, diagnose

KINDS = ("ar", "heavy", "stuck", "constant", "nan")


def ar1(rng, shape, rho: float) -> np.ndarray:
    """Stationary AR(1) of variance 1 along axis 1."""
    x = rng.normal(size=shape)
    for k in range(1, shape[1]):
        x[:, k] = rho * x[:, k - 1] + math.sqrt(1 - rho**2) * x[:, k]
    return x


def arrays(seed: int, draws: tuple[int, int]) -> np.ndarray:
    """(chains, draws, 5): one quantity of each kind, all of another number of chains and draws."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(2, 7)), int(rng.integers(*draws)))
    x = np.stack([ar1(rng, shape, rng.uniform(-0.8, 0.98)) for _ in KINDS], 2) * 10.0 ** rng.integers(-3, 4)
    x[..., 1] = rng.standard_t(1.5, size=shape)
    x[rng.integers(shape[0]), :, 2] = rng.normal()
    x[..., 3] = rng.normal()
    x[rng.integers(shape[0]), rng.integers(shape[1]), 4] = np.nan
    return x


@pytest.fixture
def arviz(monkeypatch):
    """ArviZ without numba, with which its error of the deviation fails on numpy 2.4."""
    diagnose(np.zeros((2, 4)))  # imports arviz without its daily notice
    import arviz

    monkeypatch.setattr(arviz.utils.Numba, "numba_flag", False)
    return arviz


def by_arviz(arviz, x: np.ndarray) -> np.ndarray:
    """(quantities, 5) by its functions of a data set, whose axes have names."""
    data = arviz.convert_to_dataset(x)
    with np.errstate(invalid="ignore"):
        found = [arviz.rhat(data), *(arviz.ess(data, method=m) for m in ("bulk", "tail"))]
        found += [arviz.mcse(data, method=m) for m in ("mean", "sd")]
    return np.stack([each["x"].values for each in found], 1)


def check_against_arviz(arviz, num: int, draws: tuple[int, int], change=lambda x: x) -> None:
    for seed in range(num):
        x = arrays(seed, draws)
        np.testing.assert_allclose(np.array(diagnose(change(x))), by_arviz(arviz, x), rtol=1e-8, err_msg=str(seed))


def test_s33_they_are_arviz_own(arviz):
    """100 arrays; a NaN makes all figures of its quantity NaN, and of no other."""
    check_against_arviz(arviz, 20, (4, 200))


@pytest.mark.slow
def test_s33_on_a_thousand_arrays(arviz):
    check_against_arviz(arviz, 200, (4, 2000))


def test_s33_chains_and_draws_swapped_are_rejected(arviz):
    with pytest.raises(AssertionError):
        check_against_arviz(arviz, 3, (10, 60), lambda x: x.swapaxes(0, 1))


@pytest.mark.parametrize("rho", [0.9, -0.5])
def test_s34_the_sample_size_of_an_ar1(rho):
    """n (1 - rho) / (1 + rho), 100 chains of 2,000."""
    x = ar1(np.random.default_rng(1), (100, 2000), rho)
    (found,) = diagnose(x)
    want = x.size * (1 - rho) / (1 + rho)
    assert found.ess_bulk == pytest.approx(want, rel=0.1)
    assert found.mcse_mean == pytest.approx(x.std() / math.sqrt(want), rel=0.1)
    assert found.r_hat == pytest.approx(1, abs=0.01)
    assert found.agrees
    assert diagnose(x.T)[0].ess_bulk != pytest.approx(want, rel=0.1), "chains and draws swapped"


def test_the_error_of_a_deviation():
    """s / sqrt(2 n) for n independent normal numbers."""
    (found,) = diagnose(3 * np.random.default_rng(2).normal(size=(4, 5000)))
    assert found.mcse_sd == pytest.approx(3 / math.sqrt(2 * 20_000), rel=0.1)
    assert found.mcse_mean == pytest.approx(3 / math.sqrt(20_000), rel=0.1)


def test_rows_follow_the_quantities():
    x = torch.randn(4, 100, 2, 3, generator=torch.Generator().manual_seed(0))
    x[..., 1, 2] += 5 * torch.arange(4.0)[:, None]  # chains that disagree
    found = diagnose(x)
    assert len(found) == 6
    assert [k for k, each in enumerate(found) if each.r_hat > 1.5] == [5]
    assert found[4] == diagnose(x[..., 1, 1])[0]
    x[0, 3, 0, 1] = float("inf")
    assert all(math.isnan(value) for value in diagnose(x)[1])
    assert diagnose(x)[2] == found[2]
    assert not Diagnosis(*[math.nan] * 5).agrees


@pytest.mark.parametrize("shape", [(4,), (1, 100), (4, 3), (4, 3, 7)])
def test_too_few_chains_or_draws_are_refused(shape):
    with pytest.raises(UserError) as caught:
        diagnose(np.zeros(shape))
    assert caught.value.argument == "draws"
