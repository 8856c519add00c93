"""Files of what a run or an application leaves: written whole, sealed by hashes, opened by the class that they name.

`config.json` (spec, data fingerprint, versions, command), `model.safetensors` (averaged weights),
`calibration.safetensors` (energies of held-out data), `prior.safetensors` (a mixture of factor analysers, where
in-painting starts) and `manifest.json` (SHA-256 of each). `config.json` names the class under `type`, whose
`read(folder, config)` makes the object. Nothing here runs code from the folder: only classes of this package, and of
packages that are trusted (`core.trust`), are built.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from thalweg.bundle import hub
from thalweg.bundle.servable import Servable
from thalweg.core import config as specs
from thalweg.core import store, temporary
from thalweg.core.check import stated
from thalweg.core.device import find_device
from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.trust import as_names, trusting
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers

FORMAT = 2
FILES = ("config.json", "model.safetensors", "calibration.safetensors", "prior.safetensors")
EXTRAS = ("card.md", "report.html", "README.md")
ASIDE = "bundle"  # what the files are written under before they get their names
STORED = ("thalweg.bundle", "thalweg.apps")  # packages of the classes that a folder may name


class StoredType(ABC):
    """Abstract: a class whose objects are kept in folders. `load` opens a folder by the class that it names."""

    title: ClassVar[str]  # as messages name it: "a re-ranker"
    command: ClassVar[str]  # the command that reads it: "thalweg rerank"

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, config: dict[str, Any]) -> Self:
        """The object in a folder, with its config.json. Where a manifest is there, all files have been verified."""

    def to(self, device: str | torch.device) -> Self:
        """The object itself, moved to a device; what computes on none is left as it is."""
        return self

    def servable(self) -> Servable:
        """What `thalweg serve` and `thalweg export` ask. UserError for a stored type that scores nothing."""
        raise UserError(f"must be something that scores rows, and is {self.title}", argument="run")


class HoldsEnergy(StoredType):
    """Abstract: a stored type of one energy, which the caller may give as a module in place of the config's."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, config: dict[str, Any], energy: Any = None) -> Self:
        """The object in a folder. `energy`: a module, or what builds one; the stored weights are loaded into it."""


T = TypeVar("T", bound=StoredType)


def heading(cls: type) -> dict[str, Any]:
    """The first entries of a config.json: its format, the class that reads it, and the version that wrote it."""
    import thalweg

    return {"format": FORMAT, "type": specs.type_name(cls), "thalweg": thalweg.__version__}


def load(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    energy: Any = None,
    trust: Sequence[str] = (),
    device: str | torch.device = "auto",
) -> Any:
    """The object in a folder, or on the Hugging Face Hub under that id: a `Bundle`, a `DetectorBundle`, an
    `EnergyReranker`, as its config.json says.

    Args:
        path_or_id: The folder, or the id.
        revision: The branch, tag or commit of a bundle on the Hub; its main branch if not given.
        energy: The module that was trained, or a class or `functools.partial` that builds it, where the config's own
            cannot be built. The stored weights are loaded into it, and the class that the config names is not imported.
        trust: Packages, beside this one, whose classes the config may name, for this call. Their code is imported.
        device: Where it is put, wherever it was trained: "cpu", "cuda" or "cuda:N"; "auto" is THALWEG_DEVICE, else a
            GPU, else the CPU.

    Raises:
        UserError: No such folder, another format, a class that is not trusted, an `energy` that is not the trained one,
            a device that is not there.
        DamagedFile: A file, which it names, whose hash or form is wrong.
    """
    with trusting(*as_names(trust)):
        return _load(path_or_id, revision, None, energy, device)


def load_as(
    path_or_id: str | Path,
    cls: type[T],
    *,
    revision: str | None = None,
    energy: Any = None,
    trust: Sequence[str] = (),
    device: str | torch.device = "auto",
) -> T:
    """The same, where it must be of a class: UserError that says what lies there, and which command reads it."""
    with trusting(*as_names(trust)):
        return _load(path_or_id, revision, cls, energy, device)


def _load(
    path_or_id: str | Path,
    revision: str | None,
    wanted: type[StoredType] | None,
    energy: Any,
    device: str | torch.device,
) -> Any:
    place = find_device(device)
    if not isinstance(path_or_id, str | Path):
        what = "must be the folder of a run, or its id on the Hugging Face Hub, as text"
        raise UserError(what, argument="path_or_id", value=stated(path_or_id))
    folder = Path(path_or_id)
    if not folder.exists():
        folder = hub.download(str(path_or_id), revision)  # the text as given: Path takes the ./ away
    elif revision is not None:
        text = f"is for the Hub, and {path_or_id} is a folder on this machine"
        raise UserError(text, argument="revision", value=revision, hint="leave it out")
    if not folder.is_dir():
        raise UserError("must be the folder of a run, and is a file", argument=str(folder))
    try:
        return _opened(folder, wanted, energy).to(place)
    except DamagedFile as error:
        if error.hint != store.REMEDY or any((folder / "checkpoints").glob("step-*")):
            raise
        raise error.replace(hint="restore it from a copy, or train or fit again") from error


def _opened(folder: Path, wanted: type[StoredType] | None, energy: Any) -> Any:
    """What a folder that is there holds; each file is hashed once, before anything in it is used."""
    if (folder / store.MANIFEST).exists():
        listed = store.verify(folder)
        store.require_listed(folder, [name for name in FILES if (folder / name).exists()], listed)
    config = read_config(folder)
    cls = _stored_type(config, folder)
    if wanted is not None and not issubclass(cls, wanted):
        raise wrong_type(folder, cls, wanted)
    if energy is None:
        return cls.read(folder, config)
    if not issubclass(cls, HoldsEnergy):
        text = f"is for a trained energy, and {folder} holds {cls.title}"
        raise UserError(text, argument="energy", value=energy, hint="leave it out")
    return cls.read(folder, config, energy)


def _stored_type(config: Mapping[str, Any], folder: Path) -> type[StoredType]:
    cls = specs.class_at(config["type"], f"{folder / 'config.json'}: type", trusted=STORED)
    if not issubclass(cls, StoredType):
        what = "must name a class whose objects are kept in folders"
        raise DamagedFile(what, argument=f"{folder / 'config.json'}: type", value=config["type"])
    return cls


def wrong_type(folder: Path, found: type[StoredType], wanted: type[StoredType]) -> UserError:
    """The error for a folder that holds something else than was wanted, with the command that reads it."""
    what = f"must hold {wanted.title}, and holds {found.title}"
    return UserError(what, argument=str(folder), hint=f"{found.title} is read by `{found.command}`")


def require_sealed(folder: Path) -> None:
    """DamagedFile where the manifest is missing from a folder that was written whole."""
    if not (folder / store.MANIFEST).exists():
        file, hint = folder / store.MANIFEST, "restore it, or fit again"
        raise DamagedFile("must be there, as it is written last", argument=str(file), hint=hint)


def holds(folder: Path, cls: type[StoredType]) -> bool:
    """Whether a folder's config.json names that class."""
    file = folder / "config.json"
    config = store.read_json(file) if file.is_file() else None
    return isinstance(config, dict) and config.get("type") == specs.type_name(cls)


def require_replaceable(folder: Path, cls: type[StoredType]) -> None:
    """UserError where a folder holds something that is not an object of that class: it would be lost."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not holds(folder, cls):
        raise UserError(f"must be empty or hold {cls.title}", argument=str(folder), hint="name another folder")


def write_stored(folder: Path, cls: type[StoredType], write: Callable[[Path], None]) -> None:
    """Put an object of a class in a folder, whole or not at all; `write` fills the folder that it is given.

    UserError where the folder holds something else.
    """
    require_replaceable(folder, cls)
    folder.parent.mkdir(parents=True, exist_ok=True)
    store.save_folder(folder, write)


def require_files(folder: Path, names: Iterable[str]) -> None:
    """UserError where something other than a file stands in the place of one."""
    for path in (folder / name for name in names):
        if path.exists() and not path.is_file():
            hint = "move it away, or name another one"
            raise UserError("must be a file, and is a folder", argument=str(path), hint=hint)


def write_bundle(
    folder: Path,
    config: dict[str, Any],
    weights: Mapping[str, Tensor],
    held_out: Tensor | None,
    mixture_prior: MixtureOfFactorAnalyzers | None = None,
) -> None:
    """Write the bundle's files into its folder, each whole, the manifest last: until then the folder is no bundle."""
    require_files(folder, (*FILES, store.MANIFEST))
    temporary.clean(folder, ASIDE)  # what a killed process left of these very files
    with temporary.folder(folder / ASIDE) as aside:  # a full disk shows here, the old files whole
        store.write_json(aside / "config.json", config)
        store.write_tensors(aside / "model.safetensors", dict(weights))
        if held_out is not None:
            store.write_tensors(aside / "calibration.safetensors", {"energy": held_out})
        if mixture_prior is not None:
            store.write_tensors(
                aside / "prior.safetensors", {k: v.float() for k, v in mixture_prior.state_dict().items()}
            )
        store.seal(aside)
        (folder / store.MANIFEST).unlink(missing_ok=True)
        for file in (*FILES, store.MANIFEST):
            if (aside / file).exists():
                os.replace(aside / file, folder / file)
            else:
                (folder / file).unlink(missing_ok=True)  # an earlier bundle's, which this manifest does not seal


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder, its format checked; UserError where there is none, or of another version."""
    if not (folder / "config.json").exists():
        hint = "give the folder that `thalweg train` wrote"
        raise UserError("must hold a config.json, as every run does", argument=str(folder), hint=hint)
    config, where = store.read_json(folder / "config.json"), str(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise DamagedFile("must be a configuration that thalweg wrote", argument=where)
    if config["format"] != FORMAT or "type" not in config:
        written = f"written by thalweg {config.get('thalweg')} in format {config['format']}"
        old = " without a type" if config["format"] == FORMAT else ""
        text, hint = f"must be of format {FORMAT}, and was {written}{old}", "train or fit again with this version"
        raise UserError(text, argument=str(folder), hint=hint)
    return config
