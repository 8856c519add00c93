"""Annealed samplers on a mixture whose U(y, t) is known: law, order of convergence, blocks; with mutants."""

import functools
import inspect
import math
import sys
import types

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.sampler import annealed, multistep
from thalweg.sampler.annealed import BLOCK, Ancestral, Heun, anneal
from thalweg.sampler.base import with_num_steps
from thalweg.sampler.chain import transitions
from thalweg.sampler.langevin import ULA
from thalweg.sampler.multistep import Multistep

from .stats import assert_law, assert_near, dkw_eps

WEIGHTS = torch.tensor([0.2, 0.8], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.5], [1.0, -0.25]], dtype=torch.float64)
STDS = torch.tensor([0.15, 0.3], dtype=torch.float64)
LOW, HIGH = 0.02, 10.0
N = 20_000


class Mixture:
    """-log p_t of a skewed two-mode mixture, closed form, float64; `prior` draws exactly from p at t_max."""

    shape, t_min, t_max = (2,), LOW**2, HIGH**2

    def __call__(self, y, t):
        v = STDS.square() + t[:, None]
        square = (y[:, None] - MEANS).square().sum(-1)
        return -torch.logsumexp(WEIGHTS.log() - square / (2 * v) - (2 * math.pi * v).log(), 1)

    def draw(self, n, t, gen):
        k = torch.multinomial(WEIGHTS, n, replacement=True, generator=gen)
        z = torch.randn(n, 2, generator=gen, dtype=torch.float64)
        return MEANS[k] + (STDS[k].square() + t).sqrt()[:, None] * z

    def prior(self, n, gen):
        return self.draw(n, HIGH**2, gen)

    def prior_log_prob(self, y):
        return -self(y, y.new_full((len(y),), HIGH**2))


def _cdf(x, t):
    """Exact distribution functions of four projections, (B, 4)."""
    directions = torch.tensor([[1.0, 0], [0, 1.0], [0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    place, centre = x @ directions.T, MEANS @ directions.T
    scale = (STDS.square() + t).sqrt()
    return (WEIGHTS[:, None] * torch.special.ndtr((place[:, None] - centre) / scale[:, None])).sum(1)


def end(sampler, n=N, seed=0):
    """Positions at sigma_min, without the last denoising."""
    gen = generator(seed, "annealed")
    x = Mixture().draw(n, HIGH**2, gen)
    steps = transitions(sampler, Mixture(), x, gen)
    for _ in range(sampler.num_steps):
        state, _ = next(steps)
    return state.x


SAMPLERS = {
    "heun": Heun(num_steps=60),
    "churn": Heun(num_steps=120, churn=0.05),
    "ancestral": Ancestral(num_steps=250),
    "half ancestral": Ancestral(num_steps=250, eta=0.5),
    "multistep": Multistep(num_steps=120),
    "noisy multistep": Multistep(num_steps=160, eta=3.0),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_reproduce_the_law(name):
    x = end(SAMPLERS[name])
    assert_law(x, lambda x: _cdf(x, LOW**2), power=0.021)
    share = (x[:, 0] > 0).double()
    exact = float((WEIGHTS * torch.special.ndtr(MEANS[:, 0] / (STDS.square() + LOW**2).sqrt())).sum())
    assert_near(share.mean(), exact, share.std() / math.sqrt(N))
    mean = WEIGHTS @ MEANS
    for j in range(2):
        assert_near(x[:, j].mean(), float(mean[j]), x[:, j].std() / math.sqrt(N))
        square = (x[:, j] - mean[j]).square()
        v = float((WEIGHTS * (STDS.square() + LOW**2 + (MEANS[:, j] - mean[j]).square())).sum())
        assert_near(square.mean(), v, square.std() / math.sqrt(N), sigmas=6)


def mutant(*changes, of=annealed):
    source = inspect.getsource(of)
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    made = types.ModuleType("mutant_of_annealed")
    sys.modules[made.__name__] = made
    exec(compile(source, made.__name__, "exec"), made.__dict__)
    return made


MUTANTS = {
    "Heun's second slope lacks sigma": ("heun", ("now * g + then * g_then", "now * g + g_then")),
    "Heun's slopes use one level": ("heun", ("AtNoise(energy, then**2), guess", "AtNoise(energy, now**2), guess")),
    "the ODE is run at twice the speed": ("heun", ("(then - now) / 2 *", "(then - now) *")),
    "churn raises sigma and adds no noise": ("churn", ("(raised**2 - now**2)", "0 * (raised**2 - now**2)")),
    "churn's noise is not squared off": ("churn", ("(raised**2 - now**2)", "(raised - now)")),
    "ancestral noise too large": ("ancestral", ("+ up * noise[0]", "+ 1.1 * up * noise[0]")),
    "ancestral moves to then, not to down": ("ancestral", ("(down - now) * now", "(then - now) * now")),
    "ancestral lacks the factor now": ("ancestral", ("(down - now) * now * g", "(down - now) * g")),
    "the multistep's noise is too small": ("noisy multistep", ("-2 * self.eta * h", "-self.eta * h")),
    "noise is added and not taken off": ("noisy multistep", ("-(1 + self.eta) * h", "-h")),
    "the flow goes too far": ("multistep", ("-(1 + self.eta) * h", "-1.1 * h")),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_rejected(name):
    which, change = MUTANTS[name]
    good = SAMPLERS[which]
    module = mutant(change, of=sys.modules[type(good).__module__])
    bad = getattr(module, type(good).__name__)(**{f: getattr(good, f) for f in good.__dataclass_fields__})
    x = end(bad)
    with pytest.raises(AssertionError, match="exceed"):
        assert_law(x, lambda x: _cdf(x, LOW**2), power=0.021)


def _flow(sampler):
    """The ends of 200 chains without noise, from the same starts."""
    gen = generator(3, "order")
    state = sampler.init(Mixture(), Mixture().draw(200, HIGH**2, gen))
    for _ in range(sampler.num_steps):
        state, _ = sampler.step(Mixture(), state, sampler.draw(state, gen))
    return state.x


@functools.cache
def _fine():
    return _flow(Heun(num_steps=1500))


def _slope(make):
    """Slope of log error against log steps, errors against a much finer run from the same starts."""
    counts = (80, 240)
    errors = [float((_flow(make(n)) - _fine()).norm(dim=1).median()) for n in counts]
    return -(math.log(errors[-1]) - math.log(errors[0])) / (math.log(counts[-1]) - math.log(counts[0]))


def test_orders_of_convergence_without_noise():
    assert 1.8 < _slope(lambda n: Heun(num_steps=n)) < 2.2
    assert 1.8 < _slope(lambda n: Multistep(num_steps=n)) < 2.2
    assert 0.85 < _slope(lambda n: Ancestral(num_steps=n, eta=0.0)) < 1.15
    euler = mutant(("(now * g + then * g_then)", "(2 * now * g)"))
    assert _slope(lambda n: euler.Heun(num_steps=n)) < 1.2
    for ahead in ("0 * h", "h / (last / now).log()"):
        first = mutant(("0.5 * h / (last / now).log()", ahead), of=multistep)
        assert 0.8 < _slope(lambda n, first=first: first.Multistep(num_steps=n)) < 1.2


@pytest.mark.parametrize("eta", [0.0, 1.0, 4.0])
def test_the_multistep_law_is_of_second_order_with_noise_too(eta):
    """The variance of a Gaussian is known: of normal numbers in, each step makes normal numbers, linear in them."""

    def error(n, module=multistep):
        sampler, s2, energy = module.Multistep(num_steps=n, eta=eta), 0.3**2, Mixture()
        normal = types.SimpleNamespace(t_min=energy.t_min, t_max=energy.t_max, value_and_grad=None)
        normal.value_and_grad = lambda y, t: (None, y / (s2 + t[:, None]))
        state = sampler.init(normal, torch.zeros(n + 1, 1, dtype=torch.float64))
        first = torch.eye(n + 1, dtype=torch.float64)  # row j: what the j-th of the independent numbers comes to
        state = state._replace(x=first[:, :1] * (s2 + HIGH**2) ** 0.5)
        for k in range(n):
            state, _ = sampler.step(normal, state, (first[:, k + 1 :][:, :1],))
        return abs(float(state.x.square().sum()) / (s2 + LOW**2) - 1)

    def order(module=multistep):
        return math.log2(error(200, module) / error(400, module))

    assert 1.8 < order() < 2.3
    assert order(mutant(("0.5 * h / (last / now).log()", "0 * h"), of=multistep)) < 1.2


def test_the_grid_runs_from_top_to_bottom():
    sampler = Heun(num_steps=30, rho=5.0)
    like = torch.zeros(1, dtype=torch.float64)
    sigma = torch.stack([sampler.sigma(Mixture(), torch.tensor(i), like) for i in range(31)])
    assert float(sigma[0]) == pytest.approx(HIGH)
    assert float(sigma[-1]) == pytest.approx(LOW)
    assert bool((sigma.diff(dim=0) < 0).all())


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: Heun(num_steps=0), "num_steps"),
        (lambda: Heun(num_steps=2.5), "num_steps"),
        (lambda: Heun(churn=-0.1), "churn"),
        (lambda: Heun(churn=math.inf), "churn"),
        (lambda: Heun(rho=0.0), "rho"),
        (lambda: Heun(rho=math.inf), "rho"),
        (lambda: Ancestral(eta=1.5), "eta"),
        (lambda: Ancestral(eta=math.nan), "eta"),
        (lambda: Ancestral(num_steps=0), "num_steps"),
        (lambda: Multistep(num_steps=0), "num_steps"),
        (lambda: Multistep(eta=-1.0), "eta"),
        (lambda: Multistep(eta=math.inf), "eta"),
    ],
)
def test_bad_numbers_are_refused(build, argument):
    with pytest.raises(UserError) as caught:
        build()
    assert caught.value.argument == argument


@pytest.mark.parametrize("name", SAMPLERS)
def test_blocks_do_not_depend_on_how_many_follow(name):
    sampler = with_num_steps(SAMPLERS[name], 10)
    short = [*anneal(sampler, Mixture(), BLOCK, seed=3)]
    long = [*anneal(sampler, Mixture(), 2 * BLOCK + 30, seed=3, num_corrections=0)]
    assert [len(block) for block in long] == [BLOCK, BLOCK, 30]
    assert torch.equal(short[0], long[0])
    assert not torch.equal(long[0], long[1])
    assert not torch.equal(long[0], next(anneal(sampler, Mixture(), BLOCK, seed=4)))
    assert [*anneal(sampler, Mixture(), 0)] == []


def _state():
    """What this thread works under, as torch knows it."""
    cpu = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return *cpu, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "around", [torch.no_grad, torch.enable_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_who_takes_the_blocks_works_under_settings_of_his_own(precision, around):
    """In the loop's body, after it, and where the loop is left early and the generator is kept."""
    with around():
        before = _state()
        blocks = anneal(Heun(num_steps=2), Mixture(), 3 * BLOCK, precision=precision)
        for _ in range(2):
            next(blocks)
            assert _state() == before
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if before[0] else torch.float32)
    assert not torch.is_autocast_enabled("cpu")
    del blocks
    assert not torch.is_autocast_enabled("cpu")


def test_the_deterministic_flow_gives_row_i_whatever_n():
    sampler = SAMPLERS["heun"]
    few = next(anneal(sampler, Mixture(), 7, seed=3))
    many = next(anneal(sampler, Mixture(), 60, seed=3))
    assert torch.allclose(few, many[:7], atol=1e-9)


class StartsExact(Mixture):
    """Its prior is the law at the lowest level, for a sampler that takes no step worth the name."""

    def prior(self, n, gen):
        return self.draw(n, LOW**2, gen)


class Still:
    """A sampler that leaves positions alone."""

    num_steps = 1

    def sigma(self, energy, i, like):
        return like.new_tensor(LOW)

    def init(self, energy, x):
        return annealed.AnnealedState(x, torch.zeros(()))

    def draw(self, state, gen):
        return ()

    def step(self, energy, state, noise):
        return state, None


def _corrected(module, num_corrections, n=N):
    """Exact draws at the lowest level after corrections, the last denoising step undone on the exact law's side."""
    return torch.cat([*module.anneal(Still(), StartsExact(), n, num_corrections=num_corrections, seed=5)])


def test_corrections_leave_the_law_as_it_was():
    """Against draws that were not corrected: same law after the same denoising step (two-sample DKW)."""
    plain, moved = _corrected(annealed, 0), _corrected(annealed, 5)
    assert float((plain - moved).norm(dim=1).median()) > LOW  # the chains did move
    eps = 2 * dkw_eps(N, 4)

    def gap(a, b):
        return max(_two_sample(a[:, j], b[:, j]) for j in range(2))

    assert gap(plain, moved) < eps
    heated = mutant(("MALA(step_size=0.2 * ", "ULA(temperature=50.0, step_size="), _IMPORT)
    assert gap(plain, _corrected(heated, 20)) > eps


_IMPORT = ("from thalweg.sampler.langevin import MALA", "from thalweg.sampler.langevin import ULA")


def _two_sample(a, b):
    grid = torch.cat([a, b]).sort().values
    count = [torch.searchsorted(v.sort().values, grid, right=True).double() / len(v) for v in (a, b)]
    return float((count[0] - count[1]).abs().max())


class Lacking:
    """An annealed sampler and an energy, each with one part taken away."""

    def __init__(self, whole, lacks):
        self.__dict__.update({name: getattr(whole, name) for name in PARTS if hasattr(whole, name) and name != lacks})


PARTS = ("init", "draw", "step", "num_steps", "sigma", "prior", "prior_log_prob", "t_min", "t_max", "shape")


@pytest.mark.parametrize("lacks", PARTS[:5])
def test_a_sampler_that_lacks_a_part_is_refused_before_any_work(lacks):
    with pytest.raises(UserError, match=lacks) as caught:
        anneal(Lacking(Still(), lacks), Mixture(), 3)
    assert caught.value.argument == "sampler"
    anneal(Lacking(Still(), None), Mixture(), 3)


@pytest.mark.parametrize("lacks", ["prior", "prior_log_prob", "t_min", "t_max"])
def test_an_energy_that_lacks_a_part_is_refused_before_any_work(lacks):
    energy = type("Energy", (Lacking,), {"__call__": Mixture.__call__})
    with pytest.raises(UserError, match=lacks) as caught:
        anneal(Still(), energy(Mixture(), lacks), 3)
    assert caught.value.argument == "energy"
    anneal(Still(), energy(Mixture(), None), 3)


@pytest.mark.parametrize("num_steps", [0, 2.5, "3"])
def test_a_sampler_of_no_steps_is_refused(num_steps):
    sampler = Lacking(Still(), None)
    sampler.num_steps = num_steps
    with pytest.raises(UserError) as caught:
        anneal(sampler, Mixture(), 3)
    assert caught.value.argument == "num_steps"


def test_another_number_of_steps():
    assert with_num_steps(Heun(churn=0.2), 7) == Heun(churn=0.2, num_steps=7)
    for sampler, argument in ((Still(), "num_steps"), (ULA(step_size=0.1), "sampler")):
        with pytest.raises(UserError) as caught:
            with_num_steps(sampler, 7)
        assert caught.value.argument == argument


@pytest.mark.parametrize("sampler", [Heun(num_steps=9, churn=0.3), Ancestral(num_steps=9), Multistep(num_steps=9)])
def test_the_levels_are_those_of_the_energy(sampler):
    """An energy is asked between its own t_min and t_max, ends included, and nowhere else."""
    asked = []

    class Watched(Mixture):
        t_min, t_max = 0.3**2, 4.0**2

        def __call__(self, y, t):
            asked.append(t)
            return super().__call__(y, t)

    torch.cat([*anneal(sampler, Watched(), 5)])
    sigma = torch.cat(asked).sqrt()
    assert float(sigma.min()) == pytest.approx(0.3)
    assert float(sigma.max()) == pytest.approx(4.0)


def test_the_last_step_denoises():
    """x = y - t grad U is E[x | y]: nearer to clean data than y by the share that the noise had."""
    x = torch.cat([*anneal(Still(), StartsExact(), 2000, seed=6)])
    y = torch.cat([StartsExact().prior(BLOCK, generator(6, "sample", k)) for k in range(20)])
    t = torch.full((2000,), LOW**2, dtype=torch.float64)
    y_grad = y.requires_grad_(True)
    (g,) = torch.autograd.grad(Mixture()(y_grad, t).sum(), y_grad)
    assert torch.allclose(x, (y - LOW**2 * g).detach(), atol=1e-12)
