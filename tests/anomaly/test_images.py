"""The image detector: what it takes and refuses, what it says, and that what it says holds."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.image.image_energy import ImageEnergy
from thalweg.apps.anomaly.surprise import LogSurvival
from thalweg.bundle.files import load
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.evaluate.corruptions import shuffled_patches, uniform_noise
from thalweg.run.fit import Request, fit

SMALL = ("energy.widths=[96,48]", "energy.embed=16", "train.batch_size=64", "train.precision=fp32", "train.warmup=10")
HELD_OUT = 6


@pytest.fixture(scope="module")
def digits():
    """(digits but 6 to train on, others but 6, sixes), 8 x 8, float32 in [0, 1]."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8)
    normal = x[y != HELD_OUT]
    return normal[:1200], normal[1200:], x[y == HELD_OUT]


@pytest.fixture(scope="module")
def found(digits):
    return ImageEnergy(steps=300, overrides=SMALL).fit(digits[0], seed=0)


def test_strange_images_have_high_energy(found, digits):
    """AUROC above chance by 5 of its deviations; the mutant is the sign: minus the energy fails."""
    _, normal, odd = digits
    for name, strange in {
        "sixes": odd,
        "noise": uniform_noise(torch.from_numpy(normal)[:, None]).numpy(),
        "patches": shuffled_patches(torch.from_numpy(normal)[:, None], patch=4).numpy(),
    }.items():
        u = np.concatenate([found.energy(normal), found.energy(strange)])
        truth = np.repeat([0, 1], [len(normal), len(strange)])
        sigma = np.sqrt((len(u) + 1) / (12 * len(normal) * len(strange)))  # of the rank sum, were there no difference
        assert roc_auc_score(truth, u) > 0.5 + 5 * sigma, name
        assert not roc_auc_score(truth, -u) > 0.5 + 5 * sigma, name


def test_unseen_rows_have_the_law_of_new_ones(found, digits):
    """Kolmogorov-Smirnov below its 0.1 % value against new normal rows; the mutant, sixes, is above it."""

    def distance(a, b):
        grid = np.sort(np.concatenate([a, b]))
        return max(abs(np.searchsorted(np.sort(a), grid) / len(a) - np.searchsorted(np.sort(b), grid) / len(b)))

    _, normal, odd = digits
    assert found.calibration_energies_.shape == (60,)
    for rows, alike in ((normal, True), (odd, False)):
        limit = 1.95 * np.sqrt(1 / len(found.calibration_energies_) + 1 / len(rows))
        assert (distance(found.calibration_energies_, found.energy(rows)) < limit) == alike


def test_training_rows_have_no_kernel_of_their_own(found, digits):
    """Left out of the bank a training row is about as far from the others as a new one; the mutant keeps its own."""
    train, normal, _ = digits
    assert found.train_outlier_scores_.shape == (1200,)
    assert np.isfinite(found.train_outlier_scores_).all()
    own = found.parts(train)["kernel"]
    new = found.parts(normal)["kernel"]
    left = found._kernel.leave_one_out(torch.from_numpy(train)[:50, None]).numpy()
    assert (left > own[:50]).all()
    assert abs(np.median(left) - np.median(new)) < abs(np.median(own) - np.median(new))


def test_attribution_is_a_map_that_points_at_the_fault(found, digits):
    """A blot in a corner that the data leave empty: the slope there is larger than in the empty corners across."""
    _, normal, _ = digits
    x = normal[:40].copy()
    x[:, :2, :2] = 1
    maps = found.attribution(x)
    assert maps.shape == (40, 8, 8)
    assert (maps >= 0).all()
    assert np.isfinite(maps).all()
    assert np.array_equal(found.attribution(x[3:5]).shape, (2, 8, 8))


def test_repair_lowers_the_energy_and_mends_what_is_broken(found, digits):
    """Blotted digits come back nearer to what they were; the mutant, the image itself, does not."""
    _, normal, _ = digits
    x = normal[:60].copy()
    x[:, :, :2] = 1
    mended = found.repair(x)
    assert mended.shape == x.shape
    assert mended.dtype == np.float32
    assert mended.min() >= 0
    assert mended.max() <= 1
    assert (found.energy(mended) <= found.energy(x) + 1e-4).all()

    def far(a):
        return np.square(a - normal[:60]).sum((1, 2))

    assert np.mean(far(mended) < far(x)) > 0.8


def test_kinds_of_input_agree(found, digits):
    """(N, H, W) and (N, C, H, W), arrays and tensors, floats and uint8; a row's energy does not depend on others."""
    x = digits[1][:20]
    u = found.energy(x)
    assert u.shape == (20,)
    assert u.dtype == np.float64
    for same in (x[:, None], torch.from_numpy(x), x.astype(np.float64)):
        np.testing.assert_allclose(found.energy(same), u, rtol=1e-5)
    np.testing.assert_allclose(found.energy(x[7:9]), u[7:9], rtol=1e-4, atol=1e-4)
    pixels = np.round(255 * x).astype(np.uint8)
    np.testing.assert_allclose(found.energy(pixels), found.energy(pixels.astype(np.float32) / 255), rtol=1e-5)
    assert found.repair(x[:, None]).shape == (20, 1, 8, 8)
    with pytest.raises(UserError, match="one row or more"):
        found.energy(x[:0])


def test_one_seed_one_detector(digits):
    one, again = (ImageEnergy(steps=10, overrides=SMALL).fit(digits[0][:300], seed=0) for _ in range(2))
    assert np.array_equal(again.energy(digits[1]), one.energy(digits[1]))
    assert np.array_equal(again.calibration_energies_, one.calibration_energies_)


def test_the_state_is_arrays_and_gives_the_same_detector(found, digits, tmp_path):
    np.savez(tmp_path / "state.npz", **found.state())
    with np.load(tmp_path / "state.npz") as file:  # allow_pickle is off
        twin = ImageEnergy.from_state(dict(file))
    x = digits[2][:30]
    assert np.array_equal(twin.energy(x), found.energy(x))
    assert np.array_equal(twin.repair(x), found.repair(x))
    assert np.array_equal(twin.calibration_energies_, found.calibration_energies_)
    assert np.array_equal(twin.train_outlier_scores_, found.train_outlier_scores_)


def test_from_a_bundle(tmp_path):
    """A run of the recipe by hand is the same detector as `fit`'s own, and another recipe's is refused."""
    steps, overrides = 20, [*SMALL, "data.limit=300"]
    request = Request(data="digits", recipe="contrast", steps=steps, overrides=overrides)
    bundle = fit(request, tmp_path / "run", tensorboard=False)
    found = ImageEnergy.from_bundle(load(tmp_path / "run"))
    x = torch.rand(5, 1, 8, 8, generator=generator(0, "x"))
    assert np.array_equal(found.parts(x)["contrast"].astype(np.float32), bundle.energy(x).numpy())
    few = ["data.limit=100", "train.batch_size=16"]
    other = fit(Request(data="digits", recipe="pcd-conv", steps=2, overrides=few), tmp_path / "b", tensorboard=False)
    with pytest.raises(UserError, match="--recipe contrast"):
        ImageEnergy.from_bundle(other)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((50, 64), np.float32), r"x: must be images .*\(50, 64\)"),
        (np.zeros((10, 8, 8), np.float32), "x: must be 40 images or more"),
        (np.full((50, 8, 8), 255.0), r"divide by 255\?"),
        (np.full((50, 8, 8), np.nan), "must be finite"),
        (np.array([["a"]]), "x: "),
        (np.zeros((50, 0, 8), np.float32), "must be images"),
    ],
)
def test_what_is_no_image_is_refused(x, message):
    with pytest.raises(UserError, match=message) as caught:
        ImageEnergy(steps=2).fit(x)
    assert "\n" not in str(caught.value)


def test_another_size_and_a_detector_that_knows_nothing(found):
    with pytest.raises(UserError, match="8"):
        found.energy(np.zeros((2, 9, 9), np.float32))
    with pytest.raises(UserError, match="must be fitted"):
        ImageEnergy().energy(np.zeros((2, 8, 8)))


def test_images_all_alike_are_refused_in_words():
    with pytest.raises((UserError, ValueError), match="must be images that differ"):
        ImageEnergy(steps=2, overrides=SMALL).fit(np.zeros((60, 8, 8), np.float32))


def test_colour_and_odd_sides(tmp_path):
    x = torch.rand(80, 3, 8, 11, generator=generator(0, "colour")).numpy()
    found = ImageEnergy(steps=3, overrides=SMALL).fit(x)
    assert found.attribution(x[:2]).shape == (2, 8, 11)
    assert found.repair(x[:2]).shape == (2, 3, 8, 11)


def test_training_is_nobody_elses_business(tmp_path, monkeypatch):
    """In one process of a distributed job, whose others are not there, `fit` joins nothing; it draws and writes
    nothing that would be thrown away.
    """
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("thalweg.run.preview.draw", lambda *args: pytest.fail("a preview was drawn"))
    monkeypatch.setattr("tempfile.mkdtemp", lambda *args: pytest.fail("a folder was made"))
    monkeypatch.chdir(tmp_path)
    x = torch.rand(80, 8, 8, generator=generator(0, "job")).numpy()
    found = EnergyDetector(kind="image", options={"steps": 3, "overrides": SMALL}).fit(x)
    assert np.isfinite(found.score_samples(x[:3])).all()
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_number_of_channels_are_refused_before_the_training():
    """An axis that is no channels, as in (N, H, W, C), is told at once."""
    with pytest.raises(UserError, match="1 or 3 channels") as caught:
        ImageEnergy(steps=3, overrides=SMALL).fit(np.zeros((60, 8, 8, 3), np.float32))
    assert caught.value.argument == "x"


def test_a_tail_is_minus_the_log_of_survival():
    """On exponential energies v(u) = u; the mutant that forgets the logarithm (v = 1 - S) is off by more."""
    n = 20_000
    e = -torch.rand(n, generator=generator(0, "tail"), dtype=torch.float64).log()
    tail = LogSurvival.of(e)
    u = torch.tensor([0.5, 1.0, 2.0, 3.0, 6.0, 12.0])
    survival = (-u).exp()
    sigma = (((1 - survival) / (n * survival)).sqrt() + 0.02).clamp(max=0.1)  # of log S, and the chords' error
    sigma[-2:] = 12 / np.sqrt(0.02 * n)  # the tail's mean excess has 2 % of the rows
    assert bool(((tail(u) - u).abs() < 4 * sigma).all())
    assert not bool(((1 - survival - u).abs() < 4 * sigma).all())
    grid = torch.linspace(-1, 20, 2001)
    assert bool((tail(grid).diff() > 0).all())
    with pytest.raises(ValueError, match="distinct"):
        LogSurvival.of(torch.zeros(10))
