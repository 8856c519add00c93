"""The likelihood ratio: known in closed form in the plane, checked on rows not seen, the same from one seed."""

import math
from dataclasses import dataclass

import pytest
import torch

from thalweg.apps.rerank import ratio_training
from thalweg.apps.rerank.density_ratio import LEAST, fit_ratio
from thalweg.apps.rerank.ratio_energy import RatioEnergy
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.objective.base import Batch, Empty
from thalweg.objective.corruption import Damage
from thalweg.objective.ratio import LikelihoodRatio, balanced_loss

QUICK = RatioSettings(ensemble=2, steps=300, hidden=32, noise=0.0, smoothing=0.0)
SHIFT, SPREAD = 0.5, 1.6


def plane(n, stream):
    """Data N(0, I) and generated rows N(SHIFT, SPREAD²), which lack nothing and spread too far."""
    z = torch.randn(2, n, 2, generator=generator(0, stream))
    return z[0], SHIFT + SPREAD * z[1]


def true_energy(x):
    """-log p_data / p_gen of the plane, in closed form."""
    return x.square().sum(1) / 2 - ((x - SHIFT) / SPREAD).square().sum(1) / 2 - 2 * math.log(SPREAD)


@pytest.fixture(scope="module")
def learned():
    return fit_ratio(*plane(3000, "train"), QUICK)


def agrees(energy):
    """The criterion: correlation above 0.9 with the true ratio, and a slope within 25 % of one."""
    _, x = plane(2000, "test")
    u, v = energy(x), true_energy(x)
    correlation = float(torch.corrcoef(torch.stack([u, v]))[0, 1])
    return correlation > 0.9 and 0.75 < correlation * float(u.std() / v.std()) < 1.25


def test_the_ratio_is_the_true_one(learned):
    assert agrees(learned[0])


@dataclass(frozen=True, kw_only=True)
class Upside(LikelihoodRatio):
    """The tutorials' sign: the energy of data is driven up."""

    def loss(self, energy, state, batch, noise):
        return super().loss(energy, state, Batch(batch.x, 1 - batch.labels.long()), noise)


def test_the_criterion_rejects_mutants(monkeypatch):
    """Mutants: the wrong sign; training on rows that all are data's."""
    monkeypatch.setattr(ratio_training, "LikelihoodRatio", Upside)
    assert not agrees(fit_ratio(*plane(3000, "train"), QUICK)[0])
    monkeypatch.undo()
    real, _ = plane(3000, "train")
    assert not agrees(fit_ratio(real, real.flip(0), QUICK)[0])


def test_the_check_knows_chance(learned):
    """Told apart: the loss is near the least possible, the Jensen-Shannon bound, and the AUC above 0.5; not told
    apart: the loss is not below log 2, however well the networks know their own rows by heart.
    """
    check = learned[1]
    assert check.beats_chance
    x, y = plane(100_000, "bound")
    each = torch.nn.functional.softplus
    bound = float(each(true_energy(x)).mean() + each(-true_energy(y)).mean()) / 2
    assert bound - 4 * check.standard_error < check.loss < bound + 0.03
    assert check.auc > 0.6
    real, other = plane(400, "a")[0], plane(400, "b")[0]
    assert not fit_ratio(real, other, QUICK)[1].beats_chance


def test_early_stopping_returns_the_best_step():
    """With 40 rows a network of 32 learns them by heart: the step kept is not the last."""
    s = RatioSettings(ensemble=2, steps=2000, hidden=64, noise=0.0, smoothing=0.0, weight_decay=0.0, check_every=25)
    _, check = fit_ratio(*plane(40, "few"), s)
    assert max(check.steps) < 1000
    assert check.loss < math.log(2) + 0.1


def test_one_seed_one_energy():
    data = plane(200, "again")
    quick = RatioSettings(ensemble=2, steps=20, hidden=8)
    state = torch.random.get_rng_state()
    (a, first), (b, second) = (fit_ratio(*data, quick, seed=3) for _ in range(2))
    x = data[0]
    assert torch.equal(a(x), b(x))
    assert first == second
    assert not torch.equal(a(x), fit_ratio(*data, quick, seed=4)[0](x))
    assert torch.equal(state, torch.random.get_rng_state())


def test_images_of_any_size():
    for shape in ((1, 8, 8), (3, 12, 20)):
        g = generator(0, "images")
        real, made = torch.rand(30, *shape, generator=g), 0.5 * torch.rand(30, *shape, generator=g)
        energy, check = fit_ratio(real, made, RatioSettings(ensemble=2, steps=60, hidden=8, channels=(4, 8)))
        u, f = energy.energy_and_features(real)
        assert u.shape == (30,)
        assert f.shape == (30, 16)
        assert torch.equal(u, energy(real))
        assert check.beats_chance
    deep = RatioEnergy(shape=(1, 128, 128), settings=RatioSettings(ensemble=2))
    assert sum(p.numel() for p in deep.parameters()) < 2_000_000


def test_binarize_does_not_see_the_ground():
    """A grey ground of 0.1 moves what is shown by less than 0.05 in the mean, a stroke's place by more than 0.9."""
    x = torch.zeros(1, 1, 12, 12)
    x[..., 3:9] = 1
    settings = RatioSettings(ensemble=2, hidden=4, channels=(4,), view="binarize")
    energy = RatioEnergy(shape=(1, 12, 12), settings=settings)
    ground, moved = x.clamp(min=0.1), x.roll(4, 3)
    shown = energy.standardised(x)
    assert float((energy.standardised(ground) - shown).abs().mean()) < 0.05
    assert float((energy.standardised(moved) - shown).abs().max()) > 0.9
    plain = RatioEnergy(shape=(1, 12, 12), settings=RatioSettings(ensemble=2, hidden=4, channels=(4,)))
    assert torch.equal(plain.standardised(x), x)


def test_damaged_data_may_stand_on_the_generated_side():
    """Where the draws are data, all that can be told apart is damage: smooth digits' stand-ins below noise."""
    g = generator(0, "damaged")
    x = torch.nn.functional.interpolate(torch.rand(80, 1, 3, 3, generator=g), size=12, mode="bicubic").clamp(0, 1)
    quick = RatioSettings(ensemble=2, steps=80, batch=32, hidden=16, channels=(8, 8), damaged=0.9, noise=0.0)
    energy, _ = fit_ratio(x[:40], x[40:], quick)
    bad = Damage()(x, generator(1, "damaged"))
    assert float(energy(bad).mean()) > float(energy(x).mean())


def wrong(argument, function, *args, **kwargs):
    """The call raises a UserError of this argument; returns it."""
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    assert error.value.argument == argument
    return error.value


def test_bad_input_is_named():
    real, made = plane(50, "bad")
    assert f"{LEAST} rows or more" in wrong("generated", fit_ratio, real, made[:3]).message
    wrong("generated", fit_ratio, real, made[:, :1])
    wrong("labels", LikelihoodRatio().loss, RatioEnergy.example(), Empty(), Batch(made), (made,))


def test_both_sides_weigh_one_half():
    u = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.5])
    real = torch.tensor([True, False, False, False, False])
    each = torch.nn.functional.softplus
    want = (each(u[0]) + each(-u[1:]).mean()) / 2
    assert torch.allclose(balanced_loss(u, real), want)
    assert torch.allclose(balanced_loss(torch.zeros(5), real), torch.tensor(math.log(2)))


@pytest.mark.parametrize("view", ["binarize", "quantile_match"])
def test_a_view_of_images_is_refused_of_rows(view):
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    wrong("view", fit_ratio, rows, rows + 1, RatioSettings(ensemble=2, steps=1, view=view))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", ()),
        ("channels", 8),
        ("channels[0]", 4.5),
        ("rate", math.nan),
        ("rate", math.inf),
        ("rate", 0),
        ("ensemble", 2.5),
        ("ensemble", 1),
        ("steps", True),
        ("steps", 0),
        ("smoothing", 0.7),
        ("smoothing", 0.5),
        ("weight_decay", -1),
        ("stretch", math.inf),
        ("damaged", "a"),
        ("damaged", 1),
        ("view", "lines"),
        *(("noise", value) for value in (-1, "much", (0.3,), (3.0, 0.3), (0.0, 1.0), math.nan, None, True)),
    ],
)
def test_settings_that_cannot_be(name, value):
    given = {"channels": (value,)} if name == "channels[0]" else {name: value}
    assert wrong(name, RatioSettings, **given).value is not None


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("smoothing", {"smoothing": 0.5}),
        ("noise", {"noise": -1}),
        ("noise", {"noise": 0.0, "noise_max": 1.0}),
        ("noise_max", {"noise": 2.0, "noise_max": 1.0}),
    ],
)
def test_objectives_that_cannot_be(name, given):
    wrong(name, LikelihoodRatio, **given)


def test_every_network_has_rows_of_both_sides():
    """As many networks as rows of the smaller side is the most, and works; one more is refused before any training."""
    real, made = plane(40, "folds")
    assert "at most 20" in wrong("ensemble", fit_ratio, real, made[:20], RatioSettings(ensemble=21)).message
    _, check = fit_ratio(real, made[:20], RatioSettings(ensemble=20, steps=2, hidden=4))
    assert len(check.steps) == 20
    assert math.isfinite(check.loss + check.standard_error)


def test_images_too_small_are_refused_with_the_least_side():
    x = torch.rand(30, 1, 6, 6, generator=generator(0, "small"))
    assert "8 pixels or more a side" in wrong("real", fit_ratio, x, x).message


def columns(n=200):
    z = torch.randn(2, n, 2, generator=generator(0, "columns"))
    return z[0], 2 * z[1]


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -1.7e9])
def test_a_column_that_stands_still_changes_no_choice(value):
    """The trials part the halves as without it. Mutant: a deviation of 1e-6, whose rounding swallows all distances."""
    (real, made), still = columns(), torch.full((200, 1), value)
    quick = RatioSettings(ensemble=2, steps=50)
    plain = fit_ratio(real, made, quick)[1].trials
    energy, check = fit_ratio(torch.cat([real, still], 1), torch.cat([made, still], 1), quick)
    assert float(energy.deviation[2]) == 1
    assert float(energy.mean[2]) == torch.tensor(value)
    for with_, without in zip(check.trials, plain, strict=True):
        assert 0.5 < with_.split_gain / without.split_gain < 2


def test_a_column_that_stands_still_in_the_data_alone_does_not_fill_the_distance():
    """Mutant: its deviation in the data alone, 1e-6 at the least, for which halves lie 100,000 apart."""
    real, made = columns()
    real = torch.cat([real, torch.ones(200, 1)], 1)
    made = torch.cat([made, torch.rand(200, 1, generator=generator(0, "moving"))], 1)
    energy, check = fit_ratio(real, made, RatioSettings(ensemble=2, steps=50))
    assert 0.01 < float(energy.deviation[2]) < 1
    assert all(0 < trial.split_gain < 20 for trial in check.trials)
    assert check.beats_chance
