"""S7, S12, S18: Gibbs with gradients against its full transition matrix, and its law from exact draws, with mutants."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian
from thalweg.energy.base import energy_and_grad
from thalweg.energy.enumeration import all_states
from thalweg.sampler.chain import run_chain, transitions
from thalweg.sampler.gibbs_with_gradients import GibbsWithGradients, moved
from thalweg.sampler.langevin import LangevinState

from .invariance import POWER, check_one_by_one
from .machines import machine
from .stats import ALPHA, assert_law, assert_near


class Lattice:
    """E(x) = -s·J s / 2 - h·s + (h·s)³ / 9 of spins s = 2 x - 1; the cube makes the gradient's prediction inexact."""

    num_states = 2

    def __init__(self, num_units: int):
        draws = generator(0, "lattice")
        j = torch.randn(num_units, num_units, generator=draws, dtype=torch.float64)
        self.j, self.h = 0.3 * (j + j.T), 0.5 * torch.randn(num_units, generator=draws, dtype=torch.float64)
        self.j.fill_diagonal_(0)

    def __call__(self, x: Tensor) -> Tensor:
        s, field = 2 * x - 1, ((2 * x - 1) * self.h.to(x)).sum(1)
        return -0.5 * (s * (s.unsqueeze(1) * self.j.to(x)).sum(-1)).sum(1) - field + field.pow(3) / 9


class Colours:
    """E(x) = -x·W x / 2 + (b·x)³ of units with three states, x (B, M, 3) one-hot."""

    num_states = 3

    def __init__(self, num_units: int):
        draws, n = generator(1, "colours"), 3 * num_units
        w = torch.randn(n, n, generator=draws, dtype=torch.float64)
        self.w, self.b = 0.2 * (w + w.T), 0.3 * torch.randn(n, generator=draws, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        pairs = (x * (x.unsqueeze(1) * self.w.to(x)).sum(-1)).sum(1)
        return -0.5 * pairs + (x * self.b.to(x)).sum(1).pow(3)


def ternary(num_units: int) -> Tensor:
    number = torch.arange(3**num_units)[:, None] // 3 ** torch.arange(num_units - 1, -1, -1)
    return torch.nn.functional.one_hot(number % 3, 3).double()


class Case(NamedTuple):
    """An energy, all its states, and the inverse of their order."""

    energy: object
    states: Tensor

    def number(self, x: Tensor) -> Tensor:
        """The place of each row in `states`."""
        base = self.energy.num_states
        digits = x.long() if base == 2 else x.argmax(-1)
        return (digits * base ** torch.arange(digits.shape[1] - 1, -1, -1)).sum(1)

    def tabulated(self) -> "Case":
        """The same with energies and gradients from a table of the states, which is fast."""
        u, g = energy_and_grad(self.energy, self.states)
        table = type("Table", (), {"num_states": self.energy.num_states, "__call__": lambda _, x: u[self.number(x)]})
        table.value_and_grad = lambda _, x: (u[self.number(x)], g[self.number(x)])
        return Case(table(), self.states)

    def law(self, temperature: float = 1.0) -> Tensor:
        return torch.softmax(-self.energy(self.states).detach() / temperature, 0)


CASES = {
    "rbm": lambda n=8: Case(machine((n,), 4), all_states(n)),
    "lattice": lambda n=8: Case(Lattice(n), all_states(n)),
    "colours": lambda n=5: Case(Colours(n), ternary(n)),
}


def matrix(case: Case, sampler: GibbsWithGradients) -> Tensor:
    """T(x, x') of every pair of states: q(move | x) times the acceptance that the step itself gives for the move."""
    state, k = sampler.init(case.energy, case.states), case.energy.num_states
    q = sampler.log_proposal(state, k).exp()
    total, rows = q.cumsum(1), torch.arange(len(q))
    t = torch.zeros(len(q), len(q), dtype=torch.float64)
    for m in range(q.shape[1]):
        move = torch.full_like(rows, m)
        middle = total[:, m] - 0.5 * q[:, m]  # the uniform number that chooses this move
        _, info = sampler.step(case.energy, state, (middle, torch.ones_like(middle)))
        flow = q[:, m] * torch.where(q[:, m] > 0, info.acceptance, 0)
        t[rows, case.number(moved(case.states, move, k))] += flow
    t[rows, rows] += 1 - t.sum(1)
    return t


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_s7_the_transition_matrix_is_reversible(name, temperature):
    """S7: rows sum to 1, pi T = pi and detailed balance, to 1e-12."""
    case, sampler = CASES[name](), GibbsWithGradients(temperature=temperature)
    state = sampler.init(case.energy, case.states)
    assert float((sampler.log_proposal(state, case.energy.num_states).exp().sum(1) - 1).abs().max()) <= 1e-12
    t, pi = matrix(case, sampler), case.law(temperature)
    flow = pi[:, None] * t
    assert float(t.min()) >= -1e-12
    assert float((t.sum(1) - 1).abs().max()) <= 1e-12
    assert float((pi @ t - pi).abs().max()) <= 1e-12
    assert float((flow - flow.T).abs().max()) <= 1e-12
    assert float(pi @ t.diagonal()) < 0.7, "a chain that hardly moves is reversible too"


class NoProposalRatio(GibbsWithGradients):
    def log_ratio(self, state, end, forth, back):
        return super().log_ratio(state, end, 0, 0)


class SwappedRatio(GibbsWithGradients):
    def log_ratio(self, state, end, forth, back):
        return super().log_ratio(state, end, back, forth)


class StaleGradient(GibbsWithGradients):
    def step(self, energy, state, noise):
        moved, info = super().step(energy, state, noise)
        return moved._replace(g=state.g), info


class SharedUniform(GibbsWithGradients):
    def draw(self, state, generator):
        r, v = super().draw(state, generator)
        return r, v[:1].expand_as(v)


@pytest.mark.parametrize("mutant", [NoProposalRatio, SwappedRatio])
@pytest.mark.parametrize("name", CASES)
def test_s7_mutants_are_rejected(name, mutant):
    case = CASES[name]()
    pi = case.law()
    assert float((pi @ matrix(case, mutant()) - pi).abs().max()) > 1e-4


def check_law(name: str, sampler: GibbsWithGradients, num_steps: int, num_chains: int = 200_000) -> None:
    """S12: from exact draws the law of the states stays, by chi-square and by DKW; half of the chains move."""
    case = CASES[name](3 if name == "colours" else 5).tabulated()
    pi, draws = case.law(), generator(12, name)
    start = torch.multinomial(pi, num_chains, replacement=True, generator=draws)
    steps = transitions(sampler, case.energy, case.states[start], generator(13, name))
    for k in range(num_steps):
        state, info = next(steps)
        if k == 0:
            moved, a = (case.number(state.x) != start).double(), info.acceptance
            assert_near(moved.mean(), float(a.mean()), (a * (1 - a)).sum().sqrt() / num_chains)
            assert float(moved.mean()) > 0.3
        if k in (0, num_steps - 1):
            number = case.number(state.x)
            want = num_chains * pi
            chi_square = ((torch.bincount(number, minlength=len(pi)) - want).square() / want)[want > 5].sum()
            assert float(torch.special.gammaincc(0.5 * ((want > 5).sum() - 1).double(), 0.5 * chi_square)) > ALPHA
            within = torch.rand(num_chains, generator=draws, dtype=torch.float64)
            columns = []
            for order in (torch.arange(len(pi)), pi.argsort()):
                p = pi[order]
                place = order.argsort()[number]
                columns.append((p.cumsum(0) - p)[place] + within * p[place])
            assert_law(torch.stack(columns, 1), lambda v: v, power=POWER)


@pytest.mark.parametrize("name", CASES)
def test_s12_it_keeps_the_law(name):
    check_law(name, GibbsWithGradients(), 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_s12_it_keeps_the_law_of_more_chains(name):
    check_law(name, GibbsWithGradients(), 100, 400_000)


@pytest.mark.parametrize("mutant", [NoProposalRatio, SwappedRatio, StaleGradient, SharedUniform])
def test_s12_mutants_are_rejected(mutant):
    with pytest.raises(AssertionError):
        check_law("lattice", mutant(), 8 if mutant is StaleGradient else 1)


def test_s7_a_step_follows_the_matrix():
    """S7: frequencies of a step from every state within 5 sigma of the matrix."""
    case, n = CASES["lattice"](6), 4000
    sampler, size = GibbsWithGradients(), len(case.states)
    t = matrix(case, sampler)
    state = sampler.init(case.energy, case.states.repeat(n, 1))
    end, _ = sampler.step(case.energy, state, sampler.draw(state, generator(7, "noise")))
    pair = size * torch.arange(size).repeat(n) + case.number(end.x)
    count, want = torch.bincount(pair, minlength=size**2).double(), n * t.flatten()
    often = want > 25  # where the count is near enough to normal
    assert int(often.sum()) > 200
    assert float(((count - want) / (want * (1 - t.flatten())).sqrt())[often].abs().max()) < 5
    assert float(count[want == 0].sum()) == 0


@pytest.mark.parametrize("name", ["lattice", "colours"])
def test_s18_a_batch_is_its_chains_one_by_one(name):
    case = CASES[name]()
    check_one_by_one(GibbsWithGradients(), case.energy, case.states[5:40:5])


def test_one_gradient_a_step():
    class Counted(Lattice):
        calls = 0

        def __call__(self, x):
            self.calls += 1
            return super().__call__(x)

    energy = Counted(6)
    run_chain(GibbsWithGradients(), energy, torch.zeros(3, 6), num_steps=10)
    assert energy.calls == 11


def test_float32_chains_find_rare_moves():
    """4,000 units of which one has a probability of 1e-8 to be chosen: float32 has no number between 0 and 6e-8."""

    class Separate:
        num_states = 2

        def __call__(self, x):
            return 0.0 * x.sum(1)

    x = torch.zeros(2, 4000)
    state = LangevinState(
        x, torch.zeros(2), torch.zeros_like(x).index_fill(1, torch.tensor([7]), 20.25), torch.tensor(0)
    )
    sampler = GibbsWithGradients()
    log_q = sampler.log_proposal(state, 2)
    before = float(log_q[0, :7].exp().sum())
    r = torch.tensor([before + share * float(log_q[0, 7].exp()) for share in (0.5, 2.0)], dtype=torch.float64)
    end, _ = sampler.step(Separate(), state, (r, torch.zeros(2, dtype=torch.float64)))
    assert end.x.argmax(1).tolist() == [7, 8]


@pytest.mark.parametrize(
    ("energy", "x", "argument"),
    [
        (Gaussian((0.0,) * 6), torch.zeros(3, 6), "energy"),
        (Lattice(6), torch.full((3, 6), 0.3), "x"),
        (Lattice(6), -torch.ones(3, 6), "x"),
        (Colours(2), torch.zeros(3, 2, 3), "x"),
        (Colours(2), torch.eye(2).expand(3, 2, 2), "x"),
    ],
)
def test_what_it_refuses(energy, x, argument):
    with pytest.raises(UserError) as caught:
        run_chain(GibbsWithGradients(), energy, x, num_steps=1)
    assert caught.value.argument == argument
