"""Planes hold their examples' energies, basins are where mathematics puts them, pictures are written whole."""

import json

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from thalweg.apps.landscape import basins, descent, interpolation, plane, survey, through_noise, window
from thalweg.apps.landscape.data_energy import at_level
from thalweg.apps.landscape.figures import figure
from thalweg.apps.landscape.picture_files import of_report, write
from thalweg.apps.rerank.reranker import EnergyReranker
from thalweg.bundle.dataset import data_of
from thalweg.core.errors import UserError
from thalweg.data.catalog import as_float
from thalweg.energy.engine.freeze import frozen

TILT = 3.0


AXES = torch.tensor([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]], dtype=torch.float64)


def wells(x):
    """4 (p² - 1)² + 3 p + 2 q² in axes turned against the grid: two wells, their ridge the line p = root."""
    p, q = (x @ AXES.T.to(x.dtype)).unbind(1)
    return 4 * (p**2 - 1) ** 2 + TILT * p + 2 * q**2


def on_axis(*p):
    """The points with these p, and q = 0."""
    return (torch.tensor(p, dtype=torch.float64)[:, None] * AXES[0]).float()


MINIMUM_LOW, RIDGE, MINIMUM_HIGH = sorted(np.roots([16, 0, -16, TILT]).real)


def box(half=2.0, size=61):
    corners = torch.tensor([[-half, -half], [half, half]])
    return lambda energy: window(energy, corners, size=size, margin=0.0)


def test_a_plane_passes_through_its_examples():
    """In 20 dimensions, askew: the table's cells at the corners are the energies of the examples, within 1e-5."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 20, generator=generator)

    def energy(x):
        return x.square().sum(1) / 2 + torch.sin(3 * x).sum(1)

    surface = plane(energy, a, b, c, size=30)
    for corner, x in zip(surface.corners, (a, b, c), strict=True):
        i, j = (
            int((axis - place).abs().argmin())
            for axis, place in zip((surface.t, surface.s), corner.flip(0), strict=True)
        )
        assert abs(float(surface.u[i, j] - energy(x[None])[0])) < 1e-5
        there = surface.origin + corner[0] * surface.basis[0] + corner[1] * surface.basis[1]
        torch.testing.assert_close(there, x, atol=1e-6, rtol=0)
    gram = surface.basis.flatten(1) @ surface.basis.flatten(1).T
    torch.testing.assert_close(gram, torch.eye(2), atol=1e-6, rtol=0)


def test_examples_whose_lines_nearly_meet_keep_their_own():
    """c lies almost over a: a line each, not one line for both."""
    a, b, c = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.01, 7.0]])
    surface = plane(wells, a, b, c, size=20)
    for k, axis in enumerate((surface.s, surface.t)):
        assert bool((surface.corners[:, k : k + 1] == axis).any(1).all())
        assert bool((axis.diff() > 0).all())


def ridge_error(label, surface):
    """Share of cells on the wrong side of the true ridge, those within a cell of it left out."""
    grid = torch.stack(torch.meshgrid(surface.s, surface.t, indexing="xy"), dim=-1)
    p = grid @ AXES[0].float()
    gap = float(surface.s.diff().max())
    clear = (p - RIDGE).abs() > gap
    deep = p < RIDGE
    return float(((label == 0) != deep)[clear].double().mean())


def test_basins_of_a_double_well():
    """The ridge, both minima and the pass are known in closed form. The mutant that gives each cell to the nearest
    minimum is rejected, since the ridge is not in the middle.
    """
    surface = box()(wells)
    found = basins(surface)
    expected = on_axis(MINIMUM_LOW, MINIMUM_HIGH)
    torch.testing.assert_close(found.minima, expected, atol=5e-3, rtol=0)
    torch.testing.assert_close(found.u, wells(expected), atol=5e-3, rtol=0)
    assert ridge_error(found.label, surface) == 0
    grid = torch.stack(torch.meshgrid(surface.s, surface.t, indexing="xy"), dim=-1)
    mutant = torch.cdist(grid.reshape(-1, 2), found.minima).argmin(1).reshape(surface.u.shape)
    assert ridge_error(mutant, surface) > 0.02
    (way,) = found.passes
    height = float(wells(on_axis(RIDGE)))
    assert way.u == pytest.approx(height, abs=0.1)
    assert float(wells(way.path).max()) == pytest.approx(height, abs=0.1)


def test_a_shallow_basin_joins_its_neighbour():
    depth = float(wells(on_axis(RIDGE)) - wells(on_axis(MINIMUM_HIGH)))
    surface = box()(wells)
    assert len(basins(surface, min_depth=0.9 * depth).minima) == 2
    joined = basins(surface, min_depth=1.2 * depth)
    assert len(joined.minima) == 1
    assert not joined.passes
    assert bool((joined.label == 0).all())


def test_four_wells_are_four_basins_and_three_passes():
    found = basins(box()(lambda x: 4 * (x.square() - 1).square().sum(1) + 0.3 * x[:, 0] + 0.2 * x[:, 1]))
    assert len(found.minima) == 4
    assert len(found.passes) == 3
    assert len({v for p in found.passes for v in p.basins}) == 4


def test_descent_never_rises_and_ends_in_the_minimum_of_its_side():
    x = on_axis(RIDGE - 0.05, RIDGE + 0.05) + torch.stack([AXES[1], -AXES[1]]).float()
    line = descent(wells, x, max_move=0.05, num_steps=500)
    assert bool((line.u.diff(dim=0) <= 0).all())
    assert float(line.x.diff(dim=0).norm(dim=2).max()) <= 0.05 + 1e-6
    expected = on_axis(MINIMUM_LOW, MINIMUM_HIGH)
    torch.testing.assert_close(line.x[-1], expected, atol=0.02, rtol=0)


def test_interpolation_begins_and_ends_at_the_examples():
    a, b = torch.tensor([0.3, 0.7]), torch.tensor([-1.1, 0.2])
    path = interpolation(wells, a, b, num=11)
    assert torch.equal(path.x[0], a)
    assert torch.equal(path.x[-1], b)
    assert path.barrier == pytest.approx(float(path.u.max() - max(path.u[0], path.u[-1])))


def test_holes_are_counted_and_drawn(plane_survey, tmp_path):
    bundle, found = plane_survey

    def torn(x):
        return torch.where(x[:, 0] > 0.8, torch.nan, wells(x))

    surface = box()(torn)
    expected = int((surface.s > 0.8).sum()) * len(surface.t)
    assert surface.num_holes == expected > 0
    label = basins(surface).label
    assert int((label < 0).sum()) == expected
    torn_survey = found._replace(surfaces=[surface], basins=basins(surface))
    texts = [text.get_text() for text in figure(torn_survey).findobj(Text)]
    assert any(f"{expected} cells" in text for text in texts)
    write(tmp_path / "torn.html", bundle, torn_survey)
    with pytest.raises(UserError, match="must be finite somewhere"):
        box()(lambda x: x[:, 0] * torch.nan)


@pytest.fixture(scope="module")
def plane_survey(plane):
    return plane, look(plane)


def look(bundle, **keywords):
    data = data_of(bundle)
    return survey(bundle, as_float(data.held_out), labels=data.held_out_labels, size=16, num_samples=20, **keywords)


def test_pictures_that_stand_and_move(plane_survey, digits, tmp_path):
    write(tmp_path / "one.png", digits, look(digits))
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width > 1000
    write(tmp_path / "one.gif", *plane_survey)
    with Image.open(tmp_path / "one.gif") as picture:
        assert picture.n_frames > 5


@pytest.mark.parametrize("name", ["plane", "digits", "chains"])
def test_every_kind_of_bundle_is_a_page(name, request, tmp_path):
    bundle = request.getfixturevalue(name)
    write(tmp_path / "one.html", bundle, look(bundle))
    page = (tmp_path / "one.html").read_text("utf-8")
    assert len(page) < 1_000_000
    assert "http" not in page.replace("http-equiv", "")
    scene = json.loads(page.split('<script type="application/json" id="scene">')[1].split("</script>")[0])
    assert len(scene["shown"]) == len(scene["points"]) > 5


def test_the_report_has_the_picture(chains, caplog):
    rows = as_float(data_of(chains).held_out)
    assert list(of_report(chains, rows, None)) == ["The landscape"]
    assert of_report(chains, rows[:2], None) == {}
    assert of_report(chains, torch.ones(50, 2), None) == {}
    assert "no landscape in the report" in caplog.text


def test_the_same_seed_gives_the_same_picture(plane_survey, tmp_path):
    bundle, found = plane_survey
    write(tmp_path / "one.html", bundle, found)
    write(tmp_path / "two.html", bundle, look(bundle))
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    write(tmp_path / "other.html", bundle, look(bundle, seed=1), seed=1)
    assert (tmp_path / "one.html").read_bytes() != (tmp_path / "other.html").read_bytes()


def test_the_lowest_surface_is_the_bundles_energy(digits):
    found = look(digits)
    surface = found.surfaces[0]
    s, t = ((surface.corners[:, k : k + 1] - axis).abs().argmin(1) for k, axis in enumerate((surface.s, surface.t)))
    torch.testing.assert_close(surface.u[t, s], digits.energy(found.examples), atol=1e-2, rtol=1e-5)


def test_a_path_through_the_noise_begins_and_ends_near_the_examples(plane):
    rows = as_float(data_of(plane).held_out)[:2]
    with frozen(plane.model) as model:
        path = through_noise(plane, model, rows[0], rows[1], num_steps=60)
        assert float((path.x[[0, -1]] - rows).norm(dim=1).max()) < 0.05
        torch.testing.assert_close(path.u, at_level(plane, model)(path.x))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: plane(wells, torch.zeros(2), torch.ones(2), 2 * torch.ones(2)), "examples"),
        (lambda: plane(wells, torch.zeros(2), torch.ones(3), torch.ones(2)), "examples"),
        (lambda: plane(wells, torch.zeros(1), torch.ones(1), 2 * torch.ones(1)), "examples"),
        (lambda: plane(wells, torch.zeros(2), torch.ones(2), torch.tensor([0.0, torch.nan])), "examples"),
        (lambda: plane(wells, *torch.eye(3)[:, :2], size=2), "size"),
        (lambda: plane(lambda x: x, *torch.eye(3)), "energy"),
        (lambda: window(wells, torch.ones(5, 2)), "data"),
        (lambda: window(wells, torch.ones(5, 3)), "data"),
        (lambda: descent(wells, torch.zeros(1, 2), max_move=0.0), "max_move"),
        (lambda: basins(box()(wells), min_depth=-1.0), "min_depth"),
        (lambda: interpolation(wells, torch.zeros(2), torch.ones(2), num=1), "num"),
    ],
)
def test_what_is_wrong_is_named(call, argument):
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.argument == argument


def test_survey_and_write_name_what_is_wrong(plane, chains, plane_survey, tmp_path):
    for call, argument in (
        (lambda: survey(plane, torch.rand(2, 2)), "examples"),
        (lambda: survey(EnergyReranker(), torch.rand(9, 2)), "bundle"),
        (lambda: survey(plane, torch.rand(9, 2), examples=torch.rand(1, 2)), "examples"),
        (lambda: through_noise(chains, chains.model, torch.zeros(2), torch.ones(2)), str(chains.path)),
        (lambda: write(tmp_path / "one.jpeg", *plane_survey), str(tmp_path / "one.jpeg")),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.argument == argument


def test_a_brief_look_at_images_takes_the_chains_ends_for_samples(digits):
    data = data_of(digits)
    found = survey(digits, as_float(data.held_out), labels=data.held_out_labels, brief=True)
    assert max(found.surfaces[0].u.shape) == 21
    assert len(found.histograms["samples"]) == found.trace.x.shape[1] == 8
    z = digits.transform.forward(found.trace.x[-1]).requires_grad_(True)
    t = torch.full((8,), digits.t_min)
    (slope,) = torch.autograd.grad(digits.model(z, t).sum(), z)
    clean = digits.transform.inverse(z.detach() - digits.t_min * slope).clamp(0, 1)
    torch.testing.assert_close(found.histograms["samples"], digits.energy(clean), rtol=1e-4, atol=0.05)
    still_noisy = digits.energy(found.trace.x[-1].clamp(0, 1))  # the mutant: the last denoising step left out
    assert (found.histograms["samples"] - still_noisy).abs().min() > 1
