"""The joint objective against sums by hand, and its two signs against mutants that get them wrong."""

import inspect
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.networks.classifier import JointStridedEnergy
from thalweg.energy.noise_conditional.classifier import JointUNetEnergy
from thalweg.energy.wrappers import ClassifierGuidance
from thalweg.objective import joint
from thalweg.objective.base import Batch
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.joint import JointLikelihood
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.objective.score.noise_levels import NoiseRange
from thalweg.sampler.langevin import ULA

from .stats import assert_near


def mutant(old, new):
    """The objective's module with a piece of its source replaced."""
    source = inspect.getsource(joint)
    assert old in source, old
    made = types.ModuleType("mutant_of_joint")
    sys.modules[made.__name__] = made
    exec(compile(source.replace(old, new), made.__name__, "exec"), made.__dict__)
    return made.JointLikelihood


def images(n=12):
    return torch.rand(n, 1, 8, 8, generator=generator(0, "images"), dtype=torch.float64), torch.arange(n) % 3


@pytest.fixture
def unet():
    torch.manual_seed(0)
    energy = JointUNetEnergy.example().fit(images(60)[0].float()).double()
    with torch.no_grad():
        energy.density.net.head.weight.normal_(std=0.1)  # zero at first, which would hide the network
    return energy


def test_the_loss_is_cross_entropy_and_the_generative_term_by_hand(unet):
    x, labels = images()
    dual = DualScoreMatching()
    objective = JointLikelihood(generative=dual, weight=0.7, noisy_weight=0.4, rows=5)
    noise = objective.draw(NoiseRange.of(unet), Batch(x, labels), generator(0, "draw"), 0.0)
    loss, _, parts = objective.loss(unet, NoiseRange.of(unet), Batch(x, labels), noise)

    def entropy(scores, labels):
        return -(scores - scores.exp().sum(1, keepdim=True).log())[torch.arange(len(labels)), labels].mean()

    lowest = torch.full((12,), unet.t_min, dtype=torch.float64)
    _, t, eps, *own = noise
    y = x[:5] + t.sqrt()[:, None, None, None] * eps
    by_hand = entropy(unet.logits(x, lowest), labels) + 0.4 * entropy(unet.logits(y, t), labels[:5])
    by_hand = by_hand + 0.7 * dual.loss(unet, NoiseRange.of(unet), Batch(x[:5]), tuple(own))[0]
    torch.testing.assert_close(loss, by_hand, rtol=1e-10, atol=1e-10)
    assert len(t) == len(own[0]) == 5
    assert not torch.equal(eps, own[1])
    right = (unet.logits(x).argmax(1) == labels).double().mean()
    assert float(parts["accuracy"]) == pytest.approx(float(right))


def test_p_of_the_label_is_the_softmax_of_minus_the_joint_energy_and_its_marginal_is_u(unet):
    x, _ = images()
    with torch.no_grad():
        unet.inverse_temperature.fill_(1.3)
        t = torch.linspace(0.01, 2, len(x), dtype=torch.float64)
        for at in (None, t):
            joint_energy = torch.stack([unet.joint(x, torch.full((12,), k), at) for k in range(3)], 1)
            torch.testing.assert_close((-joint_energy).softmax(1), unet.logits(x, at).softmax(1))
            levels = x.new_full((12,), unet.t_min) if at is None else at
            torch.testing.assert_close(-torch.logsumexp(-joint_energy, 1), unet(x, levels))


def test_the_plain_classifier_is_a_joint_energy_too():
    x, labels = images()
    energy = JointStridedEnergy.example().double()
    f = energy.trunk.outputs(x)
    torch.testing.assert_close(energy(x), -f.exp().sum(1).log())
    torch.testing.assert_close(energy(x, labels), -f[torch.arange(12), labels])


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_the_short_way_of_a_given_class_is_the_gradient_of_its_energy(unet, strength):
    x, labels = images()
    t = torch.linspace(0.01, 2, len(x), dtype=torch.float64)
    given = ClassifierGuidance(unet.requires_grad_(False), labels, strength)
    y = x.clone().requires_grad_(True)
    u = given(y, t)
    (g,) = torch.autograd.grad(u.sum(), y)
    found = given.value_and_grad(x, t)
    assert found is not None
    torch.testing.assert_close(found[0], u.detach())
    torch.testing.assert_close(found[1], g)
    if strength == 1.0:
        torch.testing.assert_close(u.detach(), unet.joint(x, labels, t))


class Means(nn.Module):
    """E(x, y) = |x - m_y|² / 2 in one dimension."""

    num_classes, shape = 2, (1,)

    def __init__(self, *means):
        super().__init__()
        self.means = nn.Parameter(torch.tensor(means, dtype=torch.float64))

    def logits(self, x):
        return -0.5 * (x - self.means).square()

    def forward(self, x, labels=None):
        f = self.logits(x)
        return -torch.logsumexp(f, 1) if labels is None else -f.gather(1, labels[:, None]).squeeze(1)


def _pull_of_the_chains(objective_class, repeats=40, n=64):
    """d(loss with the chains - loss without)/d means for data at -2 and 2, model at -1 and 1: (repeats, 2)."""
    cd = ContrastiveDivergence(
        sampler=ULA(step_size=0.1), num_steps=20, start="data", conditional=True, energy_penalty=0.0, initial="normal"
    )
    rows = []
    for k in range(repeats):
        energy, gen = Means(-1.0, 1.0), generator(1, "pull", k)
        labels = torch.arange(n) % 2
        x = (4.0 * labels[:, None] - 2) + torch.randn(n, 1, generator=gen, dtype=torch.float64)
        found = []
        for weight in (1.0, 0.0):
            objective = objective_class(generative=cd, weight=weight)
            state = objective.init(energy, x, generator(1, "init", k))
            noise = objective.draw(state, Batch(x, labels), generator(1, "draw", k), 0.0)
            found.append(
                torch.autograd.grad(objective.loss(energy, state, Batch(x, labels), noise)[0], energy.means)[0]
            )
        rows.append(found[0] - found[1])
    return torch.stack(rows)


def _means_move_to_the_data(pull):
    """Descent moves the means out, towards the data: the gradient is (+, -), by twelve standard errors and more."""
    z = pull.mean(0) / (pull.std(0) / len(pull) ** 0.5)
    return bool(z[0] > 12 and z[1] < -12)


def test_the_chains_pull_each_class_towards_its_data():
    """Rejects the mutant that adds the generative term with the wrong sign. Exact for chains at their law, from above:
    mean E(real) - mean E(fake) has the slope (m - E x) - (m - E chain), half of it for each class."""
    pull = _pull_of_the_chains(JointLikelihood)
    assert _means_move_to_the_data(pull)
    left = (1 - 0.1) ** 20  # what 20 steps of h = 0.1 leave of the way from the data's mean to the model's
    assert_near(pull[:, 0].mean(), 0.5 * (1 - left), pull[:, 0].std() / len(pull) ** 0.5)
    wrong = mutant("loss = entropy + self.weight * loss", "loss = entropy - self.weight * loss")
    assert not _means_move_to_the_data(_pull_of_the_chains(wrong))


def _rise(objective_class, n=4000, radius=0.2):
    """The mean change of the cross-entropy on the rows that were moved, with its standard error, and the moves."""
    energy = Means(-1.0, 1.0)
    x = torch.rand(n, 1, generator=generator(2, "x"), dtype=torch.float64)
    labels = (torch.rand(n, generator=generator(2, "y")) < 0.5).long()
    objective = objective_class(generative=ContrastiveDivergence.example(), radius=radius, worst=0.5, rows=8)
    starts = objective.draw(objective.init(energy, x, generator(2, "i")), Batch(x, labels), generator(2, "d"), 0.0)[0]
    moved = objective._worst(energy, x, labels, starts)
    rise = F.cross_entropy(energy.logits(moved), labels, reduction="none") - F.cross_entropy(
        energy.logits(x), labels, reduction="none"
    )
    rise = rise.detach()[n // 2 :]
    return float(rise.mean()), float(rise.std()) / len(rise) ** 0.5, moved - x


def test_the_worst_rows_are_read_worse_and_stay_in_their_ball():
    """Rejects the mutant that steps down the cross-entropy."""
    rise, error, move = _rise(JointLikelihood)
    assert rise > 8 * error
    assert float(move.abs().max()) <= 0.2 + 1e-12
    assert torch.equal(move[:2000], torch.zeros(2000, 1, dtype=torch.float64))
    down, error, _ = _rise(mutant("+ STRIDE * self.radius * g.sign()", "- STRIDE * self.radius * g.sign()"))
    assert not down > 8 * error


def test_the_worst_rows_stay_in_the_range_of_the_data():
    objective = JointLikelihood(generative=ContrastiveDivergence.example(), radius=0.3, worst=1.0)
    x = torch.tensor([[0.0], [1.0], [0.5]], dtype=torch.float64)
    moved = objective._worst(Means(-1.0, 1.0), x, torch.tensor([0, 1, 1]), torch.zeros_like(x))
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "must be given"),
        (torch.tensor([0.0, 1.0, 2.0]), "must be one whole number a row"),
        (torch.tensor([0, 1]), "must be one whole number a row"),
        (torch.tensor([0, 1, 3]), "they are 0 to 3"),
        (torch.tensor([-1, 1, 2]), "they are -1 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(unet, labels, said):
    x, right = images(3)
    objective = JointLikelihood(generative=DualScoreMatching())
    noise = objective.draw(NoiseRange.of(unet), Batch(x, right), generator(0, "draw"), 0.0)
    with pytest.raises(UserError, match=said) as caught:
        objective.loss(unet, NoiseRange.of(unet), Batch(x, labels), noise)
    assert "\n" not in str(caught.value)


def test_an_energy_without_classes_is_refused(unet):
    x, labels = images(3)
    objective = JointLikelihood()
    noise = objective.draw(NoiseRange.of(unet), Batch(x, labels), generator(0, "draw"), 0.0)
    with pytest.raises(UserError) as caught:
        objective.loss(unet.density, NoiseRange.of(unet), Batch(x, labels), noise)
    assert caught.value.argument == "energy"


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": -1.0},
        {"noisy_weight": float("nan")},
        {"radius": -0.1},
        {"worst": 1.5},
        {"rows": 0},
        {"low": 1.0},
        {"generative": "dual"},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(UserError) as caught:
        JointLikelihood(**wrong)
    assert caught.value.argument == next(iter(wrong))
