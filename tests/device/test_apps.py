"""In-painting, classification, landscapes and evaluation by a bundle on a GPU."""

import copy

import pytest
import torch

import thalweg
from thalweg.apps.inpaint.inpaint import inpaint, restore
from thalweg.apps.inpaint.operators import Downsample, Pixels, matrix
from thalweg.apps.inpaint.posterior import Observation, RowNoise, Schedule, sample_posterior
from thalweg.apps.landscape.film import film
from thalweg.apps.landscape.survey import survey
from thalweg.core.rng import generator
from thalweg.data.toy import TOYS
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.linear_observation import LinearObservation
from thalweg.energy.noise_conditional.residual import ResidualEnergy
from thalweg.evaluate.calibration import reliability
from thalweg.evaluate.corruptions import corrupted
from thalweg.evaluate.digit_network import DigitNetwork, features_and_classes
from thalweg.evaluate.samples import baselines
from thalweg.evaluate.suite import evaluate_bundle

from .simulated import GPU, REAL, gpu, same
from .watch import DEVICE, no_waiting

QUICK = Schedule(num_steps=2, chain_steps=5)


def rows(bundle, n=5):
    if bundle.kind == "image":
        return torch.rand(n, *bundle.shape, generator=generator(7, "pixels"))
    return TOYS["eight-gaussians"].sample(n, generator(7, "points"))


def known(bundle, n=5):
    """Which numbers are known: all, none, and the first half."""
    mask = torch.zeros(n, *bundle.shape, dtype=torch.bool)
    mask[0] = True
    mask.flatten(1)[2:, : mask[0].numel() // 2] = True
    return mask


@pytest.mark.parametrize("name", ["plane", "digits", "chains"])
def test_completions_come_back_to_where_the_images_were(name, request):
    """A mutant that leaves observations, row noise or the mixture's draw on the CPU is caught."""
    bundle = request.getfixturevalue(name)
    x, mask = rows(bundle), known(bundle)
    wanted = inpaint(bundle, x, mask, n=2, seed=1, schedule=QUICK)
    with gpu():
        there = thalweg.load(bundle.path, device="cuda:0")
        for given, observed in ((x, mask), (x.to(GPU), mask), (x.to(GPU), mask.to(GPU))):
            found = inpaint(there, given, observed, n=2, seed=1, schedule=QUICK)
            assert {part.device for part in found} == {given.device}
            assert same(found.images[:, 0], x[:1].expand(2, *x.shape[1:]))
            assert REAL or same(found.images, wanted.images)
            assert REAL or same(found.ranking, wanted.ranking)
        if name == "plane":  # the method has the whole schedule, which takes chains ten seconds
            assert there.inpaint(x.to(GPU), mask).device == GPU


def test_restored_images_come_back_to_where_the_measurements_were(digits):
    operator = Downsample(factor=2)
    b = operator(rows(digits))
    wanted = restore(digits, b, operator, n=2, noise=0.1, schedule=QUICK)
    with gpu():
        there = thalweg.load(digits.path, device="cuda:0")
        for given in (b, b.to(GPU)):
            found = restore(there, given, operator, n=2, noise=0.1, schedule=QUICK)
            assert found.images.device == given.device
            assert REAL or same(found.images, wanted.images)


def test_a_draw_of_the_posterior_waits_for_nothing():
    """A mutant that reads a level, a row's number or a posterior's weight back to the host is caught."""
    energy = ResidualEnergy(shape=(3,), width=8, num_blocks=1).to(DEVICE)
    linear = LinearObservation.from_matrix(matrix(Pixels(torch.tensor([True, False, False])), (3,)), 0.1)
    there = Observation(torch.arange(4), linear, torch.rand(4, 1)).to(DEVICE)
    noise = RowNoise([generator(0, "rows", i, device=DEVICE) for i in range(4)], 3)
    mixture, schedule = MixtureOfFactorAnalyzers.example().to(DEVICE), Schedule(num_steps=3, corrected=0)
    with no_waiting():
        found = sample_posterior(energy, [there], noise, schedule, mixture=mixture)
    assert found.shape == (4, 3)


@pytest.mark.parametrize("name", ["plane", "digits"])
def test_the_energy_of_positions_waits_for_nothing(name, request):
    """As a sampler that takes `bundle.energy` asks for it; a mutant that looks at the numbers is caught."""
    bundle = copy.copy(request.getfixturevalue(name))
    bundle.model = copy.deepcopy(bundle.model).to(DEVICE)
    x = torch.empty(4, *bundle.shape, device=DEVICE).requires_grad_()
    bundle.energy(x)  # the transform's numbers are sent once
    with no_waiting():
        (g,) = torch.autograd.grad(bundle.energy(x).sum(), x)
    assert g.shape == x.shape


@pytest.fixture(scope="module")
def joint(train_bundle, tmp_path_factory):
    overrides = ["energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16", "energy.hidden=8"]
    overrides += ["train.batch_size=16", "objective.rows=8", "objective.radius=0"]
    return train_bundle(tmp_path_factory.mktemp("joint") / "run", "digits", "jem", steps=3, overrides=overrides)


def test_classes_come_back_to_where_the_rows_were_and_are_drawn_on_the_device(joint):
    """A mutant that leaves the asked labels on the CPU is caught."""
    x = rows(joint)
    wanted, drawn = joint.classify(x), joint.sample(3, labels=[1, 2, 3], num_steps=2, strength=2.0)
    with gpu():
        there = thalweg.load(joint.path, device="cuda:0")
        for given in (x, x.to(GPU)):
            assert same(there.classify(given), wanted)
            assert there.classify(given).device == given.device
        found = there.sample(3, labels=torch.tensor([1, 2, 3]), num_steps=2, strength=2.0)
        assert found.device == GPU
        assert REAL or same(found, drawn)


@pytest.mark.parametrize("name", ["plane", "digits", "chains"])
def test_a_landscape_is_computed_there_and_drawn_here(name, request):
    """A mutant that leaves a surface, a chain or a path on the device is caught."""
    bundle = request.getfixturevalue(name)
    x = rows(bundle, 40)
    with gpu():
        there = thalweg.load(bundle.path, device="cuda:0")
        found = survey(there, x.to(GPU), size=8, num_samples=8, brief=True)
        moving = film(there, found, size=8)
    surfaces = [(s.s, s.t, s.u) for s in found.surfaces]
    parts = [*surfaces[0], found.basins.minima, found.data, found.straight.u, *found.trace[:3]]
    parts += [*found.histograms.values(), moving.points, *(surface.u for surface in moving.surfaces)]
    assert {part.device.type for part in parts} == {"cpu"}
    assert len(found.trace.level) > 3


def test_an_evaluation_computes_there_and_counts_here(plane):
    """A mutant that mixes the ODE's second opinion of two devices is caught."""
    x = rows(plane, 80)
    sets = {"train": x[:40], "held_out": x[40:]}
    options = {"num_samples": 20, "num_ode": 4, "ode_steps": 2}
    wanted = evaluate_bundle(plane, **sets, **options).figures
    with gpu():
        there = thalweg.load(plane.path, device="cuda:0")
        found = evaluate_bundle(there, **{name: part.to(GPU) for name, part in sets.items()}, **options).figures
    for name in ("nats", "nats_samples"):
        assert REAL or found["likelihood"][name] == pytest.approx(wanted["likelihood"][name], rel=1e-4)
    assert REAL or found["likelihood"]["ode"] == pytest.approx(wanted["likelihood"]["ode"], rel=1e-3)


def test_the_digit_network_reads_digits_where_it_lies():
    x = torch.rand(3, 1, 28, 28, generator=generator(0, "pixels"))
    network = DigitNetwork()
    wanted = features_and_classes(network, x)[1]
    with gpu():
        assert same(features_and_classes(network.to(GPU), x)[1], wanted)


def test_corruptions_baselines_and_calibration_lie_where_the_rows_do():
    """A mutant that mixes the CPU's draws with rows of the device is caught."""
    images, table = torch.rand(9, 1, 8, 8, generator=generator(0, "pixels")), torch.randn(9, 3)
    p, labels = table.softmax(1), torch.arange(9) % 3
    sets = [(corrupted, (x,)) for x in (images, table)] + [(baselines, (x, x)) for x in (images, table)]
    wanted = [of(*given) for of, given in sets]
    with gpu():
        for (of, given), want in zip(sets, wanted, strict=True):
            found = of(*(x.to(GPU) for x in given))
            assert all(part.device == GPU and same(part, want[name]) for name, part in found.items())
        assert reliability(p.to(GPU), labels.to(GPU)).error == pytest.approx(reliability(p, labels).error)
