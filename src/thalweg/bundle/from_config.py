"""What the config.json of a run describes: its parts, built from it, and whether stored weights are theirs.

A config may come from a stranger. Its form is checked before it is used, each part is built out of its own layer alone,
and the energy is held against the weights' header before it takes any memory.
"""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from thalweg.core import store
from thalweg.core.config import build, class_at, is_foreign
from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.weights import Stored, Unfit, require_fit
from thalweg.data.alphabet import Alphabet
from thalweg.data.columns.layout import Layout
from thalweg.data.float32_check import Float32Transform
from thalweg.data.transform import OneHot, Transform
from thalweg.data.validate import Kind
from thalweg.energy.building import from_object, from_spec
from thalweg.energy.shape import check_shape
from thalweg.sampler.base import Sampler

KINDS = ("image", "vector", "text")
ENERGIES = ("thalweg.energy",)
DTYPES = ("uint8", "float32", "float64")


class Parts(NamedTuple):
    """A run's data, as a model sees them, and what is built of its config beside the energy."""

    kind: Kind
    shape: tuple[int, ...]
    normalised: bool
    dtype: torch.dtype  # of the data
    layout: Layout  # the columns of the table they came from
    transform: Float32Transform
    sampler: Sampler[Any]
    alphabet: Alphabet | None  # of texts


def parts_of(config: Mapping[str, Any], where: Path, sampler: Sampler[Any] | None = None) -> Parts:
    """The parts that a config describes; `sampler` in place of its own.

    DamagedFile, with `where` the file, unless it has the form of a run's.
    """
    run, data, normalised = config.get("run"), config.get("data"), config.get("normalised")
    if not isinstance(run, Mapping) or not isinstance(data, Mapping) or not isinstance(normalised, bool):
        raise _damaged(where, "run and data are no mappings, or normalised is neither true nor false")
    missing = [name for name in ("transform", "energy", "sampler") if not isinstance(run.get(name), Mapping)]
    if missing:
        raise _damaged(where, f"run.{missing[0]} is no mapping")
    if data.get("kind") not in KINDS or not isinstance(data.get("shape"), list):
        raise _damaged(where, "data.kind is unknown, or data.shape no list")
    try:
        shape = check_shape(data["shape"])
    except ValueError as error:
        raise _damaged(where, "data.shape is not of whole numbers above zero") from error
    if data.get("dtype") not in DTYPES:
        raise _damaged(where, "data.dtype is unknown")
    dtype = torch.float64 if data["dtype"] == "float64" else torch.float32
    transform = build(run["transform"], "run.transform", trusted=("thalweg.data",))
    sampler = sampler or build(run["sampler"], "run.sampler", trusted=("thalweg.sampler",))
    if not isinstance(transform, Transform):
        raise _damaged(where, "run.transform names no transform")
    if not isinstance(sampler, Sampler):
        raise _damaged(where, "run.sampler names no sampler")
    if not _well_formed_chains(config.get("chains")):
        raise _damaged(where, "chains gives no whole number of steps above zero")
    layout, alphabet = _layout(data, run.get("data"), where), _alphabet(data, shape, transform, where)
    fitted = Float32Transform(transform, dtype)
    return Parts(data["kind"], shape, normalised, dtype, layout, fitted, sampler, alphabet)


def _well_formed_chains(chains: Any) -> bool:
    """Whether it is what the end of a run writes, or nothing."""
    if chains is None:
        return True
    steps = chains.get("steps", 1) if isinstance(chains, Mapping) else 0
    return isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1


def _alphabet(data: Mapping[str, Any], shape: tuple[int, ...], transform: Transform, where: Path) -> Alphabet | None:
    """The letters of a model of texts, of one size with its shape and its transform; None of another model."""
    if data["kind"] != "text":
        return None
    try:
        alphabet = Alphabet.from_dict(data.get("alphabet"))
    except UserError as error:
        raise _damaged(where, f"data.alphabet: {error.message}") from error
    if shape != (alphabet.length,) or not isinstance(transform, OneHot) or transform.num_states != alphabet.num_states:
        raise _damaged(where, "data.shape or run.transform is none of the alphabet's")
    return alphabet


def energy_shape(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape that the energy of a config which `parts_of` took is built with: (L, K) of texts."""
    shape = tuple(config["data"]["shape"])
    if config["data"]["kind"] != "text":
        return shape
    return *shape, Alphabet.from_dict(config["data"]["alphabet"]).num_states


def energy_of(config: Mapping[str, Any]) -> nn.Module:
    """The energy of a config that `parts_of` took, with the weights that its constructor gives it, in float32."""
    energy = from_spec(config["run"]["energy"], "run.energy", energy_shape(config), trusted=ENERGIES)
    if not isinstance(energy, nn.Module):
        raise Unfit(f"{config['run']['energy']['type']} has no weights")
    return energy if is_foreign(config["run"]["energy"]) else energy.float()


def require_weights(config: Mapping[str, Any], stored: Mapping[str, Stored], where: Path) -> None:
    """DamagedFile, before any memory is taken, unless the stored tensors are those of the config's energy.

    UserError where the run was given its energy as a module, and the config's cannot be built or is another.
    """
    try:
        require_fit(lambda: energy_of(config), stored, foreign=is_foreign(config["run"]["energy"], "run.energy"))
    except UserError as error:
        if "energy" in given_parts(config):
            text = f"must be given, as the run was given a module, which its config cannot rebuild ({error})"
            hint = "thalweg.load(…, energy=…) takes the module, its class, or a functools.partial"
            raise UserError(text, argument="energy", hint=hint) from error
        if not isinstance(error, Unfit):
            raise
        raise DamagedFile(f"must hold the weights that config.json describes ({error})", argument=str(where)) from error


def given_energy(config: Mapping[str, Any], energy: Any, stored: Mapping[str, Stored]) -> nn.Module:
    """A copy of the energy that the caller gives in place of the config's, with the weights that it has.

    Where the config names an energy of this package around a network of the caller's, the network may be given alone.
    UserError, and the module is as it was, unless its tensors are the stored ones by name and shape.
    """
    shape = energy_shape(config)
    wrap = functools.partial(_wrapped, config["run"]["energy"], from_object(energy, shape), shape)
    try:
        require_fit(wrap, stored)
    except UserError as error:
        text, hint = f"must be the energy whose weights are stored ({error})", "give the module that was trained"
        raise UserError(text, argument="energy", hint=hint) from error
    return copy.deepcopy(wrap())


def _wrapped(spec: Mapping[str, Any], module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The module, in the energy of this package that a spec names around the spec of a network."""
    if is_foreign({"type": spec.get("type")}) or not isinstance(spec.get("network"), Mapping):
        return module
    if isinstance(module, class_at(spec["type"], "run.energy.type", trusted=ENERGIES)):
        return module
    alone = {key: value for key, value in spec.items() if key != "network"}
    return build(alone, "run.energy", trusted=ENERGIES, shape=shape, network=module)


def given_parts(config: Mapping[str, Any]) -> list[Any]:
    """The parts of a run that were objects, which its config only names."""
    given = config.get("given")
    return given if isinstance(given, list) else []


def held_out_energies(path: Path) -> Tensor:
    """The energies (n,) of held-out data in calibration.safetensors."""
    held_out = store.read_tensors(path).get("energy")
    if held_out is None or held_out.ndim != 1 or not held_out.is_floating_point():
        raise DamagedFile("must hold energies of held-out data, (n,)", argument=str(path), hint="train again")
    return held_out.to(torch.float32)


def _layout(data: Mapping[str, Any], asked: Any, where: Path) -> Layout:
    """The columns that later tables are matched by."""
    ignored = data.get("ignored")
    if not isinstance(asked, Mapping) or not isinstance(ignored, list):
        raise _damaged(where, "run.data is no mapping, or data.ignored no list")
    try:
        how: Any = {"headless": asked.get("header") is False, "ignored": map(str, ignored), "dtype": asked.get("dtype")}
        return Layout.from_list(data.get("encoding"), **how)
    except DamagedFile as error:
        raise _damaged(where, error.message) from error


def _damaged(where: Path, why: str) -> DamagedFile:
    return DamagedFile(f"must be the configuration of a run ({why})", argument=str(where))
