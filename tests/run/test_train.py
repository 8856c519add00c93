"""`thalweg.train`: a user's own network and data, in memory and in a folder, and what is refused in one line."""

import functools
import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import thalweg
from thalweg.core.errors import NotNormalised, UserError
from thalweg.data.in_memory import given_dataset
from thalweg.data.transform import Identity
from thalweg.objective.base import Batch
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.objective.score.score import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    MultiScaleDenoising,
    SlicedScoreMatching,
)
from thalweg.sampler.langevin import ULA

SHORT = {"batch_size": 16, "precision": "fp32"}
train = functools.partial(thalweg.train, progress=False, settings=SHORT)


class Energy(nn.Module):
    """E(x) of the plane."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1) + 0.05 * x.square().sum(1)


class Noisy(nn.Module):
    """U(y, t) of the plane, or F(y, t) where it gives two numbers."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, outputs))

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        f = self.layers(torch.cat([y, t.log()[:, None]], dim=1))
        return f.squeeze(1) if f.shape[1] == 1 else f


@pytest.fixture(scope="module")
def rows() -> Tensor:
    """Two clouds far from zero, of unequal deviations."""
    z = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    z[:150] += 4
    return 100 + z * torch.tensor([1.0, 20.0])


def test_a_network_trains_in_memory_and_its_samples_are_where_the_data_are(rows, tmp_path, monkeypatch):
    """Chains begin at model units' origin; without the way back to data units the mean would be 48 deviations off."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    energy = Energy()
    before = {name: p.clone() for name, p in energy.state_dict().items()}
    bundle = train(energy, rows, steps=60)
    assert bundle.kind == "vector"
    assert not bundle.normalised
    assert any(not torch.equal(p, before[name]) for name, p in energy.state_dict().items())
    x = bundle.sample(200)
    assert torch.all((x.mean(0) - rows.mean(0)).abs() < 2 * rows.std(0))
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_bits_and_a_partial_draws_its_weights_from_it(rows):
    make = functools.partial(Energy, width=12)
    one, two, other = (train(make, rows, steps=5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.energy(rows), two.energy(rows))
    assert not torch.equal(one.energy(rows), other.energy(rows))
    assert one.config["run"]["energy"]["width"] == 12


def test_a_run_in_a_folder_is_loaded_with_the_network_given_again(rows, tmp_path):
    bundle = train(Energy(), rows, objective=ContrastiveDivergence(num_steps=2), steps=6, out=tmp_path / "run")
    loaded = thalweg.load(tmp_path / "run", energy=Energy())
    assert torch.equal(loaded.energy(rows), bundle.energy(rows))
    assert torch.equal(loaded.sample(3, num_steps=2), bundle.sample(3, num_steps=2))
    with pytest.raises(UserError) as caught:
        thalweg.load(tmp_path / "run")
    assert "energy=" in str(caught.value)
    with pytest.raises(UserError):
        thalweg.load(tmp_path / "run", energy=Energy(width=9))


@pytest.mark.parametrize("stop", [0, 4])
def test_a_run_that_was_stopped_resumes_with_the_same_bits(rows, tmp_path, monkeypatch, stop):
    """Also before its first step: the first weights, which are the caller's and no seed's, are kept."""
    first = {name: p.clone() for name, p in Energy().state_dict().items()}

    def begun() -> Energy:
        energy = Energy()
        energy.load_state_dict(first)
        return energy

    objective = DenoisingScoreMatching()
    settings = SHORT | {"checkpoint_every": 2}
    go = functools.partial(train, settings=settings, objective=objective, steps=8)
    whole = go(begun(), rows, out=tmp_path / "whole")
    from thalweg.training import trainer

    def stopping(self, plan, log, metrics, caught):
        if self.state.step > stop:
            raise MemoryError("stopped by the test")
        return after(self, plan, log, metrics, caught)

    after = trainer.Trainer._after_step
    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "_after_step", stopping)
        with pytest.raises(thalweg.ThalwegError):
            go(begun(), rows, out=tmp_path / "run")
    if stop == 0:  # as a killed process would leave it
        assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "manifest.json").exists()
    resumed = go(begun() if stop == 0 else Energy(), rows, out=tmp_path / "run", resume=True)
    assert torch.equal(resumed.energy(rows), whole.energy(rows))


def test_a_resumed_run_must_be_the_one_that_began(rows, tmp_path):
    go = functools.partial(train, steps=2, out=tmp_path / "run")
    go(Energy(), rows, objective=DenoisingScoreMatching(sigma=0.2))
    with pytest.raises(UserError) as caught:
        go(Energy(), rows, objective=DenoisingScoreMatching(sigma=0.3), resume=True)
    assert caught.value.argument == "objective"
    with pytest.raises(UserError):
        go(Energy(), rows, objective=DenoisingScoreMatching(sigma=0.2))
    with pytest.raises(UserError):
        go("dual", rows, objective=DenoisingScoreMatching(sigma=0.2), resume=True)


def test_a_network_with_noise_levels_is_sampled_and_is_not_normalised(rows):
    bundle = train(Noisy(), rows, steps=5)
    assert bundle.sample(4).shape == (4, 2)
    for objective in (None, DualScoreMatching()):
        with pytest.raises(NotNormalised):
            train(Noisy(), rows, steps=2, objective=objective).log_prob(rows)


def test_an_anchored_network_is_normalised(rows):
    """After one step exp(log p) sums to one on a grid: the energy begins as a Gaussian, whatever its network's weights.

    A network without the factor that is zero at first gives infinity here.
    """
    bundle = train(thalweg.anchored(Noisy(outputs=2), shape=(2,)), rows, steps=1)
    centre, deviation = rows.mean(0), rows.std(0)
    axes = [torch.linspace(-6, 6, 120) * s + m for m, s in zip(centre, deviation, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)
    cell = float((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0]))
    assert abs(float(bundle.log_prob(grid).exp().sum()) * cell - 1) < 0.1


def test_the_objectives_sampler_draws_the_samples(rows):
    chains = ContrastiveDivergence(sampler=ULA(step_size=0.003), num_steps=1)
    assert train(Energy(), rows, objective=chains, steps=1).sampler.step_size == 0.003
    given = train(Energy(), rows, objective=chains, sampler=ULA(step_size=0.1), steps=1)
    assert given.sampler.step_size == 0.1


class Faulty(nn.Module):
    """An energy with one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.first, self.last = fault, nn.Linear(2, 4), nn.Linear(4, 1)
        self.norm = nn.BatchNorm1d(4)
        if fault != "batch norm, last layer zero":
            self.norm = nn.Identity() if fault != "batch norm" else self.norm
        else:
            nn.init.zeros_(self.last.weight)
        if fault == "unused parameter":
            self.extra = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "no input":
            x = torch.zeros_like(x)
        u = self.last(torch.tanh(self.norm(self.first(x))))
        return {
            "two axes": lambda: u,
            "whole numbers": lambda: u.squeeze(1).long(),
            "one number": lambda: u.sum(),
            "detached": lambda: u.squeeze(1).detach(),
            "rows see each other": lambda: (u - u.mean()).squeeze(1),
            "not finite": lambda: u.squeeze(1) / 0,
            "no tensor": lambda: (u.squeeze(1), 1),
        }.get(self.fault, lambda: u.squeeze(1))()  # fmt: skip


FAULTS = ["two axes", "whole numbers", "one number", "detached", "rows see each other", "not finite", "no tensor"]
FAULTS += ["no input", "unused parameter", "batch norm", "batch norm, last layer zero"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_network_that_cannot_be_trained_is_refused(rows, fault, tmp_path):
    with pytest.raises(UserError) as caught:
        train(Faulty(fault), rows, steps=1, out=tmp_path / "run")
    assert caught.value.argument == "energy Faulty"
    assert not (tmp_path / "run").exists()


def test_a_network_without_the_fault_trains(rows):
    train(Faulty("none"), rows, steps=1)
    frozen = Faulty("none").requires_grad_(False)
    with pytest.raises(UserError):
        train(frozen, rows, steps=1)


class Attention(nn.Module):
    """Fused attention, which torch differentiates once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x[:, :, None])[:, None]
        return nn.functional.scaled_dot_product_attention(h, h, h).flatten(1).tanh().sum(1)


class NoisyAttention(Noisy):
    """U(y, t), or F(y, t), with fused attention between its two numbers."""

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        h = torch.stack([y, torch.zeros_like(y)], 2)[:, None]
        mixed = nn.functional.scaled_dot_product_attention(h, h, h)[:, 0, :, 0]
        return super().forward(mixed, t)


class Once(torch.autograd.Function):
    """tanh, which can be differentiated once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh().square())


class OnceDifferentiable(Energy):
    """E(x) of the plane, with a layer that has no second derivative by any kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Once.apply(x))


WITHOUT_SECOND = {
    "denoising": DenoisingScoreMatching(sigma=0.3),
    "sliced": SlicedScoreMatching(),
    "penalty": ContrastiveDivergence(num_steps=1, gradient_penalty=0.1),
}


@pytest.mark.parametrize("objective", WITHOUT_SECOND.values(), ids=WITHOUT_SECOND)
def test_a_network_without_second_derivatives_trains_by_finite_differences_and_one_line_says_so(
    rows, objective, caplog
):
    with caplog.at_level(logging.INFO, "thalweg"):
        train(Attention(), rows, steps=2, objective=objective)
    (line,) = [record.getMessage() for record in caplog.records if "finite differences" in record.getMessage()]
    assert type(objective).__name__ in line
    assert "Attention" in line


def test_a_noise_conditional_network_without_second_derivatives_trains(rows):
    train(NoisyAttention(), rows, steps=2, objective=MultiScaleDenoising())
    train(thalweg.anchored(NoisyAttention(2), shape=(2,)), rows, steps=2, objective=DualScoreMatching())


def test_a_network_without_second_derivatives_is_refused_where_they_are_needed(rows):
    train(Attention(), rows, steps=1, objective=ContrastiveDivergence(num_steps=1))
    told = DenoisingScoreMatching(gradient="double_backward")
    train(Attention(), rows, steps=1, objective=told)  # attention has a kernel with both
    for objective, hint in ((ExplicitScoreMatching(), "SlicedScoreMatching"), (told, 'set its gradient to "auto"')):
        with pytest.raises(UserError) as caught:
            train(OnceDifferentiable(), rows, steps=1, objective=objective)
        assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"steps": 1, "minutes": 1}, "--steps and --minutes"),
        ({"settings": {"bacth_size": 3}}, "train.bacth_size"),
        ({"settings": {"guard": {"polcy": "stop"}}}, "train.guard.polcy"),
        ({"settings": {"batch_size": object()}}, "train.batch_size"),
        ({"settings": [3]}, "settings"),
        ({"settings": {"checkpoint_every": 3}}, "checkpoint_every"),
        ({"held_out": 2}, "held_out"),
        ({"labels": [0, 1]}, "labels"),
        ({"resume": True}, "resume"),
        ({"report": True}, "report"),
        ({"device": "cuda:77"}, "device"),
        ({"seed": -1}, "seed"),
        ({"objective": DualScoreMatching}, "objective"),
        ({"objective": DualScoreMatching()}, "energy.type"),
        ({"sampler": "ULA"}, "sampler"),
        ({"transform": 3}, "transform"),
        ({"energy": 3}, "energy"),
        ({"energy": nn.Linear}, "energy"),
        ({"energy": "duel"}, "recipe"),
        ({"data": None}, "data"),
        ({"data": torch.zeros(5, 2)}, "rows in memory"),
        ({"data": torch.zeros(50)}, "data"),
        ({"data": np.full((50, 2), np.nan)}, "data"),
        ({"data": "nowhere"}, "'nowhere'"),
        ({"trust": "mine"}, "trust"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(rows, change, argument):
    call = {"energy": Energy(), "data": rows, "steps": 1} | change
    with pytest.raises(UserError) as caught:
        train(**call)
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)


def test_rows_in_memory_come_as_tensors_arrays_frames_and_data_sets(rows):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows.numpy(), columns=["a", "b"])
    labels = torch.arange(len(rows)) % 3
    sets = [given_dataset(each) for each in (rows, rows.numpy(), frame)]
    assert len({float(each.train.double().sum()) for each in sets}) == 1
    assert sets[2].layout.names == ["a", "b"]
    pairs = given_dataset(torch.utils.data.TensorDataset(rows, labels), held_out=0.2)
    assert len(pairs.held_out) == 60
    assert pairs.train_labels is not None
    own = given_dataset(rows, held_out=rows[:30])
    assert torch.equal(own.held_out, rows[:30])
    assert len(own.train) == len(rows)
    images = given_dataset(torch.rand(30, 8, 8))
    assert images.kind == "image"
    assert images.shape == (1, 8, 8)


def test_a_frames_columns_are_matched_by_name_afterwards(rows):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows.numpy(), columns=["a", "b"])
    bundle = train(Energy(), frame, steps=2)
    assert torch.equal(bundle.energy(frame[["b", "a"]]), bundle.energy(frame))


def test_images_train_by_a_network_of_the_users():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(256, 1), nn.Flatten(0))
    bundle = train(network, torch.rand(40, 1, 8, 8), steps=2, objective=ContrastiveDivergence(num_steps=2))
    x = bundle.sample(2, num_steps=3)
    assert x.shape == (2, 1, 8, 8)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1


class Dropping(Energy):
    """An energy that draws from torch's global generator."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.3, self.training))


def test_dropout_follows_from_the_seed_and_leaves_the_global_generator(rows):
    before = torch.get_rng_state()
    one, two, other = (train(Dropping, rows, steps=4, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.energy(rows), two.energy(rows))
    assert not torch.equal(one.energy(rows), other.energy(rows))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_has_its_own_modes(rows):
    make = functools.partial(Energy, width=8)
    want = train(make, rows, steps=3).energy(rows)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            bundle = train(make, rows, steps=3)
        assert torch.equal(bundle.energy(rows), want)


@pytest.mark.parametrize("clears", [True, False])
def test_a_training_in_bfloat16_goes_on_with_the_weights_of_the_last_step(monkeypatch, clears):
    """Torch keeps bfloat16 copies of weights until the outermost autocast ends; old copies learn little."""
    if not clears:  # the mutant
        monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    settings = {
        "precision": "bf16",
        "learning_rate": 0.05,
        "warmup": 1,
        "batch_size": 200,
        "ema": 0.0,
        "guard": {"policy": "warn"},
    }
    network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1, bias=False), nn.Flatten(0))
    nn.init.zeros_(network[2].weight)
    objective = DenoisingScoreMatching(sigma=0.5)
    bundle = thalweg.train(network, x, objective=objective, steps=40, settings=settings, progress=False)
    z = bundle.encode(x)
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    loss, *_ = objective.loss(bundle.model, objective.init(bundle.model, z, None), Batch(z), (eps,))
    assert (float(loss.detach()) < 0.87) == clears  # the optimum is 0.8; 1 is the loss of a flat energy


def test_a_bundle_keeps_what_it_loaded_in_a_module_that_serves_another(rows, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        train(functools.partial(Energy, width=8), rows, steps=2, seed=seed, out=tmp_path / name)
    shared = Energy()
    first = thalweg.load(tmp_path / "a", energy=shared)
    before = first.energy(rows)
    thalweg.load(tmp_path / "b", energy=shared)
    assert torch.equal(first.energy(rows), before)


def test_double_precision_is_kept(rows, tmp_path):
    class Double(Energy):
        def __init__(self) -> None:
            super().__init__()
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double())

    bundle = train(Double(), rows, steps=2, out=tmp_path / "run")
    loaded = thalweg.load(tmp_path / "run", energy=Double())
    assert next(loaded.model.parameters()).dtype == torch.float64
    assert torch.equal(loaded.energy(rows), bundle.energy(rows))


def masked(value: Tensor, *, persistent: bool = True) -> Energy:
    energy = Energy()
    energy.register_buffer("mask", value, persistent=persistent)
    return energy


def test_tensors_that_cannot_be_kept_are_refused_by_name(rows):
    infinite = torch.tensor([0.0, -torch.inf])
    train(masked(infinite, persistent=False), rows, steps=1)
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1), nn.Flatten(0))
    for energy in (
        masked(infinite),
        masked(torch.ones(1, 2).expand(5, 2)),
        masked(rows.clone().requires_grad_()),
        lazy,
    ):
        with pytest.raises(UserError) as caught:
            train(energy, rows, steps=1)
        assert "mask" in str(caught.value) or "0.weight" in str(caught.value)


def test_parts_of_ones_own_that_lack_something_are_refused(rows, tmp_path):
    ula = ULA(step_size=0.01)

    class Mine:
        init, draw, step = ula.init, ula.draw, ula.step

    class Lossless(DenoisingScoreMatching):
        def loss(self, energy, state, batch, noise):
            loss, *rest = super().loss(energy, state, batch, noise)
            return (loss.detach(), *rest)

    assert train(Energy(), rows, steps=1, sampler=Mine()).sample(2, num_steps=2).shape == (2, 2)
    for argument, given in (
        ("sampler", {"sampler": Mine(), "out": tmp_path / "run"}),
        ("objective", {"objective": Lossless()}),
        ("transform", {"transform": Identity}),
        ("train.batch_size", {"settings": {"batch_size": 10**12}}),
    ):
        with pytest.raises(UserError) as caught:
            train(Energy(), rows, steps=1, **given)
        assert caught.value.argument == argument
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError) as caught:
        thalweg.anchored(Energy, shape=(2,))  # pyright: ignore[reportArgumentType]
    assert caught.value.argument == "network"


def test_what_lies_in_a_folder_is_not_overwritten(rows, tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(UserError):
        train(Energy(), rows, steps=1, out=tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "precious"
    with pytest.raises(UserError) as caught:
        train(Energy(), rows, steps=1, out="")
    assert caught.value.argument == "out"


def test_a_data_set_of_one_tensor_gives_rows(rows):
    alone = given_dataset(torch.utils.data.TensorDataset(rows))
    assert alone.kind == "vector"
    assert torch.equal(alone.train, given_dataset(rows).train)
