"""Transformer energies: padding, order, positions, any length and size, one kernel a phase, short ways that agree."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.base import Discrete, HasOutputs, energy_and_grad
from thalweg.energy.engine.attention import double_backward
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.networks.classifier import ClassifierEnergy
from thalweg.energy.networks.encoder import Encoder
from thalweg.energy.networks.patches import Patches
from thalweg.energy.networks.transformer import TransformerEnergy
from thalweg.energy.noise_conditional.transformer import NoiseConditionalTransformerEnergy
from thalweg.energy.wrappers import AtNoise
from thalweg.evaluate.likelihood import ode_log_prob
from thalweg.objective.base import Batch
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.sampler.chain import run_chain
from thalweg.sampler.gibbs_with_gradients import GibbsWithGradients
from thalweg.sampler.langevin import MALA, ULA

from .test_attention import FUSED, MATH, kernels

KINDS = {
    "rows": ((5,), {"patch": 2}),
    "series": ((7, 3), {"patch": 2}),
    "tokens": ((6, 4), {"tokens": True}),
    "images": ((2, 9, 7), {}),
}


def build(kind="tokens", **more):
    shape, given = KINDS[kind]
    torch.manual_seed(0)
    energy = TransformerEnergy(**{"shape": shape, "width": 16, "depth": 2, "num_heads": 2, **given, **more})
    nn.init.normal_(energy.head.weight)  # so that f is of the order of nats
    return energy


def rows(kind="tokens", n=5):
    shape, given = KINDS[kind]
    if given.get("tokens"):
        return words(torch.randint(1, shape[1], (n, shape[0]), generator=generator(0, "x")), shape[0])
    return torch.randn(n, *shape, generator=generator(0, "x"))


def words(codes, length, num_states=4):
    codes = torch.as_tensor(codes)
    return F.one_hot(F.pad(codes, (0, length - codes.shape[1])), num_states).float()


def test_the_energy_of_a_word_does_not_depend_on_its_padding():
    energy, word = build(), [[3, 1, 2, 2, 1]]
    short, *longer = (energy(words(word, length)) for length in (8, 20, 33))
    for u in longer:
        assert torch.allclose(u, short, rtol=0, atol=1e-5)
    assert not torch.allclose(energy(words(word, 5)), short, atol=1e-3), "the end of a word counts"


def test_what_comes_after_the_end_is_not_seen():
    energy = build()
    a, b = words([[3, 1, 0, 0, 0]], 5), words([[3, 1, 0, 2, 3]], 5)
    assert torch.allclose(energy(a), energy(b), rtol=0, atol=1e-6)
    assert not torch.allclose(energy(a), energy(words([[3, 0, 0, 2, 3]], 5)), atol=1e-3)
    empty = energy(words([[0, 0, 0]], 3))
    assert bool(empty.isfinite().all())
    _, g = energy_and_grad(energy, a)
    assert bool((g[:, 3:] == 0).all())


def test_the_gradient_tells_what_comes_to_count():
    """An end that becomes a letter lets the next position count; its gradient, the change to first order, says so."""
    energy = build()
    x = words([[3, 1, 2, 1]], 7).requires_grad_(True)
    (with_end,) = torch.autograd.grad(energy(x).sum(), x)
    hard = copy.deepcopy(energy)
    hard.features = lambda x: (energy.features(x)[0], energy.features(x)[1].detach())
    (without,) = torch.autograd.grad(hard(x).sum(), x)
    changed = (with_end - without).abs().amax(2) > 1e-6
    assert changed[0].tolist() == [True] * 5 + [False] * 2  # the letters and the end itself


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_counts(kind):
    energy, x = build(kind), rows(kind)
    assert not torch.allclose(energy(x), energy(x.flip(x.ndim - 1 if kind == "rows" else 1)), atol=1e-3)


def test_positions_are_relative():
    torch.manual_seed(0)
    encoder, h = Encoder(16, 2, 2).double(), torch.randn(3, 6, 16, dtype=torch.float64)
    there = torch.arange(6.0, dtype=torch.float64)[:, None]
    assert torch.allclose(encoder(h, positions=there + 7), encoder(h), rtol=0, atol=1e-9)
    assert not torch.allclose(encoder(h, positions=2 * there), encoder(h), atol=1e-3)
    plane = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0)).double()
    moved = plane + torch.tensor([5.0, -2.0])
    assert torch.allclose(encoder(h, positions=moved), encoder(h, positions=plane), rtol=0, atol=1e-9)
    assert not torch.allclose(encoder(h, positions=plane.flip(1)), encoder(h, positions=plane), atol=1e-3)
    assert torch.allclose(encoder(h.flip(1)).flip(1), encoder(h, positions=-there), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "patch"), [((5,), 2), ((4,), 1), ((7, 3), 3), ((7, 3), 1), ((2, 9, 7), 4), ((1, 8, 8), 4)]
)
def test_patches_are_put_together_again(shape, patch):
    patches, x = Patches(shape, patch), torch.randn(3, *shape)
    tokens = patches.cut(x)
    assert tokens.shape == (3, len(patches.positions(x)), patches.numbers)
    assert torch.equal(patches.join(tokens, x.shape), x)


@pytest.mark.parametrize(("shape", "patch"), [((5,), 6), ((7, 3), 8), ((1, 4, 6), 7)])
def test_a_patch_larger_than_the_position_is_refused(shape, patch):
    with pytest.raises(UserError, match="at most") as error:
        TransformerEnergy(shape=shape, patch=patch)
    assert error.value.argument == "patch"
    assert TransformerEnergy(shape=shape, patch=patch - 1)(torch.randn(2, *shape)).shape == (2,)


def test_an_image_smaller_than_four_pixels_has_smaller_patches():
    assert TransformerEnergy(shape=(1, 3, 2))(torch.randn(2, 1, 3, 2)).shape == (2,)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_are_converted_and_other_floating_types_refused(kind):
    energy, x = build(kind), rows(kind).round()
    assert torch.equal(energy(x.long()), energy(x))
    for other in (x.double(), x.bfloat16()):
        with pytest.raises(UserError, match=r"must be in torch\.float32") as error:
            energy(other)
        assert error.value.argument == "x"


def test_a_patch_holds_its_pixels_and_its_place():
    patches = Patches((1, 4, 6), 2)
    image = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert patches.cut(image)[0, 4].tolist() == [14, 15, 20, 21]
    assert patches.positions(image)[4].tolist() == [1, 1]


def test_series_of_any_length_and_images_of_any_size():
    assert build("series")(torch.randn(2, 40, 3)).shape == (2,)
    assert build("images")(torch.randn(2, 2, 16, 5)).shape == (2,)
    assert not any(7 in p.shape for p in build("series").parameters()), "a parameter knows the length"


WRONG = [
    ("rows", (2, 4), "x"),
    ("series", (2, 7, 2), "x"),
    ("tokens", (2, 6), "x"),
    ("tokens", (2, 0, 4), "x"),
    ("images", (2, 3, 9, 7), "x"),
]


@pytest.mark.parametrize(("kind", "size", "argument"), WRONG)
def test_other_positions_are_refused(kind, size, argument):
    with pytest.raises(UserError, match=r"must have the shape \(B") as caught:
        build(kind)(torch.randn(size))
    assert caught.value.argument == argument


REFUSED = [
    ({"shape": (2, 2, 2, 2)}, "shape"),
    ({"shape": (5, 2), "tokens": True}, "shape"),
    ({"shape": (5,), "tokens": True}, "shape"),
    ({"tokens": True, "patch": 2}, "patch"),
    ({"width": 18}, "width"),
    ({"shape": (1, 8, 8), "tokens": False, "width": 12}, "width"),
    ({"num_heads": 0}, "num_heads"),
    ({"precision": -1.0}, "precision"),
]


@pytest.mark.parametrize(("given", "argument"), REFUSED)
def test_what_cannot_be_built_is_refused(given, argument):
    with pytest.raises(UserError) as caught:
        build(**given)
    assert caught.value.argument == argument
    with pytest.raises(UserError):
        NoiseConditionalTransformerEnergy(shape=(5, 3))


def test_only_tokens_are_states():
    assert isinstance(build(), Discrete)
    assert build().num_states == 4
    assert not any(isinstance(build(kind), Discrete) for kind in KINDS if kind != "tokens")


@pytest.mark.parametrize("kind", KINDS)
def test_the_energy_of_scores_and_of_classes(kind):
    trunk, x = build(kind, num_outputs=3), rows(kind)
    assert isinstance(trunk, HasOutputs)
    assert torch.allclose(trunk(x), -torch.logsumexp(trunk.outputs(x), 1))
    joint, labels = ClassifierEnergy(trunk, 3), torch.tensor([0, 2, 1, 1, 0])
    assert torch.allclose(joint(x, labels), -trunk.outputs(x)[torch.arange(5), labels])
    f = trunk.scores(x).sum(1) - 0.5 * trunk.precision * x.flatten(1).square().sum(1, keepdim=True)
    assert torch.allclose(f, trunk.outputs(x), atol=1e-5)


def test_far_away_the_energy_is_that_of_the_normal_law():
    energy, x = build("series"), 1e3 * rows("series")
    assert torch.allclose(energy(x), 0.5 * x.flatten(1).square().sum(1), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_it_is_the_same_energy(kind):
    energy, x = build(kind), rows(kind)
    want = energy_and_grad(energy, x)
    with FrozenEnergy.of(energy) as fixed:
        for u, g in (energy_and_grad(fixed, x), energy_and_grad(fixed, x)):
            assert torch.allclose(u, want[0], rtol=1e-5, atol=1e-6)
            assert torch.allclose(g, want[1], rtol=1e-4, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            u, g = energy_and_grad(fixed, x)
    assert (u - want[0]).norm() < 0.05 * want[0].norm()  # products are rounded to 8 bits
    assert (g - want[1]).norm() < 0.05 * want[1].norm()


def test_blocks_that_are_computed_again_give_the_same_gradient():
    plain, again = build(), build(checkpoint=True)
    x = rows()
    for block in (None, double_backward):
        grads = []
        for energy in (plain, again):
            y = x.clone().requires_grad_(True)
            if block is None:
                grads.append(torch.autograd.grad(energy(y).sum(), list(energy.parameters())))
                continue
            with block():
                (g,) = torch.autograd.grad(energy(y).sum(), y, create_graph=True)
                grads.append(torch.autograd.grad(g.square().sum(), list(energy.parameters()), allow_unused=True))
        assert all(a is b or torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*grads, strict=True))


FIRST_ORDER = {FUSED, f"{FUSED}_backward"}


@pytest.mark.parametrize("sampler", [ULA(step_size=0.01), MALA(step_size=0.01)], ids=["ULA", "MALA"])
def test_chains_use_the_fused_kernel(sampler):
    energy, x = build("series"), rows("series")
    assert kernels(lambda: run_chain(sampler, energy, x, num_steps=2)) == FIRST_ORDER


def test_chains_of_states_use_the_fused_kernel():
    energy, x = build(), rows()
    found = []
    assert kernels(lambda: found.append(run_chain(GibbsWithGradients(), energy, x, num_steps=3))) == FIRST_ORDER
    assert bool((found[0].sum(2) == 1).all())


def test_contrastive_training_uses_the_fused_kernel():
    energy, batch = build("images"), Batch(rows("images"), None)
    objective = ContrastiveDivergence(sampler=ULA(step_size=0.01), num_steps=2, buffer_size=16)
    state = objective.init(energy, batch.x, generator(0, "init"))
    noise = objective.draw(state, batch, generator(0, "draw"), 0.0)
    assert kernels(lambda: objective.loss(energy, state, batch, noise)[0].backward()) == FIRST_ORDER
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in energy.parameters())


def conditional(shape=(1, 6, 5), **more):
    """U(y, t) with weights that are not zero, its anchor fitted."""
    torch.manual_seed(0)
    energy = NoiseConditionalTransformerEnergy(shape=shape, width=16, depth=2, num_heads=2, patch=2, embed=16, **more)
    energy.fit(torch.randn(200, *shape, generator=generator(0, "fit")))
    for p in energy.parameters():
        nn.init.normal_(p, std=0.2)
    return energy


@pytest.mark.parametrize("shape", [(1, 6, 5), (2, 4, 4), (5,)])
def test_a_noise_conditional_energy_begins_as_the_gaussian(shape):
    x = torch.randn(200, *shape, generator=generator(0, "fit"))
    energy = NoiseConditionalTransformerEnergy(shape=shape, width=16, depth=1, num_heads=2, embed=16).fit(x)
    y, t = x[:4], torch.tensor([0.1, 0.5, 2.0, energy.t_max])
    assert torch.allclose(energy(y, t), energy.anchor(y.flatten(1), t)[0])
    grown = conditional(shape)
    u = grown(y, torch.full((4,), grown.t_max))
    assert torch.allclose(u, grown.anchor(y.flatten(1), torch.full((4,), grown.t_max))[0])
    assert not torch.allclose(grown(y, t)[:3], energy(y, t)[:3], atol=1e-3)


def test_the_level_modulates_every_block():
    energy = conditional()
    y, t = torch.randn(3, 1, 6, 5), torch.full((3,), 0.3)
    energy(y, t).sum().backward()
    grads = [block.modulate.weight.grad for block in energy.encoder.blocks] + [energy.encoder.modulate.weight.grad]
    assert all(bool((g != 0).any()) for g in grads)


def test_a_noise_conditional_chain_uses_the_fused_kernel_and_its_likelihood_the_other():
    energy, y = conditional(), torch.randn(4, 1, 6, 5)
    assert kernels(lambda: energy_and_grad(AtNoise(energy, 0.3), y)) == FIRST_ORDER
    found, nothing = [], lambda y: torch.zeros(len(y))
    ran = kernels(lambda: found.append(ode_log_prob(energy, y, t_min=0.1, t_max=1.0, num_steps=2, prior=nothing)))
    assert ran == {MATH}
    assert bool(found[0].isfinite().all())
