"""A bundle on a GPU: all of it moves, what it is given may lie anywhere, and results come back to where that was."""

import pytest
import torch

import thalweg
from thalweg.core.rng import generator
from thalweg.data.toy import TOYS

from .simulated import GPU, REAL, gpu, same


def points(n=50):
    return TOYS["eight-gaussians"].sample(n, generator(7, "points"))


def pixels(n=7):
    return torch.rand(n, 1, 8, 8, generator=generator(7, "pixels"))


def rows(bundle):
    return pixels() if bundle.kind == "image" else points()


@pytest.fixture(params=["plane", "digits", "chains"])
def both(request):
    """A bundle on the CPU, and the same loaded on a GPU."""
    wanted = request.getfixturevalue(request.param)
    with gpu():
        yield wanted, thalweg.load(wanted.path, device="cuda:0")


def test_all_that_a_bundle_has_moves_there_and_back(both):
    """A mutant that leaves the mixture, the held-out energies or the cached lowest level behind is caught."""
    wanted, bundle = both
    assert bundle.device == GPU
    tensors = [*bundle.model.state_dict().values(), bundle.held_out_energies]
    tensors += [] if bundle.mixture_prior is None else bundle.mixture_prior.buffers()
    assert {t.device for t in tensors} == {GPU}
    x = rows(bundle)
    assert same(bundle.energy(x), wanted.energy(x))
    assert bundle.to("cpu") is bundle
    assert bundle.device.type == "cpu"
    assert torch.equal(bundle.energy(x), wanted.energy(x))
    assert {t.device.type for t in bundle.model.parameters()} == {"cpu"}


def test_results_come_back_to_where_the_rows_were(both):
    """A mutant that gives results on the bundle's device, or does not move the rows, is caught."""
    wanted, bundle = both
    x = rows(bundle)
    for device in ("cpu", "cuda:0"):
        given = x.to(device)
        found, want = bundle.score(given), wanted.score(x)
        assert found.keys() == want.keys()
        assert {v.device for v in found.values()} == {given.device}
        assert all(same(found[name], want[name]) for name in found)
        moving = given.clone().requires_grad_()
        (g,) = torch.autograd.grad(bundle.energy(moving).sum(), moving)
        assert g.device == given.device
    assert bundle.energy(x.numpy()).device.type == "cpu"


def test_samples_lie_on_the_bundles_device(both):
    """A mutant that draws by a generator of the CPU, or starts chains on it, is caught."""
    wanted, bundle = both
    found = bundle.sample(5, seed=3, num_steps=4)
    assert found.device == GPU
    assert REAL or same(found, wanted.sample(5, seed=3, num_steps=4))  # a GPU draws other numbers
    assert bundle.sample(0).device == GPU


def test_files_do_not_tell_where_a_bundle_was(both, tmp_path):
    wanted, bundle = both
    bundle.save_pretrained(tmp_path / "there")
    wanted.save_pretrained(tmp_path / "here")
    for file in ("model.safetensors", "calibration.safetensors"):
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_a_run_on_the_device_leaves_a_bundle_there(train_bundle, tmp_path, monkeypatch):
    """By the same path as `--device`; a mutant whose in-painting prior stays on the CPU is caught.

    The states of the GPUs' own generators are not asked for, which would begin a context on each of them.
    """
    small = ["energy.width=8", "energy.num_blocks=1", "energy.embed=8", "train.batch_size=16", "data.limit=300"]
    with gpu():
        monkeypatch.setenv("THALWEG_DEVICE", "cuda:0")
        bundle = train_bundle(tmp_path / "run", "two-moons", steps=3, overrides=small)
        assert bundle.device == GPU
        x, observed = torch.zeros(2, 2), torch.tensor([True, False])
        assert bundle.inpaint(x, observed).device.type == "cpu"
        monkeypatch.setenv("THALWEG_DEVICE", "cpu")
        again = thalweg.load(tmp_path / "run")
        assert again.device.type == "cpu"
        assert same(bundle.energy(x), again.energy(x))
