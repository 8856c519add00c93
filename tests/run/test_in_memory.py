"""Training in memory: the weights of a run in a folder, without the folder, and guarded as that is."""

import copy
import math
import os
import signal

import pytest
import torch

from thalweg.core.errors import Diverged, OutOfMemory, UserError
from thalweg.core.rng import generator
from thalweg.data import catalog
from thalweg.data.loader import Loader
from thalweg.data.options import DataOptions
from thalweg.data.toy import two_moons
from thalweg.data.transform import Identity, Standardize
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.ratio import LikelihoodRatio, balanced_loss
from thalweg.objective.score.score import DenoisingScoreMatching
from thalweg.run.checks import build_parts, check_parts
from thalweg.run.fit import Request, fit, settings
from thalweg.run.in_memory import optimise, train_in_memory
from thalweg.sampler.langevin import ULA
from thalweg.training.plan import Plan
from thalweg.training.settings import TrainSettings
from thalweg.training.trainer import Trainer

X = two_moons(90, generator(0, "moons"))
CHAINS = ContrastiveDivergence(sampler=ULA(step_size=0.01), num_steps=(1, 3), buffer_size=48, initial="normal")


def given(**changes):
    fixed = {"steps": 12, "batch_size": 16, "warmup": 2, "precision": "fp32"}
    return TrainSettings.model_validate({**fixed, **changes})


def energy():
    torch.manual_seed(0)
    return MLPEnergy(shape=(2,), width=8, depth=2)


def same(a, b):
    ours, others = a.state_dict(), b.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


class Spoilt:
    """An objective whose loss is NaN at these calls."""

    def __init__(self, objective, calls, seen=None):
        self.objective, self.calls, self.seen = objective, calls, [0] if seen is None else seen

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def loss(self, *args):
        self.seen[0] += 1
        loss, *rest = self.objective.loss(*args)
        return (loss * (math.nan if self.seen[0] in self.calls else 1.0), *rest)


@pytest.fixture
def in_a_job(monkeypatch):
    """The environment of a process that torchrun has started, with nobody else there."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


# The same as in a folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "trouble"),
    [(DenoisingScoreMatching(), ()), (CHAINS, ()), (CHAINS, (6, 7))],
    ids=["dsm", "chains", "rollback"],
)
def test_weights_have_the_bits_of_a_run_in_a_folder(tmp_path, objective, trouble):
    """Also where two losses in a row are NaN and the guard goes back."""
    train = given(steps=20, guard={"every": 2, "patience": 2})

    def noisier(x, draws, progress):
        return x + progress * torch.randn(x.shape, generator=draws)

    def spoilt():
        return Spoilt(objective, trouble)

    parts = {"transform": Standardize().fit(X), "augment": noisier, "seed": 3}
    plan = Plan(num_steps=20, precision="fp32", threads=1, step_seconds=0.1, checkpoint_every=7)
    plan.save(tmp_path)  # a trial step would count as a call of the loss
    loader = Loader(X, batch_size=16, seed=3)
    run = Trainer(
        energy=energy(), objective=spoilt(), loader=loader, settings=train, folder=tmp_path, tensorboard=False, **parts
    )
    in_folder, states = run.fit(), []
    in_memory = optimise(energy(), spoilt(), X, train, after_step=states.append, **parts)
    assert same(in_memory, in_folder)
    assert same(states[-1].energy, run.state.energy)
    assert (states[-1].guard.rollbacks, run.state.guard.rollbacks) == ((1, 1) if trouble else (0, 0))
    assert not same(in_memory, energy())


def test_a_recipe_in_memory_is_the_run_that_fit_makes(tmp_path):
    overrides = ["train.batch_size=16", "train.precision=fp32", "energy.width=16", "energy.num_blocks=1"]
    request = Request(data="two-moons", steps=3, seed=5, overrides=[*overrides, "data.limit=60"])
    bundle = fit(request, tmp_path / "run", tensorboard=False)
    model = train_in_memory(settings(request, "vector"), catalog.load("two-moons", DataOptions(limit=60), seed=5))
    if (correction := bundle.config.get("constant")) is not None:
        model.shift(correction["shift"])  # what a run does when it has ended, and `train_in_memory` does not
    assert same(model, bundle.model)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


# Alone ----------------------------------------------------------------------------------------------------------------


def test_it_leaves_the_process_and_the_disk_alone(in_a_job, tmp_path, monkeypatch):
    """No group is joined, no file written, no signal handled, no global random number drawn."""
    monkeypatch.chdir(tmp_path)
    net, found = energy(), []
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    handlers = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]

    def look(_):
        found.append([signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)])
        assert not torch.distributed.is_initialized()

    optimise(net, CHAINS, X, given(steps=3), after_step=look)
    assert found == [handlers] * 3
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert os.listdir(tmp_path) == []


# The guard ------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_met_before_the_update():
    net, before = energy(), []

    def remember(state):
        before.append(copy.deepcopy(state.energy.state_dict()))

    train = given(guard={"policy": "stop"})
    with pytest.raises(Diverged) as caught:
        optimise(net, Spoilt(DenoisingScoreMatching(), (6,)), X, train, after_step=remember)
    error = caught.value
    assert (error.what, error.step, error.last_good) == ("loss", 6, None)
    assert str(error) == f"loss is not finite at step 6; {error.advice}"
    assert len(before) == 5
    assert all(torch.equal(value, before[-1][name]) for name, value in net.state_dict().items())


def test_a_last_update_that_overflows_is_met_too(caplog):
    """No step follows whose loss would tell: the weights at the end are looked at themselves."""

    def spoil(state):
        if state.step == 12:
            next(state.energy.parameters()).data.view(-1)[0] = math.inf

    net = optimise(energy(), DenoisingScoreMatching(), X, given(), after_step=spoil)
    assert all(p.isfinite().all() for p in net.parameters())
    assert "is not finite at step 12; went back to" in caplog.text
    with pytest.raises(Diverged, match=r"energy/.* is not finite at step 12"):
        optimise(energy(), DenoisingScoreMatching(), X, given(guard={"policy": "stop"}), after_step=spoil)


def test_out_of_memory_names_the_batch():
    class Huge(DenoisingScoreMatching):
        def loss(self, *args):
            raise MemoryError

    with pytest.raises(OutOfMemory, match=r"at step 1 with a batch of 16 .*train\.batch_size=8$"):
        optimise(energy(), Huge(), X, given())


# What a caller may give -----------------------------------------------------------------------------------------------


class Sides:
    """As many rows of data as generated ones in a batch: the batches of a likelihood ratio."""

    def __init__(self, real, generated, size):
        self.sides, self.size = (real, generated), size

    def batch(self, step):
        draws = generator(7, "sides", step)
        rows = [x[torch.randint(len(x), (self.size,), generator=draws)] for x in self.sides]
        return torch.cat(rows), torch.arange(2 * self.size) < self.size


def test_batches_of_two_sides_with_early_stopping_learn_to_tell_them_apart():
    """What a likelihood ratio asks for; a training without the check goes on to its last step."""
    real, generated = two_moons(400, generator(1, "real")), 2 * torch.randn(400, 2, generator=generator(1, "gen"))
    train = given(steps=120, learning_rate=3e-3, decay="linear", warmup=0, clip=None, ema=0.0, batch_size=64)
    held, labels = torch.cat([real[300:], generated[300:]]), torch.arange(200) < 100
    best = {"loss": math.inf, "step": 0, "weights": {}}

    def check(state):
        if state.step % 10:
            return False
        with torch.no_grad():
            now = float(balanced_loss(state.energy(held), labels))
        if now < best["loss"]:
            best.update(loss=now, step=state.step, weights=copy.deepcopy(state.energy.state_dict()))
        return state.step >= 60

    net, steps = energy(), []
    sides = Sides(real[:300], generated[:300], 32)
    last = optimise(net, LikelihoodRatio(), sides, train, after_step=lambda s: steps.append(s.step) or check(s))
    assert steps == list(range(1, 61))
    assert same(last, net)  # without an average the last weights are returned
    assert best["loss"] < math.log(2) - 0.1  # chance is log 2
    net.load_state_dict(best["weights"])
    with torch.no_grad():
        assert float(balanced_loss(net(held), labels)) == pytest.approx(best["loss"])


def test_minutes_and_auto_are_settled_by_timing_on_a_copy(monkeypatch):
    """A step costs a tenth of a second, or half of that in bfloat16, by a clock that stands still otherwise."""
    clock, seen = [0.0], []
    monkeypatch.setattr("thalweg.training.plan.time.perf_counter", lambda: clock[0])

    class Timed(DenoisingScoreMatching):
        def loss(self, *args):
            low = torch.is_autocast_enabled("cpu")
            clock[0] += 0.05 if low else 0.1
            seen.append(low)
            return super().loss(*args)

    states = []
    optimise(energy(), Timed(), X, given(steps=None, minutes=0.01, precision="auto"), after_step=states.append)
    assert [state.step for state in states][-1:] == [12]
    assert seen[-12:] == [True] * 12
    seen.clear()
    optimise(energy(), Timed(), X, given(steps=2))
    assert seen == [False, False]  # nothing is timed where nothing is open


@pytest.mark.parametrize(
    ("argument", "act"),
    [
        ("checkpoint_every", lambda: optimise(energy(), CHAINS, X, given(checkpoint_every=5))),
        ("log_every", lambda: optimise(energy(), CHAINS, X, given(log_every=5))),
        ("labels", lambda: optimise(energy(), CHAINS, Sides(X, X, 8), given(), labels=torch.zeros(90))),
    ],
)
def test_what_has_no_effect_in_memory_is_refused(argument, act):
    with pytest.raises(UserError) as caught:
        act()
    assert caught.value.argument == argument


def test_the_dry_run_leaves_the_network_as_it_was():
    """A forward in train mode moves the power iteration of a spectral norm; its buffers are put back."""
    request = Request(data="digits", recipe="pcd-conv", overrides=["objective.num_steps=2", "data.limit=60"])
    run, data = settings(request, "image"), catalog.load("digits", DataOptions(limit=60))
    before = torch.get_rng_state()
    parts, twin = (build_parts(run, data) for _ in range(2))
    check_parts(parts, run, data)
    assert torch.equal(torch.get_rng_state(), before)
    assert any("_u" in name for name in parts.energy.state_dict())
    assert same(parts.energy, twin.energy)
    parts.energy(torch.zeros(2, 1, 8, 8))
    assert not same(parts.energy, twin.energy)  # so there was something to put back


@pytest.mark.parametrize(
    ("override", "argument"),
    [
        ("energy.type=thalweg.energy.networks.conv:ConvEnergy", "energy.type"),
        ("sampler={type: 'thalweg.sampler.langevin:ULA', step_size: 0.1}", "sampler.type"),
        ("objective.type=thalweg.energy.networks.mlp:MLPEnergy", "objective.type"),
    ],
)
def test_parts_that_do_not_fit_are_named(override, argument):
    """The first by its constructor's complaint about a shape that the data gave, the others by one another."""
    run = settings(Request(data="two-moons", overrides=[override]), "vector")
    data = catalog.load("two-moons", DataOptions(limit=60))
    with pytest.raises(UserError) as caught:
        check_parts(build_parts(run, data), run, data)
    assert caught.value.argument == argument
    if argument == "energy.type":
        assert caught.value.hint == "choose another, or other data"


def test_a_transform_is_the_identity_if_not_given():
    train = given(steps=2)
    assert same(
        optimise(energy(), DenoisingScoreMatching(), X, train),
        optimise(energy(), DenoisingScoreMatching(), X, train, transform=Identity()),
    )
