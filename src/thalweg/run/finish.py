"""The end of a run: the trained energy is calibrated on held-out data and written as a bundle."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from thalweg.bundle.bundle import Bundle
from thalweg.bundle.chain_length import chain_length
from thalweg.bundle.conditional import held_out_figures
from thalweg.bundle.files import read_config, write_bundle
from thalweg.bundle.prior import fit_mixture_prior, read_mixture_prior
from thalweg.bundle.temperature import calibrate
from thalweg.core import store
from thalweg.data.catalog import Dataset, as_float
from thalweg.data.stored_rows import some_rows
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.outcomes import Conditional
from thalweg.objective.base import start_law_of
from thalweg.run.card import card
from thalweg.run.constant import correct_constant
from thalweg.sampler.base import Sampler
from thalweg.training.plan import Plan, num_threads
from thalweg.training.state import TrainState
from thalweg.training.trainer import Trainer

EXAMPLES = 5  # training texts in a card


def finish(config: dict[str, Any], energy: nn.Module, data: Dataset, sampler: Sampler[Any], trainer: Trainer) -> None:
    """Calibrate the averaged energy, on as many threads as it was trained on, and write the bundle and its card."""
    folder, plan, state = trainer.folder, Plan.load(trainer.folder), trainer.state
    config = {
        **config,
        "precision": plan.precision if plan else "fp32",
        "training": training_facts(state, trainer.update.data_wait),
    }
    with num_threads(plan.threads if plan else torch.get_num_threads()):
        law = start_law_of(trainer.update.objective, state.objective, data.energy_shape)
        bundle = calibrated(config, energy, data, sampler, folder, law)
        held_out, prior = bundle.held_out_energies, bundle.mixture_prior
        some = data.alphabet.decode(some_rows(data.train, EXAMPLES)) if data.alphabet is not None else []
        # before the bundle, whose manifest says that the run is complete: a kill between them must not lose the card
        store.write_bytes(folder / "card.md", card(bundle.config, some).encode("utf-8", "backslashreplace"))
        write_bundle(folder, bundle.config, energy.state_dict(), held_out, prior)


def training_facts(state: TrainState, data_wait: float | None) -> dict[str, Any]:
    """What config.json says of a training that has ended. `data_wait`: of rows that are not in memory, the share of
    the time in which steps waited for them."""
    facts = {"steps": state.step, "seconds": round(state.seconds, 1), "rollbacks": state.guard.rollbacks}
    return facts if data_wait is None else {**facts, "data_wait": round(data_wait, 4)}


def calibrated(
    config: dict[str, Any],
    energy: nn.Module,
    data: Dataset,
    sampler: Sampler[Any],
    path: Path,
    law: MixtureOfFactorAnalyzers | None = None,
) -> Bundle:
    """The bundle of an averaged energy, calibrated on held-out data. `law`: of the training's starts, and so of its."""
    bundle = Bundle(config, energy, None, path, sampler)
    if bundle.num_classes and data.held_out_labels is not None:
        config["classes"] = calibrate(bundle, as_float(data.held_out), data.held_out_labels)
    if isinstance(energy, Conditional):
        config["conditional"] = held_out_figures(bundle, data)
    if law is not None:
        bundle.mixture_prior = law
    elif data.kind != "text":  # of which nothing is in-painted
        bundle.mixture_prior = fit_mixture_prior(bundle, data.train)
    correction = correct_constant(bundle, rows_seen=config["training"]["steps"] * config["run"]["train"]["batch_size"])
    if correction is not None:
        config["constant"] = correction
    bundle.held_out_energies = bundle.energy(as_float(data.held_out))
    if law is not None:
        config["chains"] = {"start": "mixture"}  # which `chain_length` reads
        config["chains"] = {"start": "mixture", "steps": chain_length(bundle, bundle.held_out_energies)}
    return bundle


def as_loaded(folder: Path, energy: nn.Module, sampler: Sampler[Any]) -> Bundle:
    """The bundle in a folder, its network this one, whose weights were just written there."""
    held_out = store.read_tensors(folder / "calibration.safetensors")["energy"].to(torch.float32)
    bundle = Bundle(read_config(folder), energy, held_out, folder, sampler)
    if (folder / "prior.safetensors").exists():
        bundle.mixture_prior = read_mixture_prior(folder / "prior.safetensors", bundle.shape).to(bundle.device)
    return bundle
