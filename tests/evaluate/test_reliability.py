"""Calibration in closed form, on a classifier that is calibrated by construction, and on one that brags."""

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.evaluate.calibration import reliability


def test_the_error_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    found = reliability(p, torch.tensor([0, 1, 1, 1]), bins=2)
    assert found.num.tolist() == [0, 4]
    assert float(found.accuracy[1]) == 0.75
    assert found.error == pytest.approx(abs(0.75 - (0.9 + 0.9 + 0.6 + 0.7) / 4))
    finer = reliability(p, torch.tensor([0, 1, 1, 1]), bins=10)
    assert finer.error == pytest.approx(0.5 * 0.4 + 0.25 * 0.4 + 0.25 * 0.3)


def test_a_confidence_on_an_edge_belongs_below_it_and_one_is_no_bin_of_its_own():
    found = reliability(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 0]), bins=2)
    assert found.num.tolist() == [1, 1]
    assert found.error == pytest.approx(0.25)


def _drawn(n=20_000):
    """Probabilities, and labels that follow them."""
    scores = 2 * torch.randn(n, 5, generator=generator(0, "scores"))
    p = scores.softmax(1)
    return scores, p, torch.multinomial(p, 1, generator=generator(0, "labels"))[:, 0]


def test_labels_that_follow_the_probabilities_are_calibrated_and_a_braggart_is_not():
    """By five standard errors of a bin's gap, weighted; the mutant doubles the scores."""
    scores, p, labels = _drawn()
    found = reliability(p, labels)
    some = found.num > 0
    error = (found.confidence * (1 - found.confidence) / found.num).sqrt()
    z = ((found.accuracy - found.confidence) / error)[some]
    assert float(z.abs().max()) < 5
    bragging = reliability((2 * scores).softmax(1), labels)
    assert bragging.error > 0.08 > 5 * found.error


def test_what_does_not_fit_is_refused():
    for p, labels in (
        (torch.ones(0, 3), torch.zeros(0)),
        (torch.ones(4, 3), torch.zeros(3)),
        (torch.ones(4), torch.ones(4)),
    ):
        with pytest.raises(UserError, match="must be"):
            reliability(p, labels.long())
