"""Schedules along the chain: their formulas, steps that follow them, chains that continue, recipes that name them."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

import thalweg
from thalweg.core import config
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.core.spec_of import spec_of
from thalweg.energy.analytic import Gaussian
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.objective.base import Batch
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.sampler.chain import run_chain, transitions
from thalweg.sampler.langevin import MALA, ULA
from thalweg.sampler.schedule import Cosine, Linear, Polynomial, Schedule, TemperatureOfNoise, WarmRestarts, value_at

from ..statistical.stats import assert_near

SCHEDULES = (
    Linear(first=0.2, last=0.05, num_steps=7),
    Cosine(first=0.2, last=0.05, num_steps=7),
    Polynomial(first=0.2, offset=3.0, power=0.55),
    WarmRestarts(first=0.2, last=0.05, num_steps=3),
)
PATH = "thalweg.sampler.schedule:"


def cosine(share: float) -> float:
    return 0.05 + 0.15 * (1 + math.cos(math.pi * share)) / 2


def want(schedule: Schedule, i: int) -> float:
    """The published formula, in Python's own numbers."""
    match schedule:
        case Linear():
            return 0.2 - 0.15 * min(i / 6, 1)
        case Cosine():
            return cosine(min(i / 6, 1))
        case Polynomial():
            return 0.2 * 3.0**0.55 * (3.0 + i) ** -0.55
        case _:
            return cosine((i % 3) / 3)


def at(schedule: Schedule, i: int) -> float:
    value = schedule(torch.tensor(i))
    assert value.shape == ()
    return float(value)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_is_its_formula(schedule):
    assert isinstance(schedule, Schedule)
    for i in (0, 1, 2, 3, 5, 6, 7, 100):
        assert at(schedule, i) == pytest.approx(want(schedule, i), rel=1e-14)
    assert at(schedule, 0) == pytest.approx(0.2)
    assert at(replace(schedule, first=0.0), 0) == pytest.approx(0.0, abs=1e-15)


def test_one_step_begins_at_its_first_value():
    for cls in (Linear, Cosine, WarmRestarts):
        assert at(cls(first=0.3, last=0.1, num_steps=1), 0) == pytest.approx(0.3)
    assert value_at(0.5, torch.tensor(3)) == 0.5


@dataclass(frozen=True, kw_only=True)
class OffByOne:
    """The mutant: each value comes a step late."""

    schedule: Schedule

    def __call__(self, i):
        return self.schedule((i - 1).clamp(min=0))


def check_steps(sampler, constant_at) -> None:
    """Each step equals that of a sampler with the constants of its number."""
    energy = Gaussian((0.5, -1.0), ((1.0, 0.3), (0.3, 0.5)))
    x, draws = energy.draw(40, generator(1, "x")), generator(2, "noise")
    state = sampler.init(energy, x)
    for i in range(8):
        noise = sampler.draw(state, draws)
        moved, info = sampler.step(energy, state, noise)
        plain, constant = constant_at(i).step(energy, state, noise)
        assert torch.allclose(moved.x, plain.x, rtol=0, atol=1e-14), f"step {i}"
        assert torch.allclose(info.acceptance, constant.acceptance, rtol=0, atol=1e-12), f"step {i}"
        assert int(moved.i) == i + 1
        state = moved


@pytest.mark.parametrize("h", SCHEDULES, ids=repr)
def test_a_step_takes_the_values_of_its_number(h):
    t = Linear(first=3.0, last=0.5, num_steps=5)
    values = [(want(h, i), at(t, i)) for i in range(8)]
    check_steps(ULA(step_size=h, temperature=t), lambda i: ULA(step_size=values[i][0], temperature=values[i][1]))
    check_steps(MALA(step_size=h, temperature=t), lambda i: MALA(step_size=values[i][0], temperature=values[i][1]))
    check_steps(ULA(step_size=h, noise=h), lambda i: ULA(step_size=values[i][0], temperature=values[i][0] / 2))
    check_steps(ULA(step_size=0.1, noise=0.4), lambda i: ULA(step_size=0.1, temperature=0.8))
    with pytest.raises(AssertionError, match="step 1"):
        check_steps(MALA(step_size=OffByOne(schedule=h)), lambda i: MALA(step_size=values[i][0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_schedule_that_stays_is_the_constant_bit_for_bit(dtype):
    x = torch.randn(50, 2, generator=generator(0, "x")).to(dtype)
    for cls in (ULA, MALA):
        flat = cls(step_size=Linear(first=0.13, last=0.13, num_steps=5))
        ends = [run_chain(s, Gaussian.example(), x, num_steps=12) for s in (flat, cls(step_size=0.13))]
        assert torch.equal(*ends)


SCHEDULED = (
    ULA(step_size=SCHEDULES[1], temperature=SCHEDULES[3]),
    ULA(step_size=SCHEDULES[2], noise=SCHEDULES[0]),
    MALA(step_size=Cosine(first=0.3, last=0.01, num_steps=100), temperature=SCHEDULES[3]),
)


@pytest.mark.parametrize("sampler", SCHEDULED, ids=["ula", "noise", "mala"])
def test_fifty_steps_and_fifty_more_are_a_hundred(sampler):
    energy, x = Gaussian.example(), torch.randn(20, 2, generator=generator(0, "x"))
    whole = run_chain(sampler, energy, x, num_steps=100, seed=3)
    half = run_chain(sampler, energy, x, num_steps=50, seed=3)
    assert torch.equal(run_chain(sampler, energy, half, num_steps=50, seed=3, start=50), whole)
    for start in (50, 0):
        noise = (generator(3, "chain", 50 + k) for k in range(50))
        end = [state.x for state, _ in transitions(sampler, energy, half, noise, start)][-1]
        assert torch.equal(end, whole) == (start == 50), "a schedule that begins again is another chain"


def test_the_variance_follows_the_schedule():
    """On a Gaussian of precision lambda a ULA step takes variance v to (1 - h lambda)² v + 2 h T, exactly."""
    energy, n = Gaussian((0.0, 0.0), ((1.0, 0.0), (0.0, 0.5))), 50_000
    h, t = Linear(first=0.4, last=0.1, num_steps=6), Cosine(first=2.0, last=0.5, num_steps=6)

    def check(sampler):
        v, x = torch.tensor([1.0, 0.5], dtype=torch.float64), energy.draw(n, generator(4, "start"))
        steps = transitions(sampler, energy, x, generator(5, "noise"))
        for i in range(6):
            state, _ = next(steps)
            v = (1 - at(h, i) * torch.tensor([1.0, 2.0])) ** 2 * v + 2 * at(h, i) * at(t, i)
            for k in (0, 1):
                assert_near(state.x[:, k].var(), float(v[k]), v[k] * math.sqrt(2 / n))

    check(ULA(step_size=h, temperature=t))
    with pytest.raises(AssertionError):
        check(ULA(step_size=h, temperature=OffByOne(schedule=t)))


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A schedule that notes the numbers it is asked for."""

    seen: list[int] = field(default_factory=list)

    def __call__(self, i):
        self.seen.append(int(i))
        return 0.01 + 0 * i.double()


@pytest.mark.parametrize("start", ["data", "persistent", "noise"])
def test_contrastive_divergence_counts_the_steps_of_a_visit(start):
    schedule = Recorded()
    cd = ContrastiveDivergence(sampler=ULA(step_size=schedule), num_steps=(2, 5), start=start, buffer_size=8)
    torch.manual_seed(0)
    energy, batch = MLPEnergy(shape=(2,), width=4, depth=1), Batch(torch.randn(8, 2), None)
    state = cd.init(energy, batch.x, generator(0, "init"))
    for progress, num_steps in ((0.0, 2), (0.3, 3), (0.99, 5)):
        schedule.seen.clear()
        _, state, _ = cd.loss(energy, state, batch, cd.draw(state, batch, generator(1, "draw"), progress))
        assert schedule.seen == list(range(num_steps))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("sampler", SCHEDULED, ids=["ula", "noise", "mala"])
def test_a_step_compiles_once(sampler):
    """Whole, without a compilation for each number."""
    energy, x = Gaussian.example().float(), torch.randn(6, 2, generator=generator(0, "x"))
    graphs = torch._dynamo.utils.counters["stats"]
    compiled = torch.compile(lambda state, noise: sampler.step(energy, state, noise), backend="eager", fullgraph=True)
    state, first, found = sampler.init(energy, x), graphs["unique_graphs"], []
    for k in range(4):
        noise = sampler.draw(state, generator(1, "noise", k))
        plain = sampler.step(energy, state, noise)[0]
        state = compiled(state, noise)[0]
        assert torch.allclose(state.x, plain.x, rtol=0, atol=1e-5)
        found.append(graphs["unique_graphs"] - first)
    assert found == [1, 1, 1, 1]


BASE = {"sampler": {"type": "thalweg.sampler.langevin:ULA", "step_size": 0.01}}
COSINE = {"type": f"{PATH}Cosine", "first": 0.02, "last": 0.001, "num_steps": 40}


@pytest.mark.parametrize(
    "texts",
    [
        [f"sampler.step_size={{type: '{PATH}Cosine', first: 0.02, last: 0.001, num_steps: 40}}"],
        [f"sampler.step_size.{text}" for text in ("first=0.02", "last=1e-3", f"type={PATH}Cosine", "num_steps=40")],
    ],
)
def test_an_override_makes_a_schedule(texts):
    spec = config.override(BASE, texts)["sampler"]
    assert spec["step_size"] == COSINE
    sampler = config.build(spec, "sampler")
    assert sampler == ULA(step_size=Cosine(first=0.02, last=0.001, num_steps=40))
    assert config.build(spec_of(sampler), "sampler") == sampler
    other = config.override({"sampler": spec}, [f"sampler.step_size.type={PATH}Polynomial"])["sampler"]["step_size"]
    assert other == {"type": f"{PATH}Polynomial", "first": 0.02}


def test_an_override_gives_a_schedule_to_a_key_that_is_not_there_yet():
    linear = ("noise.type=" + PATH + "Linear", "noise.first=0.3", "noise.last=0.1", "noise.num_steps=9")
    sampler = config.build(config.override(BASE, [f"sampler.{text}" for text in linear])["sampler"])
    noise = Linear(first=0.3, last=0.1, num_steps=9)
    assert sampler == ULA(step_size=0.01, noise=noise)
    assert sampler.temperature == TemperatureOfNoise(noise=noise, step_size=0.01)
    assert config.build(spec_of(sampler)) == sampler
    for key in ("sampler.stepsize.type", "sampler.step_size.typ", "smapler.noise.type"):
        with pytest.raises(UserError) as caught:
            config.override(BASE, [f"{key}={PATH}Linear"])
        assert caught.value.argument in (key, key.rpartition(".")[0], key.partition(".")[0])


def test_a_run_keeps_its_schedules(train_bundle, tmp_path):
    texts = (f"type={PATH}Cosine", "first=0.02", "last=0.01", "num_steps=9")
    given = [f"{key}.step_size.{text}" for key in ("sampler", "objective.sampler") for text in texts]
    given += ["energy.width=8", "train.batch_size=16", "objective.buffer_size=64", "objective.num_steps=2"]
    bundle = train_bundle(tmp_path / "run", "two-moons", "pcd", 2, given)
    again = thalweg.load(tmp_path / "run")
    assert again.sampler == bundle.sampler == ULA(step_size=Cosine(first=0.02, last=0.01, num_steps=9))
    x = again.sample(4, num_steps=12)
    assert torch.equal(x, bundle.sample(4, num_steps=12))
    again.sampler = ULA(step_size=0.02)
    assert not torch.equal(x, again.sample(4, num_steps=12))


class Negative:
    def __call__(self, i):
        return 0.1 - 0.001 * i.double()


class Wide:
    def __call__(self, i):
        return i.double().expand(2)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Linear(first=-0.1, last=0.1, num_steps=3), "first"),
        (lambda: Cosine(first=0.1, last=float("nan"), num_steps=3), "last"),
        (lambda: Cosine(first=float("inf"), last=0.1, num_steps=3), "first"),
        (lambda: WarmRestarts(first=0.1, last=0.1, num_steps=0), "num_steps"),
        (lambda: Linear(first=0.1, last=0.1, num_steps=2.5), "num_steps"),
        (lambda: Polynomial(first=0.1, offset=0.0), "offset"),
        (lambda: Polynomial(first=0.1, power=-1.0), "power"),
        (lambda: ULA(step_size=Linear(first=0.1, last=0.0, num_steps=30)), "step_size"),
        (lambda: MALA(step_size=Negative()), "step_size"),
        (lambda: MALA(step_size=0.1, temperature=Cosine(first=1.0, last=0.0, num_steps=5)), "temperature"),
        (lambda: ULA(step_size=Wide()), "step_size"),
        (lambda: ULA(step_size=Linear), "step_size"),
        (lambda: ULA(step_size="word"), "step_size"),
        (lambda: ULA(step_size=0.1, noise=-0.1), "noise"),
        (lambda: ULA(step_size=0.1, noise=Negative()), "noise"),
        (lambda: ULA(step_size=0.1, noise=0.1, temperature=1.0), "noise"),
        (lambda: TemperatureOfNoise(noise=0.1, step_size=0.0), "step_size"),
    ],
)
def test_bad_schedules_are_refused_when_they_are_made(make, argument):
    with pytest.raises(UserError) as caught:
        make()
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)


def test_an_error_shows_the_number_that_a_schedule_gives():
    with pytest.raises(UserError, match=r"step_size=0\.0: must be positive"):
        MALA(step_size=Linear(first=0.1, last=0.0, num_steps=3))


def test_cyclical_schedules_may_end_at_zero():
    """The last step of a cycle is above zero, as in Zhang et al. (2020); a temperature of zero is descent."""
    assert at(WarmRestarts(first=0.1, last=0.0, num_steps=4), 3) > 0
    ULA(step_size=WarmRestarts(first=0.1, last=0.0, num_steps=4), temperature=Linear(first=1, last=0, num_steps=9))
