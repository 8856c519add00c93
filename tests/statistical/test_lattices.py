"""Ising and Potts energies by hand, and their exact sums: by enumeration, by transfer matrix, by closed forms."""

import itertools
import math

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.energy import ising, potts
from thalweg.energy.base import Bipartite, Discrete, HasExactLogZ
from thalweg.energy.enumeration import all_states
from thalweg.energy.ising import IsingEnergy
from thalweg.energy.potts import PottsEnergy

from .test_score_matching import mutant


def bonds(height, width, periodic):
    """Every pair of neighbours, one tuple a bond."""
    for i, j in itertools.product(range(height), range(width)):
        for k, m in ((i + 1, j), (i, j + 1)):
            alone = (height if k > i else width) == 1
            if not alone and (periodic or (k < height and m < width)):
                yield (i, j), (k % height, m % width)


def ising_by_hand(energy, x):
    """E of one position (H, W), bond by bond."""
    s = 2 * x - 1
    pairs = sum(float(s[a] * s[b]) for a, b in bonds(*x.shape, energy.periodic))
    return -energy.coupling.item() * pairs - energy.field.item() * float(s.sum())


def potts_by_hand(energy, x):
    """E of one position (H, W, K), bond by bond."""
    state = x.argmax(-1)
    pairs = sum(bool(state[a] == state[b]) for a, b in bonds(*state.shape, energy.periodic))
    return -energy.coupling.item() * pairs - energy.field[state].sum().item()


SHAPES = [(1, 5), (4, 1), (2, 3), (3, 4), (4, 2)]


def ising_of(shape, periodic, module=ising, coupling=0.6):
    return module.IsingEnergy(shape=shape, coupling=coupling, field=-0.3, periodic=periodic).double()


def potts_of(shape, periodic, module=potts):
    energy = module.PottsEnergy(shape=(*shape, 3), coupling=0.8, periodic=periodic).double()
    energy.field.data.copy_(torch.tensor([0.3, -0.2, 0.1]))
    return energy


def states(energy):
    """Every position of a lattice, (n, *shape)."""
    num = energy.num_states
    return all_states(math.prod(energy.shape[:2]), num).unflatten(1, energy.shape[:2])


def error(energy, by_hand, n=20):
    """max |E - E by hand| over some states."""
    x = states(energy)
    x = x[torch.linspace(0, len(x) - 1, n).long()]
    return max(abs(u.item() - by_hand(energy, row)) for u, row in zip(energy(x), x, strict=True))


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_energies_are_those_of_their_bonds(shape, periodic):
    assert error(ising_of(shape, periodic), ising_by_hand) < 1e-12
    if math.prod(shape) <= 8:
        assert error(potts_of(shape, periodic), potts_by_hand) < 1e-12


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [ising_of, potts_of])
def test_the_transfer_matrix_sums_over_every_state(make, shape, periodic):
    """log Z and its gradient, to 1e-12; also for neighbours that avoid each other."""
    if make is potts_of and math.prod(shape) > 8:
        shape = (2, 4)
    for sign in (1, -1):
        energy = make(shape, periodic)
        energy.coupling.data.mul_(sign)
        want = torch.logsumexp(-energy(states(energy)), 0)
        found = energy.log_z()
        assert abs((found - want).item()) < 1e-12 * abs(want.item()) + 1e-12
        parameters = list(energy.parameters())
        for a, b in zip(*(torch.autograd.grad(z, parameters) for z in (found, want)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_mutants_of_the_energies_are_rejected():
    """Each bond twice, the field without its sign, a lattice that never joins its ends."""
    twice = mutant(ising, "(1, 2))\n        return", "(1, 2, 1, 2))\n        return")
    assert error(ising_of((3, 4), True, twice), ising_by_hand) > 0.1
    unsigned = mutant(ising, "self.field.to(x.dtype) * s.", "self.field.to(x.dtype) * x.")
    assert error(ising_of((3, 4), True, unsigned), ising_by_hand) > 0.1
    opened = mutant(ising, "if periodic else", "if False else")
    assert error(ising_of((3, 4), True, opened), ising_by_hand) > 0.1


def kaufman(height, width, coupling):
    """log Z of the periodic lattice without field, in closed form (Kaufman 1949)."""
    k, n, m = coupling, height, width
    gamma = [math.acosh(math.cosh(2 * k) / math.tanh(2 * k) - math.cos(math.pi * r / n)) for r in range(2 * n)]
    gamma[0] = 2 * k + math.log(math.tanh(k))
    odd, even = gamma[1::2], gamma[0::2]
    product = lambda f, values: math.prod(2 * f(m * g / 2) for g in values)  # noqa: E731
    terms = [product(f, values) for values in (odd, even) for f in (math.cosh, math.sinh)]
    return math.log(sum(terms) / 2) + 0.5 * n * m * math.log(2 * math.sinh(2 * k))


@pytest.mark.parametrize(("shape", "coupling"), [((8, 8), 0.3), ((8, 8), 0.4407), ((4, 32), 0.5), ((2, 2), 0.7)])
def test_kaufmans_formula(shape, coupling):
    """The exact sum over up to 2^128 states against the closed form, to 1e-12."""
    energy = IsingEnergy(shape=shape, coupling=coupling).double()
    log_z, coupling = energy.log_z().item(), energy.coupling.item()
    assert log_z == pytest.approx(kaufman(*shape, coupling), rel=1e-12)
    assert log_z != pytest.approx(kaufman(*shape, 1.01 * coupling), rel=1e-4)


@pytest.mark.parametrize("num_states", [3, 7])
def test_a_ring_of_potts_units(num_states):
    """Z = (e^J + K - 1)^L + (K - 1) (e^J - 1)^L on a ring of L units."""
    energy = PottsEnergy(shape=(1, 40, num_states), coupling=0.9).double()
    e, k = math.exp(energy.coupling.item()), num_states
    assert energy.log_z().item() == pytest.approx(math.log((e + k - 1) ** 40 + (k - 1) * (e - 1) ** 40), rel=1e-12)


def test_their_capabilities():
    for energy in (IsingEnergy(), PottsEnergy()):
        assert isinstance(energy, Discrete)
        assert isinstance(energy, HasExactLogZ)
        assert not isinstance(energy, Bipartite)
    assert PottsEnergy(shape=(2, 2, 5)).num_states == 5


@pytest.mark.parametrize(("num_units", "num_states"), [(3, 2), (3, 3), (2, 5)])
def test_all_states_are_different_and_in_order(num_units, num_states):
    x = all_states(num_units, num_states)
    digits = x if num_states == 2 else x.argmax(-1)
    number = (digits.double() @ num_states ** torch.arange(num_units - 1, -1, -1).double()).long()
    assert torch.equal(number, torch.arange(num_states**num_units))
    assert ((x == 0) | (x == 1)).all()
    assert num_states == 2 or (x.sum(-1) == 1).all()


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: IsingEnergy(shape=(4,)), "shape"),
        (lambda: IsingEnergy(coupling=math.nan), "coupling"),
        (lambda: PottsEnergy(shape=(4, 4, 2)), "shape"),
        (lambda: IsingEnergy(shape=(11, 11)).log_z(), "shape"),
        (lambda: PottsEnergy(shape=(7, 8, 3)).log_z(), "shape"),
        (lambda: IsingEnergy(shape=(2, 2))(torch.zeros(3, 4)), "x"),
        (lambda: all_states(13, 3), "num_units"),
    ],
)
def test_errors_name_the_argument(make, argument):
    with pytest.raises(UserError) as caught:
        make()
    assert caught.value.argument == argument
