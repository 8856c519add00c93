"""The sum over the rows that matter stays within its promise of the sum over all."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from thalweg.apps.anomaly.tabular.scalings import SCALINGS
from thalweg.core.errors import UserError
from thalweg.energy.density import kde_ivf as nearby
from thalweg.energy.density import kernel_sums
from thalweg.energy.density.kde import KernelDensityEnergy, leave_one_out, loo_bandwidth
from thalweg.energy.density.kde_ivf import LENGTHS, IVFKernelDensityEnergy, SearchParams


def table(n, seed=0):
    """Curved clusters in eight dimensions, a copy of every tenth row, and a few rows far out."""
    r = np.random.default_rng(seed)
    z = r.normal(size=(n, 3)) + 3 * r.integers(0, 4, size=(n, 1))
    x = np.sin(z @ np.random.default_rng(9).normal(size=(3, 8))) + 0.2 * r.normal(size=(n, 8))
    x[::10] = x[0:1] if n < 20 else x[1 : len(x[::10]) + 1]
    x[-5:] += 40 * r.normal(size=(5, 8))
    return torch.from_numpy(x)


@pytest.fixture(scope="module")
def rows():
    return table(6000)


@pytest.fixture(scope="module")
def energy(rows):
    return IVFKernelDensityEnergy(rows, t=loo_bandwidth(rows))


def gaps(energy, rows, x):
    return energy(x) - KernelDensityEnergy(rows, t=energy.t)(x)


def test_few_rows_decide_and_the_gap_is_as_promised(energy, rows):
    """Mean gap of new rows within three promises; the mutant, the rows of half a cell and none done again, is not."""
    new = table(3000, seed=1)[:-5]
    assert 0 < energy.search.num_candidates < len(rows) / 2
    assert energy.search.mean_loss <= energy.gap
    lost = gaps(energy, rows, new)
    assert float(lost.min()) > -1e-3
    assert float(lost.mean()) < 3 * energy.gap
    mutant = energy._energies(new, None, SearchParams(32, float("inf"), 0.0, 0.0))
    assert float((mutant - KernelDensityEnergy(rows, t=energy.t)(new)).mean()) > 3 * energy.gap


def test_the_nearest_row_is_found(energy, rows):
    """Recall of the nearest of all rows among the candidates of a row's cell, of rows that are not done again."""
    new = table(2000, seed=2)[:-5]
    new = new[energy(new) <= energy.search.exact_above]
    cell = torch.cdist(new * energy.unit, energy.centers).argmin(1)
    nearest = torch.cdist(new, rows).argmin(1)
    found = (energy._lists[cell] == nearest[:, None]).any(1).double().mean()
    assert float(found) > 0.98


def test_strange_rows_are_exact(energy, rows):
    strange = 5 * table(200, seed=3)
    assert bool((energy(strange) > energy.search.exact_above).all())
    torch.testing.assert_close(energy(strange), KernelDensityEnergy(rows, t=energy.t)(strange), rtol=1e-5, atol=1e-3)


def test_faint_rows_are_as_exact_as_others(rows, monkeypatch):
    """Rows whose sums float32 cannot hold (here 60 to 4,000 bits); the mutant that keeps them there loses them."""
    rows = rows[:2000]
    energy = IVFKernelDensityEnergy(rows, t=loo_bandwidth(rows))
    far = rows[:50] + 2.5 * math.sqrt(energy.t) * torch.arange(3, 28, 0.5)[:, None]
    exact = KernelDensityEnergy(rows, t=energy.t)(far)
    faint = energy._all(far, energy.unit, None, 5)
    assert bool((faint[:, 0] < kernel_sums.FAINT).any())
    constant = math.log(len(rows)) + 0.5 * rows.shape[1] * math.log(2 * math.pi * energy.t)
    torch.testing.assert_close(constant - math.log(2) * faint[:, 0], exact, rtol=1e-4, atol=1e-3)
    monkeypatch.setattr(kernel_sums, "FAINT", -math.inf)
    monkeypatch.setattr(kernel_sums, "BITS", math.inf)
    lost = math.log(2) * (faint - energy._all(far, energy.unit, None, 5))[:, 0]
    assert float(lost.abs().max()) > 1


def test_lists_of_cells_need_no_float64(rows, energy, monkeypatch):
    """Rows whose sums float32 cannot hold lie above tau: float64 is asked for with all rows, once."""
    taken, fine = [], kernel_sums.KernelSum.fine

    def noted(self, queries, at, own, k):
        taken.append((self.places is None, len(at)))
        return fine(self, queries, at, own, k)

    monkeypatch.setattr(kernel_sums.KernelSum, "fine", noted)
    far = rows[:30] + 2.5 * math.sqrt(energy.t) * torch.arange(1, 16, 0.5)[:, None]
    near_enough = (far * energy.unit - energy._whole.center).square().sum(1) < 0.9 * kernel_sums.BITS
    far = far[near_enough]
    energy(far)
    assert taken == [(True, len(far))]


def test_left_out_leaves_exactly_one_out(energy, rows):
    """Against all other rows; the mutant that keeps the row itself is lower by far."""
    u, own = leave_one_out(rows, [energy.t])[0], energy(rows)
    assert float((energy.leave_one_out() - u).abs().mean()) < 3 * energy.gap
    assert float((u - own).mean()) > 0.1


def test_beyond_the_limit_strange_rows_are_near_enough(rows, monkeypatch):
    """Above EXACT rows the second sum takes half of so many, and is within 1 % of strange rows' energies."""
    monkeypatch.setattr(nearby, "EXACT", 4000)
    energy = IVFKernelDensityEnergy(rows, t=loo_bandwidth(rows))
    assert 0 < energy.search.num_candidates <= max(LENGTHS)
    new = table(1000, seed=1)[:-5]
    assert float(gaps(energy, rows, new).mean()) < 3 * energy.gap
    strange = 5 * table(200, seed=3)
    exact = KernelDensityEnergy(rows, t=energy.t)(strange)
    assert float(((energy(strange) - exact) / exact).mean()) < 0.01


def test_no_gap_is_the_exact_sum_and_few_rows_are_too(rows):
    x = table(50, seed=1)
    for some in (rows[:3000], rows[:500]):
        energy = IVFKernelDensityEnergy(some, t=0.1, gap=0)
        torch.testing.assert_close(energy(x), KernelDensityEnergy(some, t=0.1)(x), rtol=1e-5, atol=1e-3)
        assert energy.search.num_candidates == 0


def test_what_was_found_before_need_not_be_sought(energy, rows):
    again = IVFKernelDensityEnergy(rows, t=energy.t, known=(SearchParams.of(energy.search), energy.centers))
    x = table(100, seed=1)
    assert torch.equal(again(x), energy(x))


def test_narrow_kernels_of_far_rows_keep_their_differences():
    """Squared distances of 1e10 bits in the sums: in float32, the mutant, the energies are off by nats."""
    r = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 3, generator=r, dtype=torch.float64) * 1e-3 + 1e4 * torch.eye(3)[[0, 1] * 1000]
    energy = IVFKernelDensityEnergy(rows, t=1e-6)
    torch.testing.assert_close(energy(rows[:50]), KernelDensityEnergy(rows, t=1e-6)(rows[:50]), rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("values", [{"t": 0.0}, {"t": float("inf")}, {"gap": -1.0}])
def test_senseless_values_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        IVFKernelDensityEnergy(torch.zeros(3, 2), **values)


@pytest.mark.parametrize("kind", [KernelDensityEnergy, IVFKernelDensityEnergy])
def test_rows_of_another_shape_are_refused_and_far_ones_have_infinite_energies(kind):
    """One column would be taken for each of three; infinity less infinity is NaN."""
    energy = kind(torch.zeros(5, 3) + torch.arange(5.0)[:, None])
    for x in (torch.zeros(2, 1), torch.zeros(3)):
        with pytest.raises(UserError) as error:
            energy(x)
        assert error.value.argument == "x"
    found = energy(torch.tensor([[1e30, 0, 0], [0, 0, 0]]))
    assert found.isinf().tolist() == [True, False]
    assert found[0] > 0


def test_the_largest_of_a_row_are_found_among_groups_of_columns():
    """Against a full sort, where maxima tie too; the mutant that keeps the first columns alone misses most."""
    r = torch.Generator().manual_seed(0)
    for columns in (64, 384, 512, 2048, 5000):
        numbers = torch.randn(40, columns, generator=r)
        numbers[:5] = numbers[:5].round()
        wanted = numbers.sort(1, descending=True).values[:, :5]
        found = kernel_sums._largest(numbers.clone(), 5).sort(1, descending=True).values
        assert torch.equal(found, wanted)
    assert not torch.equal(numbers[:, :64].sort(1, descending=True).values[:, :5], wanted)


def test_clusters_keep_the_gap_on_new_rows():
    """With centres that had seen the rows of the trial, up to .025 nats were lost; the mutant has too short lists."""
    r = np.random.default_rng(0)
    centers, shapes = 4 * r.normal(size=(12, 8)), r.normal(size=(12, 3, 8))
    which, z = r.integers(0, 12, 5000), r.normal(size=(5000, 3))
    x = centers[which] + np.einsum("nk,nkd->nd", z, shapes[which]) + 0.1 * r.normal(size=(5000, 8))
    rows, new = torch.from_numpy(x[:4000]), torch.from_numpy(x[4000:])
    energy = IVFKernelDensityEnergy(rows, t=loo_bandwidth(rows))
    assert energy.search.num_candidates > 0
    assert float(gaps(energy, rows, new).mean()) < energy.gap
    mutant = IVFKernelDensityEnergy(rows, t=energy.t, known=(SearchParams(128, 40.0, 0.0, 0.0), energy.centers))
    assert float(gaps(mutant, rows, new).mean()) > energy.gap


def test_a_pickle_has_the_rows_and_not_the_sums(energy, rows):
    """What is made of the rows is made anew, the same to the bit; they are hundreds of times larger."""
    wanted = energy(rows[:500])
    assert energy._sums
    text = pickle.dumps(energy)
    assert len(text) < 4 * rows.nbytes + energy._lists.nbytes
    torch.testing.assert_close(pickle.loads(text)(rows[:500]), wanted, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(energy)(rows[:500]), wanted, rtol=0, atol=0)


@pytest.fixture(scope="module")
def clusters():
    """(energy, exact energies of new rows, new rows): clusters of three dimensions in 32 columns, as normal scores."""
    law = np.random.default_rng(0)
    centers, shapes = 4 * law.normal(size=(12, 32)), law.normal(size=(12, 3, 32))

    def drawn(n, seed):
        r = np.random.default_rng([1, seed])
        which = r.integers(0, 12, n)
        z = r.normal(size=(n, 3))
        return centers[which] + np.einsum("nk,nkd->nd", z, shapes[which]) + 0.1 * r.normal(size=(n, 32))

    x = drawn(5000, 0)
    scores = SCALINGS["ranks"](x)
    rows, new = (torch.from_numpy(scores(y)) for y in (x, drawn(6000, 1)))
    energy = IVFKernelDensityEnergy(rows, t=loo_bandwidth(rows))
    return energy, KernelDensityEnergy(rows, t=energy.t)(new), new


def test_rows_at_a_clusters_edge_keep_their_sums(clusters):
    """No row loses a nat, and the mean is kept; the mutant, with tau alone, has a row that loses more than 5."""
    energy, exact, new = clusters
    assert energy.search.num_candidates > 0
    assert energy.search.exact_share < 0.1
    lost = energy(new) - exact
    assert float(lost.mean()) < energy.gap
    assert float(lost.max()) < 1
    before = SearchParams(256, 37.446, 0.0048, 0.007)  # what was chosen when tau alone was
    mutant = IVFKernelDensityEnergy(energy.rows / energy.unit, t=energy.t, known=(before, energy.centers))
    lost = mutant(new) - exact
    assert float(lost.mean()) > energy.gap
    assert float(lost.max()) > 5


def test_a_row_left_out_is_below_the_sum_of_a_list_that_reaches_it(clusters):
    """The inequality that kappa = 1 stands for; a mutant whose lists are said to reach 1.3 times as far breaks it."""
    energy, _, new = clusters
    length = 256
    cell, squared, queries = energy._placed(new, energy.unit)
    total = energy._near(cell, queries, None, length, 0)[:, 0]
    term = -torch.cdist(new * energy.unit, energy.rows).square()
    term = term.scatter(1, energy._lists[cell][:, :length], -math.inf).amax(1)
    sides = squared.sqrt() + total.clamp_max(0).neg().sqrt()
    for room, holds in ((1.0, True), (1.3, False)):
        inside = sides < room * energy._reach(length)[cell]
        assert bool(inside.double().mean() > 0.5)
        assert bool((term[inside] < total[inside] + 1e-3).all()) == holds


def test_lists_made_in_inference_mode_serve_outside_of_it(rows, energy):
    """Lists lie in one block of memory; the mutant, a block made in that mode, cannot take another list later."""
    again = IVFKernelDensityEnergy(rows, t=energy.t, known=(energy.search, energy.centers))
    with torch.inference_mode():
        again(rows[:1])
    assert torch.equal(again(rows[:500]), energy(rows[:500]))
