"""What a bundle is asked for: how many samples, which share, which gradient, and where it is to be kept."""

import math
import pickle

import numpy as np
import pytest
import torch

from thalweg.bundle.files import load
from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.rng import generator
from thalweg.data.toy import TOYS
from thalweg.energy.engine import freeze
from thalweg.energy.engine.discovery import find_modules
from thalweg.sampler.annealed import Heun
from thalweg.sampler.chain import run_chain
from thalweg.sampler.langevin import MALA, ULA


def points(n=50):
    return TOYS["eight-gaussians"].sample(n, generator(7, "points"))


def pixels(n=7):
    return torch.rand(n, 1, 8, 8, generator=generator(7, "pixels"))


@pytest.mark.parametrize("which", ["plane", "digits", "chains"])
@pytest.mark.parametrize("n", [1, 17, 117])
def test_row_i_does_not_depend_on_how_many_follow(which, n, request):
    bundle = request.getfixturevalue(which)
    if which == "plane":
        bundle = load(bundle.path)
        bundle.sampler = Heun(num_steps=5, churn=0.2)
    long = bundle.sample(150, seed=4, num_steps=5)
    assert torch.allclose(long[:n], bundle.sample(n, seed=4, num_steps=5), atol=1e-4)


@pytest.mark.parametrize(
    ("n", "keywords", "message"),
    [
        (-1, {}, "n=-1"),
        (1.5, {}, r"n=1\.5"),
        ("x", {}, "n='x'"),
        (True, {}, "n=True"),
        (1, {"num_steps": 0}, "num_steps=0"),
        (1, {"num_steps": 1.5}, r"num_steps=1\.5"),
        (1, {"num_steps": True}, "num_steps=True"),
        (1, {"seed": -1}, "seed=-1"),
        (1, {"seed": 0.0}, r"seed=0\.0"),
        (1, {"seed": 2**64}, "seed=18446744073709551616"),
        (1, {"seed": None}, "seed=None"),
    ],
)
def test_numbers_of_samples_that_are_none(digits, chains, n, keywords, message):
    for bundle in (digits, chains):
        with pytest.raises(UserError, match=f"^{message}: must be a whole number") as caught:
            bundle.sample(n, **keywords)
        assert "\n" not in str(caught.value)
    assert digits.sample(np.int64(1), num_steps=1, seed=2**64 - 1).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("alpha", [5, math.nan, -1, "x", None])
def test_a_share_that_is_none(plane, alpha):
    with pytest.raises(UserError, match=r"^alpha=.*must be in \[0, 1\]"):
        plane.score(points(), alpha=alpha)


def test_an_alpha_that_no_p_value_reaches_is_warned_of_once(copy, caplog):
    bundle = load(copy)
    n = len(bundle.held_out_energies)
    assert bool(bundle.score(pixels(), alpha=1 / (n + 1))["flag"].numel())
    assert not caplog.text
    for _ in range(2):
        assert not bool(bundle.score(pixels(), alpha=0.5 / (n + 1))["flag"].any())
    (record,) = caplog.records
    assert "no row can be flagged; use alpha=" in record.getMessage()
    assert "\n" not in record.getMessage()
    with pytest.raises(UserError, match="alpha"):
        bundle.score(pixels(), alpha=2)


@pytest.mark.parametrize("which", ["plane", "digits", "chains"])
def test_kept_frozen_a_bundle_is_the_same(which, request, monkeypatch):
    bundle = load(request.getfixturevalue(which).path)
    x = points() if which != "digits" else pixels()
    want, draws = bundle.score(x), bundle.sample(2, seed=1, num_steps=2)
    bundle.keep_frozen()
    bundle.keep_frozen()
    with monkeypatch.context() as patched:
        patched.setattr(freeze, "find_modules", None)  # a call looks at no modules
        found = bundle.score(x)
    assert all(torch.equal(found[name], want[name]) for name in want)
    assert torch.equal(bundle.sample(2, seed=1, num_steps=2), draws)
    assert bundle.energy(x[:1].requires_grad_(True)).requires_grad
    moved = pickle.loads(pickle.dumps(bundle))
    looks = []
    monkeypatch.setattr(freeze, "find_modules", lambda energy: looks.append(1) or find_modules(energy))
    for one in (moved, bundle.to("cpu")):
        assert torch.equal(one.energy(x), want["energy"])
    assert len(looks) == 2


def test_p_values_follow_other_held_out_energies(digits):
    bundle, x = load(digits.path), pixels()
    n = len(bundle.held_out_energies)
    for held_out, p in ((1e9, 1.0), (-1e9, 1 / (1 + n)), (1e9, 1.0)):
        bundle.held_out_energies.fill_(held_out)
        assert torch.allclose(bundle.score(x)["p_value"], torch.tensor(p))
    bundle.held_out_energies = torch.full((2 * n,), -1e9)
    assert torch.allclose(bundle.score(x)["p_value"], torch.tensor(1 / (1 + 2 * n)))


def test_the_energy_is_differentiable_where_a_gradient_is_wanted(plane, digits):
    """The chain from `bundle.energy`, in data units, is the chain of its hand-written gradient."""
    for bundle, x, sampler in (
        (plane, points(), MALA(step_size=1e-4)),
        (digits, pixels(), ULA(step_size=1e-3)),  # which leaves [0, 1]
    ):
        end = run_chain(sampler, bundle.energy, x, num_steps=3)
        assert end.shape == x.shape
        assert bool(end.isfinite().all())
        assert not torch.equal(end, x)
        assert not bundle.energy(x).requires_grad
        with torch.no_grad():
            assert not bundle.energy(x.requires_grad_(True)).requires_grad
    with pytest.raises(UserError, match="add the batch axis"):
        digits.energy(torch.zeros(1, 8, 8, requires_grad=True))
    x = points(3).double().requires_grad_(True)
    (g,) = torch.autograd.grad(plane.energy(x).sum(), x)
    step = 1e-2 * torch.eye(2)[0]
    slope = (plane.energy(x.detach() + step) - plane.energy(x.detach() - step)) / 2e-2
    assert torch.allclose(g[:, 0].float(), slope, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("which", ["plane", "digits", "chains"])
def test_the_default_type_of_torch_changes_nothing(which, request):
    bundle = request.getfixturevalue(which)
    x = points() if which != "digits" else pixels()
    want = bundle.sample(3, num_steps=2, seed=1), bundle.energy(x), bundle.score(x)["p_value"], bundle.sample(0)
    torch.set_default_dtype(torch.float64)
    try:
        again = load(bundle.path)
        got = again.sample(3, num_steps=2, seed=1), again.energy(x), again.score(x)["p_value"], again.sample(0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "config.json", "card.md"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_written(digits, copy, name):
    (copy / name).unlink()
    (copy / name / "mine").mkdir(parents=True)
    before = {path: path.is_file() and path.read_bytes() for path in copy.rglob("*")}
    with pytest.raises(UserError, match=f"{name}: must be a file, and is a folder") as caught:
        digits.save_pretrained(copy)
    assert "\n" not in str(caught.value)
    assert {path: path.is_file() and path.read_bytes() for path in copy.rglob("*")} == before


def test_a_bundle_saved_over_another_leaves_none_of_its_files(digits, copy):
    bundle = load(copy)
    bundle.held_out_energies = None
    bundle.save_pretrained(copy)
    assert load(copy).held_out_energies is None


@pytest.mark.parametrize("junk", [b"", b"\xff\n\n", b"[\n]", b'{"format": 1,\n"files": {"a\\nb": 1}}', b"9" * 9999])
def test_a_manifest_of_junk_is_one_line(copy, junk):
    (copy / "manifest.json").write_bytes(junk)
    with pytest.raises(DamagedFile, match=r"manifest\.json") as caught:
        load(copy)
    assert len(str(caught.value).splitlines()) == 1


def test_more_samples_than_memory_holds_are_refused_at_once(plane):
    with pytest.raises(UserError, match="must fit in this machine's memory"):
        plane.sample(10**15)
