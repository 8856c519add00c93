"""The likelihood ratio: known in closed form in the plane, checked on rows not seen, the same from one seed."""

import math
from dataclasses import dataclass

import pytest
import torch

from thalweg.apps import ratio
from thalweg.apps.ratio import LEAST, RatioEnergy, RatioSettings, fit_ratio
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.objective.base import Batch, Empty
from thalweg.objective.damage import Damage
from thalweg.objective.ratio import LikelihoodRatio, balanced_loss

QUICK = RatioSettings(members=2, steps=300, hidden=32, noise=0.0, smoothing=0.0)
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
    monkeypatch.setattr(ratio, "LikelihoodRatio", Upside)
    assert not agrees(fit_ratio(*plane(3000, "train"), QUICK)[0])
    monkeypatch.undo()
    real, _ = plane(3000, "train")
    assert not agrees(fit_ratio(real, real.flip(0), QUICK)[0])


def test_the_check_knows_chance(learned):
    """Told apart: the loss is near the least possible, the Jensen-Shannon bound, and the AUC above 0.5; not told
    apart: the loss is not below log 2, however well the members know their own rows by heart.
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
    s = RatioSettings(members=2, steps=2000, hidden=64, noise=0.0, smoothing=0.0, weight_decay=0.0, check=25)
    _, check = fit_ratio(*plane(40, "few"), s)
    assert max(check.steps) < 1000
    assert check.loss < math.log(2) + 0.1


def test_one_seed_one_energy():
    data = plane(200, "again")
    quick = RatioSettings(members=2, steps=20, hidden=8)
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
        energy, check = fit_ratio(real, made, RatioSettings(members=2, steps=60, hidden=8, channels=(4, 8)))
        u, f = energy.both(real)
        assert u.shape == (30,)
        assert f.shape == (30, 16)
        assert torch.equal(u, energy(real))
        assert check.beats_chance
    deep = RatioEnergy(shape=(1, 128, 128), settings=RatioSettings(members=2))
    assert sum(p.numel() for p in deep.parameters()) < 2_000_000


def test_ink_does_not_see_the_ground():
    """A grey ground of 0.1 moves what is shown by less than 0.05 in the mean, a stroke's place by more than 0.9."""
    x = torch.zeros(1, 1, 12, 12)
    x[..., 3:9] = 1
    settings = RatioSettings(members=2, hidden=4, channels=(4,), view="ink")
    energy = RatioEnergy(shape=(1, 12, 12), settings=settings)
    ground, moved = x.clamp(min=0.1), x.roll(4, 3)
    shown = energy.standardised(x)
    assert float((energy.standardised(ground) - shown).abs().mean()) < 0.05
    assert float((energy.standardised(moved) - shown).abs().max()) > 0.9
    plain = RatioEnergy(shape=(1, 12, 12), settings=RatioSettings(members=2, hidden=4, channels=(4,)))
    assert torch.equal(plain.standardised(x), x)


def test_damaged_data_may_stand_on_the_generated_side():
    """Where the draws are data, all that can be told apart is damage: smooth digits' stand-ins below noise."""
    g = generator(0, "damaged")
    x = torch.nn.functional.interpolate(torch.rand(80, 1, 3, 3, generator=g), size=12, mode="bicubic").clamp(0, 1)
    quick = RatioSettings(members=2, steps=80, batch=32, hidden=16, channels=(8, 8), damaged=0.9, noise=0.0)
    energy, _ = fit_ratio(x[:40], x[40:], quick)
    bad = Damage()(x, generator(1, "damaged"))
    assert float(energy(bad).mean()) > float(energy(x).mean())


def test_bad_input_is_one_line():
    real, made = plane(50, "bad")
    with pytest.raises(UserError, match=rf"^generated: holds 3 rows, .* {LEAST} or more"):
        fit_ratio(real, made[:3])
    with pytest.raises(UserError, match=r"^real: rows of shape \(2,\), generated: of \(1,\); give one shape"):
        fit_ratio(real, made[:, :1])
    with pytest.raises(UserError, match=r"^members=1: want 2 or more"):
        RatioSettings(members=1)
    with pytest.raises(UserError, match=r"^steps=0: want 1 or more"):
        RatioSettings(steps=0)
    with pytest.raises(UserError, match=r"^damaged=1: want a share"):
        RatioSettings(damaged=1)
    with pytest.raises(UserError, match=r"^view='lines': want one of auto, pixels, tone, ink"):
        RatioSettings(view="lines")
    with pytest.raises(UserError, match=r"^smoothing=0\.5"):
        LikelihoodRatio(smoothing=0.5)
    with pytest.raises(UserError, match="labels"):
        LikelihoodRatio().loss(RatioEnergy.example(), Empty(), Batch(torch.zeros(2, 3)), (torch.zeros(2, 3),))


def test_both_sides_weigh_one_half():
    u = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.5])
    real = torch.tensor([True, False, False, False, False])
    each = torch.nn.functional.softplus
    want = (each(u[0]) + each(-u[1:]).mean()) / 2
    assert torch.allclose(balanced_loss(u, real), want)
    assert torch.allclose(balanced_loss(torch.zeros(5), real), torch.tensor(math.log(2)))


@pytest.mark.parametrize("view", ["ink", "tone"])
def test_a_view_of_images_is_refused_of_rows(view):
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=f"view='{view}': is a view of images"):
        fit_ratio(rows, rows + 1, RatioSettings(members=2, steps=1, view=view))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", ()),
        ("channels", 8),
        ("channels", (4.5,)),
        ("rate", math.nan),
        ("rate", 0),
        ("members", 2.5),
        ("steps", True),
        ("smoothing", 0.7),
        ("weight_decay", -1),
        ("stretch", math.inf),
        ("damaged", "a"),
    ],
)
def test_settings_that_cannot_be(name, value):
    with pytest.raises(UserError, match=rf"^{name}=.*: want "):
        RatioSettings(**{name: value})


def test_every_member_has_rows_of_both_sides():
    """As many members as rows of the smaller side is the most, and works; one more is refused before any training."""
    real, made = plane(40, "folds")
    with pytest.raises(UserError, match=r"^members=21: want at most 20, the rows of generated: each member is checked"):
        fit_ratio(real, made[:20], RatioSettings(members=21))
    _, check = fit_ratio(real, made[:20], RatioSettings(members=20, steps=2, hidden=4))
    assert len(check.steps) == 20
    assert math.isfinite(check.loss + check.standard_error)


def test_images_too_small_are_refused_with_the_least_side():
    x = torch.rand(30, 1, 6, 6, generator=generator(0, "small"))
    with pytest.raises(UserError, match=r"^real: images of 6 x 6 pixels, want 8 or more a side with channels="):
        fit_ratio(x, x)


def columns(n=200):
    z = torch.randn(2, n, 2, generator=generator(0, "columns"))
    return z[0], 2 * z[1]


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -1.7e9])
def test_a_column_that_stands_still_changes_no_choice(value):
    """The trials part the halves as without it. Mutant: a deviation of 1e-6, whose rounding swallows all distances."""
    (real, made), still = columns(), torch.full((200, 1), value)
    quick = RatioSettings(members=2, steps=50)
    plain = fit_ratio(real, made, quick)[1].trials
    energy, check = fit_ratio(torch.cat([real, still], 1), torch.cat([made, still], 1), quick)
    assert float(energy.deviation[2]) == 1
    assert float(energy.mean[2]) == torch.tensor(value)
    for with_, without in zip(check.trials, plain, strict=True):
        assert 0.5 < with_.parted / without.parted < 2


def test_a_column_that_stands_still_in_the_data_alone_does_not_fill_the_distance():
    """Mutant: its deviation in the data alone, 1e-6 at the least, for which halves lie 100,000 apart."""
    real, made = columns()
    real = torch.cat([real, torch.ones(200, 1)], 1)
    made = torch.cat([made, torch.rand(200, 1, generator=generator(0, "moving"))], 1)
    energy, check = fit_ratio(real, made, RatioSettings(members=2, steps=50))
    assert 0.01 < float(energy.deviation[2]) < 1
    assert all(0 < trial.parted < 20 for trial in check.trials)
    assert check.beats_chance
