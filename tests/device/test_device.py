"""A step of each objective and sampler, sampling, buffer, average and guard: the host never waits for the device."""

import dataclasses

import pytest
import torch

from thalweg.core.rng import generator
from thalweg.data.augment import Warp
from thalweg.data.float32_check import Float32Transform
from thalweg.data.loader import Loader
from thalweg.data.transform import Composed, Scale, Standardize
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.networks.autoencoder import AutoencoderEnergy
from thalweg.energy.networks.autoregressive import AutoregressiveEnergy
from thalweg.energy.networks.classifier import JointStridedEnergy
from thalweg.energy.networks.conditional import LabelEnergy
from thalweg.energy.networks.conv import ConvEnergy
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.networks.tilted_bigram import TiltedBigramEnergy
from thalweg.energy.networks.transformer import TransformerEnergy
from thalweg.energy.noise_conditional.classifier import JointUNetEnergy
from thalweg.energy.noise_conditional.residual import ResidualEnergy
from thalweg.energy.noise_conditional.transformer import NoiseConditionalTransformerEnergy
from thalweg.energy.noise_conditional.unet import UNetEnergy
from thalweg.energy.rbm import RBMEnergy
from thalweg.objective.base import Batch, Labelled
from thalweg.objective.combined import Combined
from thalweg.objective.conditional import ConditionalLikelihood
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.contrastive.replay_buffer import choose_keyed, start
from thalweg.objective.joint import JointLikelihood
from thalweg.objective.likelihood import MaximumLikelihood
from thalweg.objective.noise_contrastive import GaussianNoise, NoiseContrastive
from thalweg.objective.pseudo_likelihood import PseudoLikelihood
from thalweg.objective.ratio import LikelihoodRatio
from thalweg.objective.restoration import RestorationContrast
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.objective.score.score import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    MultiScaleDenoising,
    SlicedScoreMatching,
)
from thalweg.sampler.annealed import Ancestral, Heun, anneal
from thalweg.sampler.base import AnnealedSampler, normal_like
from thalweg.sampler.chain import transitions
from thalweg.sampler.gibbs import Gibbs
from thalweg.sampler.gibbs_with_gradients import GibbsWithGradients
from thalweg.sampler.langevin import MALA, ULA
from thalweg.sampler.multistep import Multistep
from thalweg.sampler.schedule import Cosine
from thalweg.training import guard as guarding
from thalweg.training.guard import Guard
from thalweg.training.settings import TrainSettings
from thalweg.training.step import MASKED, Update, run_steps

from ..contract.test_objectives import OBJECTIVES
from ..contract.test_objectives import build as build_objective
from ..contract.test_samplers import SAMPLERS
from ..contract.test_samplers import build as build_sampler
from ..sampler.test_schedule import SCHEDULES
from .watch import DEVICE, Waits, no_waiting, on_device

ROWS = 40


def chains(sampler=ULA, **changes):
    given = {"num_steps": (1, 3), "buffer_size": 48, **changes}
    return ContrastiveDivergence(sampler=sampler(step_size=0.01), **given)


MORE = {
    "MALA": chains(MALA, gradient_penalty=0.1, data_noise=0.1),
    "from data": chains(start="data"),
    "short-run": chains(start="noise", initial="normal"),
    "augmented": chains(augment=Warp()),
    "keyed": chains(conditional=True),
    "scheduled": chains(lambda step_size: ULA(step_size=Cosine(first=step_size, last=1e-3, num_steps=3))),
    "joint chains": JointLikelihood(generative=chains(conditional=True)),
    **{
        f"{type(made).__name__} by differences": dataclasses.replace(made, gradient="finite_differences")
        for made in (
            DenoisingScoreMatching(),
            MultiScaleDenoising(),
            DualScoreMatching(),
            SlicedScoreMatching(),
            chains(gradient_penalty=0.1),
            chains(conditional=True, gradient_penalty=0.1),
        )
    },
    "ratio of noisy rows": LikelihoodRatio(smoothing=0.1, noise=0.1, noise_max=0.3),
}
FITTED = NoiseContrastive  # its `init` fits a Gaussian to rows, which it reads
CASES = {cls.__name__: build_objective(cls) for cls in OBJECTIVES if cls is not FITTED} | MORE


def energy_for(objective):
    """(energy, shape of a row) that the objective trains."""
    torch.manual_seed(0)
    labelled = isinstance(objective, Labelled) and objective.labelled
    if objective.noisy:
        return (JointUNetEnergy if labelled else UNetEnergy).example(), (1, 8, 8)
    if labelled or getattr(objective, "conditional", False):
        return JointStridedEnergy.example(), (1, 8, 8)
    if isinstance(objective, ConditionalLikelihood):
        return LabelEnergy.example(), LabelEnergy.example().shape
    if isinstance(objective, RestorationContrast):
        return AutoencoderEnergy.example(), AutoencoderEnergy.example().shape
    if isinstance(objective, PseudoLikelihood | Combined | MaximumLikelihood):  # of states
        cls = AutoregressiveEnergy if isinstance(objective, MaximumLikelihood) else TiltedBigramEnergy
        return cls.example(), cls.example().shape
    if isinstance(objective, ExplicitScoreMatching):  # a backward pass a dimension
        return MLPEnergy(shape=(3,), width=8, depth=2), (3,)
    return ConvEnergy(shape=(1, 8, 8)), (1, 8, 8)


def small(objective):
    return MLPEnergy(shape=(2,), width=4, depth=1), (2,)


def training(objective, parts=energy_for, **settings):
    """(update, state, guard) after the first step, on the device."""
    energy, shape = parts(objective)
    x = torch.rand(ROWS, *shape, generator=generator(0, "x"))
    loader = Loader(x, torch.arange(ROWS) % 3, batch_size=16, seed=1)
    transform = Float32Transform(Composed(parts=(Scale(), Standardize())).fit(x))
    given = TrainSettings.model_validate({"steps": 25, "precision": "fp32", "guard": {"every": 10}, **settings})
    augment = Warp() if len(shape) == 3 else None
    update = Update(objective, loader, transform, given, 1, augment, device=DEVICE)
    state, guard = update.first_state(energy), Guard(given.guard, objective)
    guard.begin(state)
    step(update, state, guard)  # constants of transform and guard are sent once
    return update, state, guard


def step(update, state, guard):
    metrics = update(state, "fp32", 25)
    guard.note(state, metrics.pop(MASKED), metrics)
    return metrics


@pytest.mark.parametrize("objective", CASES.values(), ids=CASES)
def test_a_training_step(objective):
    """Batch, transform, augmentation, draws, loss, update, average, buffer, notes: nothing is waited for."""
    update, state, guard = training(objective)
    with no_waiting():
        metrics = step(update, state, guard)
    assert state.step == 2
    places = {t.device.type for t in (*state.energy.parameters(), *state.average.parameters(), *state.guard.notes)}
    assert places | {value.device.type for value in metrics.values()} == {DEVICE.type}


def transformer(objective):
    """(a transformer, shape of a row) that the objective trains: words, or images with noise levels."""
    torch.manual_seed(0)
    if objective.noisy:
        return NoiseConditionalTransformerEnergy.example(), (1, 6, 5)
    return TransformerEnergy(shape=(5, 4), tokens=True, width=8, depth=1, num_heads=2), (5, 4)


@pytest.mark.parametrize(
    "objective", [chains(), chains(MALA, gradient_penalty=0.1), DualScoreMatching()], ids=["ULA", "penalty", "dual"]
)
def test_a_training_step_of_a_transformer(objective):
    """Masks, positions and the choice of the kernel: nothing is waited for."""
    update, state, guard = training(objective, transformer)
    with no_waiting():
        metrics = step(update, state, guard)
    assert {value.device.type for value in metrics.values()} == {DEVICE.type}


def test_noise_contrastive_estimation_once_it_has_begun():
    objective, x, energy = FITTED(ratio=2), torch.rand(16, 2), MLPEnergy(shape=(2,), width=8, depth=1)
    state = GaussianNoise(*(t.to(DEVICE) for t in objective.init(energy, x, generator(0, "init"))))
    batch, energy, draws = Batch(x.to(DEVICE)), on_device(energy), generator(0, "draws", device=DEVICE)
    with no_waiting():
        loss, _, metrics = objective.loss(energy, state, batch, objective.draw(state, batch, draws, 0.0))
    assert {value.device.type for value in (loss, *metrics.values())} == {DEVICE.type}


class Changed:
    """An objective whose loss is `change(loss, batch)`."""

    def __init__(self, objective, change):
        self._objective, self._change = objective, change

    def __getattr__(self, name):
        return getattr(self._objective, name)

    def loss(self, energy, state, batch, noise):
        loss, *rest = self._objective.loss(energy, state, batch, noise)
        return (self._change(loss, batch), *rest)


MUTANTS = {
    "item": lambda loss, batch: loss * (1 if loss.item() > 0 else 2),
    "branch": lambda loss, batch: loss if loss.isfinite() else 2 * loss,
    "mask": lambda loss, batch: loss + batch.x[batch.x > 0].sum(),
    "stray tensor": lambda loss, batch: loss + (batch.x * torch.ones(batch.x.shape)).sum(),
    "stray index": lambda loss, batch: loss + batch.x[torch.arange(4)].sum(),
    "copy": lambda loss, batch: loss + torch.ones(3).to(DEVICE).sum(),
    "number": lambda loss, batch: loss * torch.tensor(1.0, device=DEVICE),
    "new number": lambda loss, batch: loss * loss.new_tensor(1.0),
}
ERRORS = (Waits, RuntimeError, NotImplementedError)


def test_the_same_step_without_a_fault_passes():
    """The control of the mutants: their errors come from the fault, and not from what carries it."""
    update, state, guard = training(chains(num_steps=1), small)
    update.objective = Changed(update.objective, lambda loss, batch: 1 * loss)
    with no_waiting():
        step(update, state, guard)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_loss_for_which_the_host_waits_is_rejected(mutant):
    update, state, guard = training(chains(num_steps=1), small)
    update.objective = Changed(update.objective, mutant)
    with pytest.raises(ERRORS), no_waiting():
        step(update, state, guard)


def sampled(sampler):
    """(energy, shape of a row) to sample."""
    if isinstance(sampler, Gibbs | GibbsWithGradients):
        return RBMEnergy.example(), (2,)
    if isinstance(sampler, AnnealedSampler):
        return ResidualEnergy.example(), (3,)
    return MLPEnergy(shape=(2,), width=8, depth=2), (2,)


@pytest.mark.parametrize("cls", [*SAMPLERS, "frozen"], ids=str)
def test_a_step_of_each_sampler(cls):
    sampler = ULA(step_size=0.1) if cls == "frozen" else build_sampler(cls)
    torch.manual_seed(0)
    energy, shape = (ConvEnergy(shape=(1, 8, 8)), (1, 8, 8)) if cls == "frozen" else sampled(sampler)
    x = torch.rand(5, *shape, device=DEVICE)
    draws = generator(0, "draws", device=DEVICE)
    energy = on_device(energy)
    with no_waiting(), FrozenEnergy.of(energy) as fixed:
        steps = transitions(sampler, fixed, x, draws)
        (state, info), _ = next(steps), next(steps)
    assert {t.device.type for t in (state.x, *info)} == {DEVICE.type}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_steps_of_a_schedule(schedule):
    x, energy = torch.rand(5, 2, device=DEVICE), on_device(MLPEnergy(shape=(2,)))
    draws = generator(0, "draws", device=DEVICE)
    for sampler in (MALA(step_size=schedule, temperature=schedule), ULA(step_size=schedule, noise=schedule)):
        with no_waiting():
            steps = transitions(sampler, energy, x, draws, start=3)
            (state, _), _ = next(steps), next(steps)
        assert {t.device.type for t in state} == {DEVICE.type}
        assert state.x.dtype == x.dtype


@pytest.mark.parametrize(
    "sampler",
    [Heun(num_steps=2), Heun(num_steps=1, churn=0.1), Ancestral(num_steps=2), Multistep(num_steps=2, eta=1.0)],
    ids=repr,
)
def test_annealed_sampling_of_a_block(sampler):
    torch.manual_seed(0)
    energy = on_device(UNetEnergy.example())
    with no_waiting():
        (block,) = anneal(sampler, energy, 7, num_corrections=1)
    assert (block.device.type, block.shape) == (DEVICE.type, (7, 1, 8, 8))


def test_a_sampler_that_reads_is_rejected():
    class Reads(ULA):
        def step(self, energy, state, noise):
            float(state.x.sum())
            return super().step(energy, state, noise)

    x, energy = torch.rand(5, 2, device=DEVICE), on_device(MLPEnergy(shape=(2,)))
    with pytest.raises(ERRORS), no_waiting():
        next(transitions(Reads(step_size=0.1), energy, x, generator(0, "draws", device=DEVICE)))


def test_slots_by_label_are_chosen_on_the_device():
    replay = start(torch.zeros(30, 2, device=DEVICE))
    labels, draws = torch.arange(12, device=DEVICE) % 3, generator(0, "draws", device=DEVICE)
    with no_waiting():
        assert choose_keyed(replay, labels, draws).device.type == DEVICE.type


@pytest.mark.parametrize("log_every", [10, 7])
def test_the_host_reads_once_in_as_many_steps_as_are_logged(monkeypatch, log_every):
    """Metrics, notes and whether a snapshot is sound come by one transfer. On the meta device it is made up."""
    reads = []

    def read(tensors):
        reads.append(len(tensors))
        assert {t.device.type for t in tensors} == {DEVICE.type}
        return [0.5] * len(tensors)

    update, state, guard = training(chains(num_steps=1), small, log_every=log_every)
    state.step = 0
    monkeypatch.setattr(guarding, "read", read)
    monkeypatch.setattr(Guard, "_tell_masked", lambda *_: None)
    monkeypatch.setattr(Guard, "_act_on", lambda *_: None)
    with no_waiting():
        told = [len(metrics) for metrics in run_steps(update, state, guard, 25, "fp32")]
    assert state.step == 25
    assert len(reads) == len({n for n in range(1, 26) if n % log_every == 0 or n in (1, 25)})
    assert sum(n > 0 for n in told) == 0  # the made-up cause is not 0: those steps were masked


def test_noise_is_drawn_by_a_generator_of_the_device():
    draws = generator(3, "stream", 4, 5, device=DEVICE)
    assert draws.device.type == DEVICE.type
    assert normal_like(torch.zeros(2, device=DEVICE), draws).device.type == DEVICE.type
