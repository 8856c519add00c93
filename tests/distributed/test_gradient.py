"""Two ranks compute what one process computes on the joined batch; what is random differs by rank (trust R31)."""

import json

import pytest
import torch

from thalweg.core import state_tree, store
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.loader import Loader
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.objective.base import Batch
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.joint import JointLikelihood
from thalweg.objective.score.score import ExplicitScoreMatching
from thalweg.sampler.langevin import ULA
from thalweg.training import step
from thalweg.training.distributed import ProcessGroup, SingleProcess
from thalweg.training.metrics_log import read_metrics
from thalweg.training.settings import TrainSettings
from thalweg.training.trainer import Trainer

from ..contract.test_objectives import OBJECTIVES, Energy, build
from .processes import Double, together, trainer

BOUND = 1e-6
ROWS = 16
PARTS = (("own", 0), ("mean", 0), ("mean", 1))


def energy():
    torch.manual_seed(0)
    return MLPEnergy(shape=(2,), width=16, depth=2)


def gradient_after_a_step(group, folder):
    """One step of an objective without randomness; its gradient is left in a file."""
    run = trainer(folder, group, energy(), ExplicitScoreMatching())
    run.fit()
    grads = {name: p.grad for name, p in run.state.energy.named_parameters() if p.grad is not None}
    store.write_tensors(folder / f"gradient-{group.rank}.safetensors", grads)


def error(folder, expected, rank):
    got = store.read_tensors(folder / f"gradient-{rank}.safetensors")
    assert got.keys() == expected.keys()  # the constant, which has no gradient in a score, has none here either
    a, b = (torch.cat([tree[name].flatten() for name in sorted(expected)]) for tree in (got, expected))
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single") / "run"
    gradient_after_a_step(SingleProcess(), folder)
    return folder, store.read_tensors(folder / "gradient-0.safetensors")


def sum_instead_of_mean(rank):
    average = ProcessGroup.average

    def total(self, module):
        average(self, module)
        for p in module.parameters():
            if p.grad is not None:
                p.grad *= self.size

    ProcessGroup.average = total


def nothing_is_sent(rank):
    ProcessGroup.average = lambda self, module: None
    Trainer._weights = lambda self: ""  # which would be met before the gradient is


def all_take_the_same_rows(rank):
    indices = Loader.indices

    def first(self, step):
        self.rank = 0
        return indices(self, step)

    Loader.indices = first


def test_r31_the_gradient_of_two_ranks_is_that_of_the_joined_batch(single, tmp_path):
    folder, expected = single
    run = together(lambda group: gradient_after_a_step(group, tmp_path / "run"), tmp_path / "log")
    assert run.wait() == [0, 0], run.said(0) + run.said(1)
    errors = [error(tmp_path / "run", expected, rank) for rank in (0, 1)]
    print(f"relative error of the gradient: {errors}")  # noqa: T201
    assert max(errors) <= BOUND
    (first,), (alone,) = read_metrics(tmp_path / "run"), read_metrics(folder)
    assert first.keys() == alone.keys()
    differ = [name for name in first if name != "seconds" and first[name] != pytest.approx(alone[name], rel=BOUND)]
    assert differ == []


@pytest.mark.parametrize("mutant", [sum_instead_of_mean, nothing_is_sent, all_take_the_same_rows])
def test_r31_the_comparison_rejects(single, tmp_path, mutant):
    work = lambda group: gradient_after_a_step(group, tmp_path / "run")  # noqa: E731
    run = together(work, tmp_path / "log", mutant)
    assert run.wait() == [0, 0], run.said(0) + run.said(1)
    assert max(error(tmp_path / "run", single[1], rank) for rank in (0, 1)) > 1e4 * BOUND


def rows_of(group, x):
    """A rank's part of what was drawn for the batch of 16: the one dimension of 16 is that of the rows."""
    if isinstance(x, tuple):
        return tuple(rows_of(group, part) for part in x)
    share = ROWS // group.size
    dims = [i for i, n in enumerate(x.shape) if n == ROWS]
    return x.narrow(dims[0], group.rank * share, share) if dims else x


def gradients(group, folder):
    """Of each objective: the gradient of a rank's part of one joint batch, before and after the ranks meet."""
    folder.mkdir(exist_ok=True)
    whole = Batch(torch.randn(ROWS, 3, generator=generator(0, "rows"), dtype=torch.float64), torch.arange(ROWS) % 2)
    for cls in OBJECTIVES:
        objective = cls() if cls is JointLikelihood else build(cls)  # its example replaces the last rows of a batch
        torch.manual_seed(0)
        net = Energy(3, objective.noisy).double()
        state = objective.init(net, whole.x, generator(0, "init"))
        noise = objective.draw(state, whole, generator(0, "draw"), 0.5)
        batch = Batch(*(rows_of(group, part) for part in whole))
        objective.loss(net, state, batch, tuple(rows_of(group, part) for part in noise))[0].backward()
        for when in ("own", "mean"):
            grads = {name: p.grad.clone() for name, p in net.named_parameters()}
            store.write_tensors(folder / f"{cls.__name__}-{when}-{group.rank}.safetensors", grads)
            group.average(net)


def test_r31_the_gradient_of_each_objective_is_that_of_the_joined_batch(tmp_path):
    gradients(SingleProcess(), tmp_path / "one")
    run = together(lambda group: gradients(group, tmp_path / "two"), tmp_path / "log")
    assert run.wait() == [0, 0], run.said(0) + run.said(1)
    for cls in OBJECTIVES:

        def vector(folder, when, rank, name=cls.__name__):
            tree = store.read_tensors(tmp_path / folder / f"{name}-{when}-{rank}.safetensors")
            return torch.cat([tree[key].flatten() for key in sorted(tree)])

        joint = vector("one", "mean", 0)
        own, *means = (float((vector("two", *of) - joint).norm() / joint.norm()) for of in PARTS)
        assert max(means) <= BOUND, cls.__name__
        assert own > 1e4 * BOUND, cls.__name__  # so the comparison would see a gradient that was not averaged


def test_a_trainer_that_was_not_told_of_the_others_is_refused(monkeypatch, tmp_path):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="give the trainer group="):
        Trainer(
            energy=energy(),
            objective=ExplicitScoreMatching(),
            loader=Loader(torch.rand(20, 2), batch_size=4, seed=0),
            transform=Double(),
            settings=TrainSettings(steps=1),
            folder=tmp_path,
        )


CHAINS = ContrastiveDivergence(sampler=ULA(step_size=0.01), num_steps=2, buffer_size=32, initial="normal")


def chains(group, folder, trouble=(), masked=False):
    """A few steps of persistent chains; what a rank has at the end is left in a file."""
    guard = {"every": 2, "patience": 2}
    run = trainer(folder, group, energy(), CHAINS, steps=12, guard=guard)
    run.update.masked, before = masked, run.state.objective.x
    noise = CHAINS.draw(
        run.state.objective, run.update.batch(0, 0.0), step.generator(3, "objective", 0, group.rank), 0.0
    )
    if trouble:
        run.update.objective = Spoilt(CHAINS, lambda: group.rank == 1 and run.state.step in trouble)
    run.fit()
    tensors = state_tree.flatten({"begun": before, "noise": noise[-1], **run.state.core()})[0]
    store.write_tensors(folder / f"rank-{group.rank}.safetensors", tensors)
    store.write_json(folder / f"rank-{group.rank}.json", run.state.guard.rollbacks)


class Spoilt:
    """An objective whose loss is NaN where `when` says so."""

    def __init__(self, objective, when):
        self._objective, self._when = objective, when

    def __getattr__(self, name):
        return getattr(self._objective, name)

    def loss(self, *args):
        loss, *rest = self._objective.loss(*args)
        return (loss * (float("nan") if self._when() else 1.0), *rest)


def one_stream_for_all(rank):
    draw = step.generator
    step.generator = lambda seed, stream, step=0, rank=0, **place: draw(seed, stream, step, **place)


@pytest.mark.parametrize("change", [lambda rank: None, one_stream_for_all], ids=["as it is", "mutant"])
def test_r31_draws_and_buffers_differ_by_rank_and_nothing_else_does(tmp_path, change):
    run = together(lambda group: chains(group, tmp_path / "run"), tmp_path / "log", change)
    assert run.wait() == [0, 0], run.said(0) + run.said(1)
    a, b = (store.read_tensors(tmp_path / "run" / f"rank-{rank}.safetensors") for rank in (0, 1))
    differ = {name.partition("/")[0] for name in a if not torch.equal(a[name], b[name])}
    if change is one_stream_for_all:
        assert "noise" not in differ
    else:
        assert differ == {"begun", "noise", "objective"}
        assert not torch.isclose(a["begun"], b["begun"]).any()


@pytest.mark.parametrize("masked", [False, True])
def test_trouble_of_one_rank_is_met_by_all(tmp_path, masked):
    """Two losses in a row that are not finite, on one rank: both skip both steps, or mask them, and both go back."""
    run = together(lambda group: chains(group, tmp_path / "run", trouble=(7, 8), masked=masked), tmp_path / "log")
    assert run.wait() == [0, 0], run.said(0) + run.said(1)
    assert [json.loads((tmp_path / "run" / f"rank-{rank}.json").read_text()) for rank in (0, 1)] == [1, 1]
    a, b = (store.read_tensors(tmp_path / "run" / f"rank-{rank}.safetensors") for rank in (0, 1))
    differ = {name.partition("/")[0] for name in a if not torch.equal(a[name], b[name])}
    assert differ == {"begun", "noise", "objective"}
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6, 7, 10, 11, 12]
    assert run.said(0).count("went back to the weights") == 1
    assert run.said(1) == ""
