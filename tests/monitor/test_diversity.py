"""Figures of samples and the check: planted faults are found and named, the data pass, bad input is refused."""

import math

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data import catalog
from thalweg.data.catalog import as_float
from thalweg.monitor import Diversity
from thalweg.monitor.comparison import vendi
from thalweg.monitor.diversity import switch_rate
from thalweg.monitor.figure import FIGURES


def normal(n, d=3, seed=0, stream="rows"):
    return torch.randn(n, d, generator=generator(seed, stream))


@pytest.fixture(scope="module")
def digits():
    """(train, held out for the check, fresh digits and their labels), 4,000, 600 and 400."""
    data = catalog.load("mnist")
    x = as_float(torch.cat([data.held_out, data.train]))
    labels = torch.cat([data.held_out_labels, data.train_labels])
    return x[1000:], x[:600], x[600:1000], labels[600:1000]


@pytest.fixture(scope="module")
def of_digits(digits):
    return Diversity(digits[1], digits[0])


def jittered(image, n, seed=0):
    g = generator(seed, "jitter")
    moved = [torch.roll(image, tuple(s), (-2, -1)) for s in torch.randint(-1, 2, (n, 2), generator=g).tolist()]
    return (torch.stack(moved) + 0.02 * torch.randn(n, *image.shape, generator=g)).clamp(0, 1)


def planted(name, digits, n=200):
    train, _, fresh, labels = digits
    few = torch.cat([fresh[labels == 1], fresh[labels == 7]])
    return {
        "two classes": few.repeat(4, 1, 1, 1)[:n] if n > len(few) else few[:n],
        "copies": train[:n],
        "half copies": torch.cat([train[: n // 2], fresh[: n - n // 2]]),
        "one image": jittered(fresh[0], n),
        "noise": torch.rand(n, 1, 28, 28, generator=generator(0, "noise")),
        "constant": fresh[:1].expand(n, -1, -1, -1),
    }[name]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("two classes", "variety", "lie in 2 of 10 classes"),
        ("copies", "memorisation", "100 % lie nearer to a training row than 99 % of unseen rows"),
        ("half copies", "memorisation", "training row"),
        ("one image", "variety", "100 % nearly repeat another sample"),
        ("noise", "noise", "they lie in 0 % of the neighbourhoods"),
        ("constant", "variety", "nearly repeat"),
    ],
)
def test_planted_faults_of_digits_are_found_and_named(name, kind, words, digits, of_digits):
    x = planted(name, digits)
    if name == "two classes":  # 80 digits, none twice
        x = x[:80]
    report = of_digits.check(x)
    assert report.alarm
    assert report.p_value <= 0.003
    assert report.kind == kind
    assert words in report.sentence
    assert all(math.isfinite(value) for value in report.figures.values())


def test_fresh_digits_pass(digits, of_digits):
    report = of_digits.check(digits[2][:200])
    assert not report.alarm
    assert report.kind is None
    for name, (mean, deviation) in report.reference.items():
        assert abs(report.figures[name] - mean) < 4 * deviation + 0.02, name


def test_figures_of_digits_say_what_is_wrong(digits, of_digits):
    usual = of_digits.reference(128)
    assert set(usual) == set(FIGURES) - {"lineages"}
    copies, same = (
        of_digits.figures(planted("copies", digits, 128)),
        of_digits.figures(planted("one image", digits, 128)),
    )
    assert copies["nearest_train"] < 0.05
    assert copies["coverage"] > usual["coverage"][0] - 4 * usual["coverage"][1]
    assert same["vendi"] < 0.4
    assert same["duplicates"] == 1
    assert same["histogram"] < 0.3
    assert of_digits.figures(planted("noise", digits, 128))["density"] < 0.1
    assert of_digits.classes(digits[2][:5]).tolist() == digits[3][:5].tolist()


def test_the_vendi_score_counts_rows_that_differ():
    blocks = torch.block_diag(*[torch.ones(5, 5, dtype=torch.float64)] * 3)
    assert vendi(blocks) == pytest.approx(3)
    assert vendi(torch.eye(7)) == pytest.approx(7)
    assert vendi(torch.ones(7, 7)) == pytest.approx(1)


def test_the_reference_is_what_fresh_rows_score():
    """Mean and deviation beside those of 60 fresh sets; within a factor of 2, as there is one held-out set."""
    checked = Diversity(normal(800), normal(1000, stream="train"))
    found = [checked.figures(normal(100, seed=i, stream="fresh")) for i in range(60)]
    for name, (mean, deviation) in checked.reference(100).items():
        fresh = torch.tensor([one[name] for one in found], dtype=torch.float64)
        assert abs(fresh.mean().item() - mean) < 2 * deviation, name
        assert 0.5 < (deviation + 1e-3) / (fresh.std().item() + 1e-3) < 2, name


def test_lineages_and_switches():
    checked = Diversity(normal(60))
    figures = checked.figures(normal(40, seed=1), lineages=torch.arange(40) // 4)
    assert figures["lineages"] == 0.25
    assert "nearest_train" not in figures
    assert switch_rate(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 5, 5])) == 0.5


@pytest.mark.parametrize("d", [1, 2, 12])
@pytest.mark.parametrize("rows", [20, 60, 300])
def test_small_sets_and_few_columns(rows, d):
    checked = Diversity(normal(rows, d), normal(400, d, stream="train"))
    for x in (torch.zeros(150, d), normal(150, d, seed=1) + 6, 1e30 * normal(150, d, seed=2)):
        report = checked.check(x)
        assert report.alarm
        assert all(math.isfinite(value) for value in report.figures.values())
    assert not checked.check(normal(150, d, seed=3)).alarm


def test_repeated_rows_of_a_table_are_no_fault():
    def table(n, seed):
        g = generator(seed, "table")
        return torch.stack([torch.randint(3, (n,), generator=g), torch.randint(2, (n,), generator=g)], 1).float()

    checked = Diversity(table(300, 0), table(1000, 1))
    assert not checked.check(table(200, 2)).alarm
    assert checked.check(table(1, 3).expand(200, -1)).alarm
    assert Diversity(torch.ones(50, 3)).check(torch.ones(50, 3)).p_value == 1
    assert Diversity(torch.ones(50, 3)).check(torch.zeros(50, 3)).alarm


def test_images_in_colour_and_labels():
    def images(n, seed, centre=0.5):
        return (centre + 0.1 * torch.randn(n, 3, 8, 8, generator=generator(seed, "colour"))).clamp(0, 1)

    dark, light = images(100, 0, 0.3), images(100, 1, 0.7)
    checked = Diversity(torch.cat([dark, light]).mul(255).to(torch.uint8), labels=torch.arange(200) // 100 + 5)
    assert checked.classes(torch.cat([images(20, 2, 0.3), images(20, 3, 0.7)])).tolist() == [0] * 20 + [1] * 20
    assert not checked.check(torch.cat([images(50, 4, 0.3), images(50, 5, 0.7)])).alarm
    assert "100 % lie in 1 of 2 classes (data: 5" in checked.check(images(100, 6, 0.3)).sentence


def test_a_check_repeats_itself():
    x = normal(80, seed=1)
    first, second = (Diversity(normal(100), normal(200, stream="train")).check(x) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda d: d.check(torch.zeros(20, 2)), "samples"),
        (lambda d: d.figures(torch.full((20, 3), math.nan)), "samples"),
        (lambda d: d.check(torch.zeros(9, 3)), "samples"),
        (lambda d: d.check(torch.zeros(20)), "samples"),
        (lambda d: d.check("rows"), "samples"),
        (lambda d: d.figures(torch.ones(20, 3), lineages=torch.zeros(3)), "lineages"),
        (lambda d: d.reference(3), "n"),
        (lambda _: Diversity(normal(19)), "held_out"),
        (lambda _: Diversity(1e30 * normal(50)), "held_out"),
        (lambda _: Diversity(normal(50), normal(50, 4)), "train"),
        (lambda _: Diversity(normal(50), labels=torch.zeros(4)), "labels"),
        (lambda _: Diversity(normal(50), labels="abc"), "labels"),
        (lambda _: Diversity(normal(50), features=3), "features"),
        (lambda _: Diversity(normal(50), features=torch.nn.Linear(5, 2)), "features"),
        (lambda _: Diversity(normal(50), features=lambda x: x[:3]), "features"),
        (lambda _: Diversity(normal(50), features=lambda x: x / 0), "features"),
        (lambda _: switch_rate(torch.zeros(3), torch.zeros(4)), "after"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, argument):
    with pytest.raises(UserError) as caught:
        call(Diversity(normal(60)))
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)
