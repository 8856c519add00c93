"""The monitor of a run, made from its settings and data, and where the samples of its looks come from."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thalweg.bundle.model_units import decoded, initial_positions
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.catalog import Dataset, as_float
from thalweg.data.float32_check import Float32Transform
from thalweg.data.stored_rows import some_rows
from thalweg.energy.base import NoiseConditional
from thalweg.energy.engine.discovery import device_of
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.outcomes import Conditional
from thalweg.monitor.run_monitor import LookSamples, RunMonitor
from thalweg.objective.base import Objective, keeps_chains, start_law_of
from thalweg.run.checks import Parts
from thalweg.sampler.annealed import anneal
from thalweg.sampler.base import Sampler, require_annealed, with_num_steps
from thalweg.sampler.chain import run_chain
from thalweg.training.settings import RunSettings
from thalweg.training.signals import MonitorSettings

if TYPE_CHECKING:
    from thalweg.monitor.diversity import Diversity
    from thalweg.monitor.vision.opinion import SampleJudge

JUDGED = "judge"  # in the run folder: what a vision judge was asked and said
log = logging.getLogger("thalweg")
LEAST_HELD_OUT = 60  # rows, for figures that mean something
HELD_OUT, TRAIN = 1000, 5000  # rows that the figures are taken against, at most
CHAINS, DRAWS = 128, 64  # samples of a look: chains cost nothing
OFTEN, SELDOM = 25, 100  # least steps between looks at chains, and at draws
ANNEALED_STEPS = 10  # of a draw: fewer than the bundle's own samples take, as two looks are compared
CHAIN_STEPS = 60  # of a chain from noise, where the objective keeps none


def run_monitor(
    run: RunSettings,
    data: Dataset,
    parts: Parts,
    transform: Float32Transform,
    folder: Path | None,
) -> RunMonitor | None:
    """The monitor of a run; None where it is off, or where there is nothing to compare samples with.

    These are texts, energies E(x, y) of y given x, and fewer than `LEAST_HELD_OUT` held-out rows.
    """
    settings = run.monitor
    unknown = data.kind == "text" or isinstance(parts.energy, Conditional) or len(data.held_out) < LEAST_HELD_OUT
    if settings.policy == "none" or unknown:
        return None
    held_out, train = as_float(data.held_out[:HELD_OUT]), as_float(some_rows(data.train, TRAIN))
    labels = None if data.held_out_labels is None else data.held_out_labels[:HELD_OUT]

    def diversity() -> "Diversity":
        from thalweg.monitor.diversity import Diversity  # which brings scikit-learn along

        return Diversity(held_out, train, labels=labels, seed=run.seed)

    chains = keeps_chains(parts.objective)
    num = settings.num_samples or (CHAINS if chains else DRAWS)
    return RunMonitor(
        diversity,
        RunSamples(parts.objective, parts.sampler, data, transform, num),
        num_samples=num,
        least=OFTEN if chains else SELDOM,
        folder=folder,
        policy=settings.policy,
        every=settings.every,
        max_cost=settings.max_cost,
        opinion=_second_opinion(settings, data, held_out, train, folder),
    )


class VisionOpinion:
    """Asks a vision-language model about samples whose figures raise an alarm.

    Where it is reliable and finds them good, the alarm is overruled. Its answers are kept in the run folder, so that a
    resumed run asks nothing twice.
    """

    def __init__(self, judge: "SampleJudge", real: Tensor):
        self.judge, self.real = judge, real

    def __call__(self, samples: Tensor, step: int) -> dict[str, Any]:
        """The opinion, as the log and the checkpoint hold it."""
        opinion = self.judge.compare(samples, self.real, step=step)
        kept = opinion.model_dump(mode="json", include={"judge", "reliable", "verdict", "sentence", "model", "cost"})
        return {**kept, "overrules": opinion.reliable and opinion.verdict == "good"}


def _second_opinion(
    settings: MonitorSettings, data: Dataset, held_out: Tensor, train: Tensor, folder: Path | None
) -> VisionOpinion | None:
    """The vision judge, where the settings ask for one; None and a warning where its key is not in the environment."""
    if settings.judge == "statistical":
        return None
    if data.kind != "image" or folder is None:
        text = "must be statistical, as " + ("there is no run folder" if folder is None else "the data are no images")
        raise UserError(text, argument="monitor.judge", value=settings.judge)
    from thalweg.monitor.vision.judge import VisionJudge
    from thalweg.monitor.vision.settings import VisionSettings

    try:
        how = VisionSettings.of(**settings.vision)
        if how.has_key():
            return VisionOpinion(VisionJudge(how, folder / JUDGED, train=train), held_out)
    except UserError as error:
        raise error.replace(argument=f"monitor.vision.{error.argument}") from error
    log.warning("%s is not set: alarms are judged by their figures alone; export it", how.variable())
    return None


@dataclass(frozen=True)
class RunSamples:
    """The samples of a look: chains that the objective keeps, else draws from the averaged energy.

    Draws come from the same noise at each look, so that two looks differ by the energy alone.

    Args:
        objective: The objective, which may keep chains.
        sampler: Draws where it keeps none.
        data: The data of the run.
        transform: Data units to model units.
        num: Samples of a look.
    """

    objective: Objective[Any]
    sampler: Sampler[Any]
    data: Dataset
    transform: Float32Transform
    num: int

    def __call__(self, state: Any, precision: str, share: float) -> LookSamples:
        """A share of them, in data units on the CPU."""
        num = max(1, round(share * self.num))
        if not keeps_chains(self.objective):
            with frozen(state.average) as energy:
                return LookSamples(self._units(self._drawn(energy, state.objective, num, precision)))
        chains = self.objective.persistent_chains(state.objective)
        x = chains[:num].detach().cpu()  # the same slots at each look; a slot is like any other
        return LookSamples(self._units(x), torch.unique(x.flatten(1), dim=0, return_inverse=True)[1])

    def _units(self, z: Tensor) -> Tensor:
        return decoded(self.data.kind, self.transform, z.detach().cpu())

    def _drawn(self, energy: nn.Module, memory: Any, num: int, precision: str) -> Tensor:
        if isinstance(energy, NoiseConditional):
            sampler = require_annealed(self.sampler)
            with suppress(UserError):  # of a class that has no such number
                sampler = with_num_steps(sampler, ANNEALED_STEPS)
            return torch.cat(list(anneal(sampler, energy, num, precision=precision)))
        draws = generator(0, "monitor")
        law = start_law_of(self.objective, memory, self.data.energy_shape)
        start = initial_positions(self.data.kind, self.transform, (num, *self.data.shape), draws, energy, law)
        return run_chain(self.sampler, energy, start.to(device_of(energy)), num_steps=CHAIN_STEPS, precision=precision)
