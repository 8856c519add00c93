"""The folder of a fitted re-ranker: `config.json` and `model.safetensors`, sealed by hashes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from thalweg.apps.rerank.density_ratio import HeldOutCheck
from thalweg.apps.rerank.held_out_check import ShareCheck
from thalweg.apps.rerank.preprocessing_search import ViewTrial
from thalweg.apps.rerank.ratio_energy import RatioEnergy
from thalweg.apps.rerank.selection import Variety
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.bundle.files import StoredType, heading, require_sealed, write_stored
from thalweg.core import check, store
from thalweg.core.errors import DamagedFile
from thalweg.data.columns.layout import Layout
from thalweg.data.options import LARGEST_SIZE


class Stored(NamedTuple):
    """What a folder holds; `check` is None where the energy came without one."""

    energy: RatioEnergy
    check: HeldOutCheck | None
    variety: Variety
    seed: int
    layout: Layout
    size: int | None = None


def write(folder: Path, stored: Stored, cls: type[StoredType]) -> None:
    """Write the folder of an object of `cls`, whole or not at all; UserError where it holds something else."""
    s = stored.energy.settings
    config = {
        **heading(cls),
        "shape": list(stored.energy.shape),
        "columns": stored.layout.names,
        "encoding": stored.layout.to_list(),
        "headless": stored.layout.headless,
        "ignored": list(stored.layout.ignored),
        "settings": asdict(s),
        "variety": stored.variety,
        "seed": stored.seed,
        "size": stored.size,
        "check": None if stored.check is None else stored.check._asdict(),
    }

    def fill(aside: Path) -> None:
        store.write_json(aside / "config.json", config)
        store.write_tensors(aside / "model.safetensors", stored.energy.state_dict())

    write_stored(folder, cls, fill)


def read(folder: Path, config: dict[str, Any]) -> Stored:
    """What `write` wrote, in a folder of verified files; DamagedFile, by name, for anything else."""
    require_sealed(folder)
    weights = store.read_tensors(folder / "model.safetensors")
    try:
        return _stored(config, weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        why = " ".join(str(error).split())[:200]
        message = f"must describe the re-ranker whose weights are beside it ({why})"
        raise DamagedFile(message, argument=str(folder / "config.json"), hint="fit again") from error


def _stored(config: dict[str, Any], weights: dict[str, Tensor]) -> Stored:
    settings = RatioSettings(**{name: _tuple(value) for name, value in config["settings"].items()})
    energy = _energy(_tuple(config["shape"]), settings, weights)
    seed, variety = check.whole("seed", config["seed"], 0, 2**64 - 1), config["variety"]
    check.one_of(get_args(Variety), variety=variety)
    held_out = None if config["check"] is None else _held_out_check(config["check"])
    layout = Layout.from_list(
        config["encoding"], headless=bool(config["headless"]), ignored=map(str, config["ignored"])
    )
    size = None if config.get("size") is None else check.whole("size", config["size"], 1, LARGEST_SIZE)
    return Stored(energy.eval().requires_grad_(False), held_out, variety, seed, layout, size)


def _held_out_check(config: dict[str, Any]) -> HeldOutCheck:
    trials = tuple(ViewTrial(*_tuple(trial)) for trial in config["trials"])
    choices = {variety: tuple(_share_check(row) for row in rows) for variety, rows in config["choices"].items()}
    rest = {name: _tuple(value) for name, value in config.items()}
    found = HeldOutCheck(**{**rest, "trials": trials, "choices": choices})
    check.non_negative(loss=found.loss, standard_error=found.standard_error)
    check.share(auc=found.auc)
    return found


def _share_check(row: Any) -> ShareCheck:
    found = ShareCheck(*map(float, row))
    check.positive(share=found.share)
    check.share(share=found.share)
    check.non_negative(temperature=found.temperature, standard_error=found.standard_error)
    check.non_negative(nearer=abs(found.nearer), random=abs(found.random))
    return found


def _energy(shape: tuple[int, ...], settings: RatioSettings, weights: dict[str, Tensor]) -> RatioEnergy:
    """The energy of a file's settings and weights; built without memory of its own, which a false size would claim.

    ValueError or RuntimeError where they do not belong together or do not give numbers.
    """
    if "auto" in (settings.view, settings.noise):
        raise ValueError("view and noise are not settled")
    if len({name.split(".")[1] for name in weights if name.startswith("ensemble.")}) != settings.ensemble:
        raise ValueError(f"ensemble={settings.ensemble}, and the weights are of another number")
    bad = [name for name, value in weights.items() if value.dtype != torch.float32 or not bool(value.isfinite().all())]
    if bad:
        raise ValueError(f"{bad[0]} holds what is no finite float32")
    with torch.device("meta"):
        energy = RatioEnergy(shape=shape, settings=settings)
    energy.load_state_dict(weights, assign=True)
    if not (bool((energy.deviation > 0).all()) and float(energy.scale) > 0):
        raise ValueError("deviation and scale are not above zero")
    return energy


def _tuple(value: Any) -> Any:
    """What JSON read as a list, as the tuple that it was, and so within."""
    return tuple(_tuple(part) for part in value) if isinstance(value, list) else value
