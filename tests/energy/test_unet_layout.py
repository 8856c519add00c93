"""The U-Net with constant weights: the layout of its images, and the same energies and gradients in each."""

import pytest
import torch

from thalweg.energy.noise_conditional.unet import SEVERAL, UNetEnergy


@pytest.fixture
def energy():
    torch.manual_seed(0)
    energy = UNetEnergy(shape=(2, 9, 10), widths=(8, 16), num_blocks=(1, 1), embed=16).double()
    for p in energy.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return energy.requires_grad_(False)


def layouts(energy, y, t):
    """(the energies, whether each image between two layers is in channels_last)."""
    seen = []
    hooks = [
        m.register_forward_hook(lambda m, x, out: seen.append(out.is_contiguous(memory_format=torch.channels_last)))
        for m in energy.net.modules()
        if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    ]
    found = energy(y, t)
    for hook in hooks:
        hook.remove()
    return found, seen


def data(rows):
    generator = torch.Generator().manual_seed(1)
    y = torch.rand(rows, 2, 9, 10, generator=generator, dtype=torch.float64)
    return y, 0.05 + torch.rand(rows, generator=generator, dtype=torch.float64)


def test_several_images_are_in_channels_last_through_the_whole_network(energy):
    assert all(layouts(energy, *data(SEVERAL))[1])
    assert not any(layouts(energy, *data(SEVERAL - 1))[1])
    assert not any(layouts(energy.requires_grad_(True), *data(SEVERAL))[1])


def test_energies_and_gradients_are_those_of_each_image_alone(energy):
    y, t = data(SEVERAL + 1)
    y.requires_grad_()
    together = energy(y, t)
    alone = torch.cat([energy(y[i : i + 1], t[i : i + 1]) for i in range(len(y))])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-11)
    (g,), (h,) = torch.autograd.grad(together.sum(), y), torch.autograd.grad(alone.sum(), y)
    torch.testing.assert_close(g, h, rtol=1e-10, atol=1e-10)


def test_maps_of_functions_go_through(energy):
    y, t = data(SEVERAL)
    found = torch.vmap(lambda y, t: energy(y[None], t[None])[0])(y, t)
    torch.testing.assert_close(found, energy(y, t), rtol=1e-11, atol=1e-11)
    groups = torch.vmap(energy, in_dims=(0, None))(torch.stack([y, y]), t)
    torch.testing.assert_close(groups[1], found, rtol=1e-11, atol=1e-11)
