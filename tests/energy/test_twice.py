"""The dual step's short way changes nothing: spectra against convolutions, four passes against autograd twice."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.bench import dual as speed_dual
from thalweg.core.rng import generator
from thalweg.energy.base import energy_and_grad
from thalweg.energy.engine.double_backward.fft import plane
from thalweg.energy.noise_conditional.unet import UNetEnergy
from thalweg.energy.wrappers import AtNoise
from thalweg.objective.base import Batch
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.objective.score.noise_levels import NoiseRange
from thalweg.sampler.annealed import Ancestral, Heun, anneal
from thalweg.sampler.multistep import Multistep

OBJECTIVE = DualScoreMatching(time_weight=0.5)
KINDS = [
    {"shape": (1, 8, 8), "widths": (8, 16), "num_blocks": (1, 1), "embed": 16},
    {"shape": (2, 9, 13), "widths": (4, 6, 5), "num_blocks": (1, 2, 1), "embed": 8},
    {"shape": (3, 6, 6), "widths": (12, 16), "num_blocks": (1, 1), "embed": 8},  # wide enough for spectra everywhere
    {"shape": (1, 4, 4), "widths": (9,), "num_blocks": (2,), "embed": 8},
]


def build(kind, dtype=torch.float64, rows=9):
    energy = speed_dual.energy_of(**KINDS[kind]).to(dtype)
    weights = generator(0, "weights")  # not the global one, whose state is what earlier tests have left
    for p in energy.parameters():
        nn.init.normal_(p, std=0.2 if p.ndim > 1 else 0.1, generator=weights)
    x = torch.rand(rows, *energy.shape, generator=generator(0, "x")).to(dtype)
    energy.fit(torch.rand(40, *energy.shape, generator=generator(0, "fit")).to(dtype))
    noise = OBJECTIVE.draw(NoiseRange.of(energy), Batch(x), generator(0, "z"), 0.0)
    return energy, Batch(x), tuple(z.to(dtype) for z in noise)


def gradients(energy, by, batch, noise):
    loss, _, _ = OBJECTIVE.loss(by, NoiseRange.of(energy), batch, noise)
    energy.zero_grad()
    loss.backward()
    return loss.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in energy.parameters()]


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (4, 5), (6, 3), (1, 1), (1, 2), (3, 1)])
def test_a_product_of_spectra_is_the_convolution(size):
    p, k = plane(*size, torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    x = torch.randn(5, 3, *size, dtype=torch.float64).requires_grad_(True)
    k.requires_grad_(True)
    want = F.conv2d(x, k, padding=1)
    c = torch.randn_like(want)
    back, of_kernel = torch.autograd.grad(want, (x, k), c)
    with torch.no_grad():
        spectrum, w, cotangent = p.into.apply(x.permute(2, 3, 0, 1)), p.weights(k), p.out.apply(c.permute(2, 3, 0, 1))
        assert torch.allclose(p.out.transpose(spectrum @ w).permute(2, 3, 0, 1), want, atol=1e-12)
        assert torch.allclose(p.into.transpose(cotangent @ w.mT).permute(2, 3, 0, 1), back, atol=1e-12)
        assert torch.allclose(p.weights_back(spectrum.mT @ cotangent), of_kernel, atol=1e-12)


@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_autograds(kind, dtype, bound):
    energy, batch, noise = build(kind, dtype)
    assert energy.value_and_grads(batch.x, noise[0]) is not None
    loss, grads = gradients(energy, energy, batch, noise)
    want, plain = gradients(energy, lambda y, t: energy(y, t), batch, noise)
    assert abs(float(loss - want)) <= bound * float(want)
    whole = torch.stack([g.norm() for g in plain]).norm()
    for a, b in zip(grads, plain, strict=True):
        assert float((a - b).norm()) <= bound * float(b.norm() + 0.01 * whole)
    assert sum(bool(g.any()) for g in grads) >= len(grads) - 1  # all but the energy's constant, and that is seen by t


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_value_and_grad_alone(kind):
    energy, batch, noise = build(kind)
    at = AtNoise(energy, noise[0][0])
    found = at.value_and_grad(batch.x)
    assert found is not None
    u, g = energy_and_grad(lambda y: at(y), batch.x)
    assert torch.allclose(found[0], u, rtol=1e-12)
    assert torch.allclose(found[1], g, rtol=1e-10, atol=1e-12)
    assert not found[0].requires_grad
    assert at.value_and_grad(batch.x[:3]) is None
    assert all(p.grad is None for p in energy.parameters())


@pytest.mark.parametrize("sampler", [Heun(num_steps=5, churn=0.3), Ancestral(num_steps=5), Multistep(eta=1.0)])
def test_samples_are_those_of_the_plain_path(sampler):
    energy = speed_dual.energy_of(**KINDS[0]).requires_grad_(False)  # near its Gaussian, so that the flow is tame

    class Plain:
        shape, prior = energy.shape, staticmethod(energy.prior)
        t_min, t_max, prior_log_prob = energy.t_min, energy.t_max, energy.prior_log_prob

        def __call__(self, y, t):
            return energy(y, t)

    a, b = (torch.cat(list(anneal(sampler, e, 20, num_corrections=2))) for e in (energy, Plain()))
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    assert not torch.equal(a, b)  # both paths were in use


def test_where_there_is_no_short_way_autograd_serves():
    energy, batch, noise = build(0)
    y, t = batch.x, noise[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert energy.value_and_grads(y, t) is None
    handle = energy.net.stem.register_forward_hook(lambda *_: None)
    assert energy.value_and_grads(y, t) is None
    handle.remove()
    normed = copy.deepcopy(energy)
    nn.utils.parametrizations.spectral_norm(normed.net.down[0][0].conv1)
    assert normed.value_and_grads(y, t) is None
    assert normed.value_and_grad(y, t) is None
    assert energy.value_and_grads(y, t) is not None
    assert (
        UNetEnergy(shape=(1, 136, 136), widths=(4,), num_blocks=(1,), embed=4).value_and_grads(
            torch.rand(1, 1, 136, 136), t[:1]
        )
        is None
    )


def conv(*sizes, **more):
    return nn.Conv2d(*sizes, bias=False, **more).double()


@pytest.mark.parametrize(
    "other",
    [
        conv(8, 8, 3, padding=2, dilation=2),
        conv(8, 8, 3, padding=1, padding_mode="circular"),
        conv(8, 8, 3, padding=1, groups=2),
        conv(8, 8, 5, padding=2),
        "stage",
    ],
    ids=str,
)
def test_a_network_with_another_layer_in_it_is_autograds(other):
    """The passes know 3 x 3 convolutions with padding 1 and nothing else; a dilated one would give wrong gradients."""
    energy, batch, noise = build(0)
    if other == "stage":
        energy.net.up[0] = energy.net.down[0]
    else:
        energy.net.down[0][0].conv1 = copy.deepcopy(other)
    assert energy.value_and_grads(batch.x, noise[0]) is None
    loss, grads = gradients(energy, energy, batch, noise)
    want, plain = gradients(energy, lambda y, t: energy(y, t), batch, noise)
    assert torch.equal(loss, want)
    assert all(torch.equal(a, b) for a, b in zip(grads, plain, strict=True))


def stepped(energy, batch, noise):
    optimizer = torch.optim.AdamW(energy.parameters(), lr=1e-2, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        OBJECTIVE.loss(energy, NoiseRange.of(energy), batch, noise)[0].backward()
        optimizer.step()
    return energy


def loaded(energy, assign):
    other = copy.deepcopy(energy)
    nn.init.zeros_(other.net.stem.weight)
    other.load_state_dict({k: v.clone() for k, v in energy.state_dict().items()}, assign=assign)
    return other


def only(energy, name):
    energy.requires_grad_(False)
    energy.get_submodule(name).requires_grad_(True)
    return energy


def shared(energy):
    block = energy.net.down[0][0]
    block.conv2 = block.conv1
    return energy


STATES = {
    "steps": stepped,
    "average": lambda e, b, n: torch.optim.swa_utils.AveragedModel(stepped(e, b, n)).module,
    "copy": lambda e, b, n: copy.deepcopy(e),
    "loaded": lambda e, b, n: loaded(e, assign=False),
    "assigned": lambda e, b, n: loaded(e, assign=True),
    "channels_last": lambda e, b, n: e.to(memory_format=torch.channels_last),
    "one layer trains": lambda e, b, n: only(e, "net.down.0.0.conv1"),
    "the levels train": lambda e, b, n: only(e, "embedding"),
    "the constant trains": lambda e, b, n: only(e, "constant"),
    "tied weights": lambda e, b, n: shared(e),
    "one row": lambda e, b, n: e,
}


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("state", STATES)
def test_gradients_in_whatever_state_the_network_is(state, kind):
    energy, batch, noise = build(kind, rows=1 if state == "one row" else 4)
    energy = STATES[state](energy, batch, noise)
    assert energy.value_and_grads(batch.x, noise[0]) is not None
    _, grads = gradients(energy, energy, batch, noise)
    _, plain = gradients(energy, lambda y, t: energy(y, t), batch, noise)
    whole = torch.stack([g.norm() for g in plain]).norm()
    assert whole > 0
    for a, b in zip(grads, plain, strict=True):
        assert float((a - b).norm()) <= 1e-12 * float(b.norm() + 0.01 * whole)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 1, 9), (3, 5, 7), (1, 63, 2)], ids=str)
@pytest.mark.parametrize("widths", [(9,), (17, 5)], ids=str)
def test_gradients_of_odd_pictures(shape, widths, monkeypatch):
    kind = {"shape": shape, "widths": widths, "num_blocks": (1,) * len(widths), "embed": 4}
    monkeypatch.setitem(globals(), "KINDS", [kind])
    test_loss_and_gradients_are_autograds(0, torch.float64, 1e-12)


def test_a_second_backward_is_refused_in_words():
    energy, batch, noise = build(0)
    loss, _, _ = OBJECTIVE.loss(energy, NoiseRange.of(energy), batch, noise)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="the loss has been differentiated"):
        loss.backward()


def test_two_losses_before_one_backward():
    energy, batch, noise = build(2)
    _, once = gradients(energy, energy, batch, noise)
    energy.zero_grad()
    sum(OBJECTIVE.loss(energy, NoiseRange.of(energy), batch, noise)[0] for _ in range(2)).backward()
    assert all(torch.allclose(p.grad, 2 * g, rtol=1e-12) for p, g in zip(energy.parameters(), once, strict=True))


def test_the_loss_is_differentiated_once_only():
    energy, batch, noise = build(0)
    loss, _, _ = OBJECTIVE.loss(energy, NoiseRange.of(energy), batch, noise)
    (g,) = torch.autograd.grad(loss, energy.net.stem.weight, create_graph=True)
    with pytest.raises(RuntimeError):
        g.sum().backward()
