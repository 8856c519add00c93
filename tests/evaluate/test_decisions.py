"""Detection figures against sklearn, and corruptions that are what they say."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from thalweg.core.errors import ThalwegError
from thalweg.core.rng import generator
from thalweg.evaluate.corruptions import IMAGE_CORRUPTIONS, blurred, corrupted, shuffled_patches
from thalweg.evaluate.detection import auroc, detection_table, fpr95

X = torch.rand(40, 1, 28, 28, generator=generator(0, "pictures"))


def energy(x):
    return 0.5 * x.flatten(1).square().sum(1)


def test_auroc_and_fpr95_equal_sklearns():
    g = generator(0, "scores")
    inside, outside = torch.randn(2000, generator=g).double(), torch.randn(1500, generator=g).double() + 1
    accept = torch.cat([torch.ones(2000), torch.zeros(1500)])  # positives: accepted as data
    score = -torch.cat([inside, outside])
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(accept, score))
    fpr, tpr, _ = roc_curve(accept, score, drop_intermediate=False)
    assert fpr95(inside, outside) == pytest.approx(fpr[tpr >= 0.95][0], abs=2e-3)


def test_ties_score_chance():
    assert auroc(torch.zeros(30), torch.zeros(20)) == 0.5


def test_detection_rows_point_the_right_way_and_carry_their_baselines():
    g = generator(0, "detection")
    train, inside, same = (torch.randn(300, 4, generator=g) for _ in range(3))
    rows = {r["out"]: r for r in detection_table(energy, inside, {"far": same + 4, "same": same}, train)}
    assert rows["far"]["auroc"] > 0.99
    assert rows["far"]["nn_auroc"] > 0.99
    # The AUROC of two equal laws has a standard deviation of sqrt((n + m + 1) / (12 n m)).
    assert abs(rows["same"]["auroc"] - 0.5) < 4 * math.sqrt(601 / (12 * 300 * 300))
    # Mutant: an energy with its sign turned must not pass for a detector.
    assert detection_table(lambda x: -energy(x), inside, {"far": same + 4}, train)[0]["auroc"] < 0.01


def test_energies_that_are_not_finite_are_an_error():
    with pytest.raises(ThalwegError, match="not finite on 40 of 40"):
        detection_table(lambda x: energy(x) * math.nan, X, {}, X)


@pytest.mark.parametrize("name", IMAGE_CORRUPTIONS)
@pytest.mark.parametrize("shape", [(6, 1, 28, 28), (6, 3, 32, 32)])
def test_a_corruption_keeps_shape_and_range_and_repeats(name, shape):
    x = torch.rand(shape, generator=generator(0, "x"))
    out = IMAGE_CORRUPTIONS[name](x, 3)
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6
    assert torch.equal(out, IMAGE_CORRUPTIONS[name](x, 3))
    assert not torch.allclose(out, x, atol=1e-2)


def test_shuffled_patches_keep_every_pixel_value():
    out = shuffled_patches(X)
    assert torch.equal(out.flatten(1).sort(1).values, X.flatten(1).sort(1).values)
    assert not torch.equal(out[0], out[1])
    kept = X[:1].unfold(2, 7, 7).unfold(3, 7, 7).reshape(16, 49)
    moved = out[:1].unfold(2, 7, 7).unfold(3, 7, 7).reshape(16, 49)
    assert torch.cdist(moved, kept).argmin(1).sort().values.equal(torch.arange(16))


def test_blur_keeps_a_flat_picture():
    flat = torch.full((1, 3, 28, 28), 0.4)
    assert torch.allclose(blurred(flat), flat, atol=1e-6)


def test_tables_have_their_own_corruptions():
    x = torch.randn(50, 3, generator=generator(0, "table"))
    out = corrupted(x)
    assert set(out) == {"uniform noise", "shuffled columns"}
    assert torch.equal(out["shuffled columns"].sort(0).values, x.sort(0).values)
    with pytest.raises(ValueError, match="shape"):
        corrupted(x[0])
