"""The bundle: what a run leaves and everything else reads.

`config.json` (spec, data fingerprint, versions, command), `model.safetensors` (averaged weights),
`calibration.safetensors` (energies of held-out data), `prior.safetensors` (a mixture of factor analysers, where
in-painting starts) and `manifest.json` (SHA-256 of each). A run that has not ended is read from its newest
whole checkpoint. Nothing here runs code from the folder: only classes of this package are built.
"""

import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.apps import classify, conformal, hub
from thalweg.apps.guess import read_mixture_prior
from thalweg.apps.inputs import chain_positions, checked_rows
from thalweg.apps.stored import energy_of, held_out_energies, parts_of, require_weights
from thalweg.core import store, temporary
from thalweg.core.check import fits_memory, share, stated, whole
from thalweg.core.errors import DamagedFile, NotNormalised, ThalwegError, UserError
from thalweg.core.rng import generator
from thalweg.energy.compose import AtNoise
from thalweg.energy.principal import MixtureOfFactorAnalyzers
from thalweg.energy.spectral import frozen
from thalweg.sampler.annealed import BLOCK, anneal
from thalweg.sampler.run import of_block, run_chain

FORMAT = 2
FILES = ("config.json", "model.safetensors", "calibration.safetensors", "prior.safetensors")
EXTRAS = ("card.md", "report.html", "README.md")
ASIDE = "bundle"  # what the files are written under before they get their names
EVALUATION_BLOCK = 256
CHAIN_STEPS = 1000
ALPHA = 0.01
log = logging.getLogger("thalweg")


class Bundle:
    """A trained energy with its data's transform, its sampler and its calibration. Made by `load`, not by hand."""

    def __init__(self, config: dict[str, Any], weights: Any, held_out: Tensor | None, path: Path):
        """`weights`: the energy itself, or its tensors by name."""
        self.config, self.path = config, path
        parts = parts_of(config, path / "config.json")
        self.kind, self.shape, self.normalised, self.dtype, self.layout, self.transform, self.sampler = parts
        self.model: nn.Module = weights if isinstance(weights, nn.Module) else energy_of(config)
        self.noisy: bool = getattr(self.model, "noisy", False)
        self.num_classes: int = getattr(self.model, "num_classes", 0)
        self.held_out_energies = held_out
        self.mixture_prior: MixtureOfFactorAnalyzers | None = None  # in model units
        self._warned = False
        if self.model is not weights:
            self.model.load_state_dict(weights)
        self.model.eval().requires_grad_(False)

    @property
    def t_min(self) -> float:
        """The lowest noise variance, in model units; 0 where the energy has no noise levels."""
        return float(self.model.t_min) if self.noisy else 0.0  # pyright: ignore[reportArgumentType]

    @property
    def t_max(self) -> float:
        """The highest noise variance, in model units."""
        return float(self.model.t_max) if self.noisy else 0.0  # pyright: ignore[reportArgumentType]

    @property
    def noisy_energy(self) -> nn.Module | None:
        """U(y, t) in model units, (B, *) and (B,) to (B,) nats; None where the energy has no noise levels."""
        return self.model if self.noisy else None

    def prior_log_prob(self, y: Tensor) -> Tensor:
        """log p of y at t_max, (B,) nats, in model units."""
        if not self.noisy:
            raise NotNormalised(f"{self.path}: this energy has no noise levels, hence no known law at t_max")
        return self.model.prior_log_prob(y)  # pyright: ignore[reportCallIssue]

    def encode(self, x: Tensor) -> Tensor:
        """Data units to model units."""
        return self.transform.forward(x)

    def decode(self, z: Tensor) -> Tensor:
        """Model units to data units; images in [0, 1]."""
        x = self.transform.inverse(z)
        return x.clamp(0, 1) if self.kind == "image" else x

    @cached_property
    def lowest(self) -> Any:
        """The ordinary energy E(z) in model units: U(z, t_min), or the model itself."""
        return AtNoise(self.model, torch.tensor(self.t_min, dtype=torch.float32)) if self.noisy else self.model

    def energy(self, x: Any) -> Float[Tensor, " b"]:
        """E(x), (B,) nats, low = likely; x (B, *) in data units. Equal to -log p(x) where the model is normalised.

        A frame (pandas, polars, Arrow) is matched by the names of its columns. Differentiable in an x that requires
        grad, so samplers take it; such an x may leave the range of the data.
        """
        wanted = isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(wanted), frozen(self.lowest) as energy:
            x = chain_positions(self, x) if wanted else checked_rows(self, x)
            u = torch.cat([energy(self.encode(part)) for part in x.split(EVALUATION_BLOCK)])
            return u - self.transform.log_abs_det(x)

    def log_prob(self, x: Any) -> Float[Tensor, " b"]:
        """log p(x), (B,) nats, of the data smoothed by the lowest noise; NotNormalised where the constant is
        unknown.
        """
        if not self.normalised:
            raise NotNormalised(
                f"{self.path}: trained by {self.config['run']['objective']['type'].split(':')[1]}, which leaves the "
                "energy's constant unknown; use .energy(x), or train with --recipe dual"
            )
        return -self.energy(x)

    def sample(
        self, n: int, *, seed: int = 0, num_steps: int | None = None, labels: Any = None, strength: float = 1.0
    ) -> Float[Tensor, "n *d"]:
        """n samples in data units (images clamped to [0, 1]); sample i does not depend on how many follow.

        `num_steps`: levels of the annealed sampler, or Langevin steps from noise (1,000 if not given). `seed` is a
        whole number of 64 bits. Blocks of 100 are computed together, so up to rounding only where n cuts one.
        `labels`, n of them or one for all, ask a classifier's energy for classes; `strength` above 1 for typical ones.
        """
        n, seed = whole("n", n, 0), whole("seed", seed, 0, 2**64 - 1)
        fits_memory(n, self.shape)
        num_steps = None if num_steps is None else whole("num_steps", num_steps, 1)
        given = None if labels is None else classify.check_labels(self, labels, n)
        if given is None and strength != 1:
            hint = "give the classes to draw"
            raise UserError("has no effect without labels", argument="strength", value=strength, hint=hint)
        with torch.inference_mode(False):  # gradients of the energy are wanted whatever the caller's mode
            draw = self._annealed if self.noisy else self._chains
            blocks = list(draw(n, seed, num_steps, given, strength))
        z = torch.cat(blocks) if blocks else torch.zeros(0, *self.shape, dtype=torch.float32)
        return self.decode(z)

    def inpaint(self, x: Any, observed: Any, *, n: int = 1, seed: int = 0) -> Float[Tensor, "n b *d"]:
        """n completions of each x where `observed` (bool, broadcastable to x) is false, lowest energy first.

        Data units; observed pixels come back exactly. More, such as operators: `thalweg.apps.inpaint`.
        """
        from thalweg.apps.inpaint import inpaint

        return inpaint(self, x, observed, n=n, seed=seed).images

    def score(self, x: Any, *, alpha: float = ALPHA) -> dict[str, Tensor]:
        """energy, log_prob (normalised models only), p_value and flag = p_value <= alpha, each (B,).

        p(x) = (1 + #{held-out energies >= E(x)}) / (1 + their number): the share of normal data at least as odd.
        An alpha below the smallest p-value there is, 1 / (1 + their number), flags nothing and is warned of once.
        """
        share(alpha=alpha)
        with torch.no_grad():
            u = self.energy(x)
        result = {"energy": u}
        if self.normalised:
            result["log_prob"] = -u
        if self.held_out_energies is not None:
            ranked = self.held_out_energies.sort().values
            p = torch.from_numpy(conformal.p_values(ranked.cpu().numpy(), u.cpu().numpy()))
            result["p_value"] = p.to(u.device, torch.float32)
            self._warn_of(alpha, 1 / (1 + len(ranked)))
            result["flag"] = result["p_value"] <= alpha
        return result

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the bundle's own files (not checkpoints or logs) to a folder that `load` reads, hashes included."""
        folder = Path(folder)
        extras = [name for name in EXTRAS if (self.path / name).is_file() and store.inside(self.path, name)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _require_files(folder, extras)
            write_bundle(folder, self.config, self.model.state_dict(), self.held_out_energies, self.mixture_prior)
            for name in extras if self.path.resolve() != folder.resolve() else ():
                shutil.copy(self.path / name, folder / name)
        except ThalwegError:
            raise
        except OSError as error:
            raise UserError(
                f"cannot write the bundle there ({error.strerror})", argument=str(folder), hint="name another folder"
            ) from error

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *, revision: str | None = None) -> "Bundle":
        """The same as `thalweg.load`."""
        return load(path_or_id, revision=revision)

    def push_to_hub(self, repo_id: str, *, revision: str | None = None, **options: Any) -> str:
        """Upload the bundle to the Hugging Face Hub. Returns the repository's address.

        `revision`: the branch to commit to, made if need be; main if not given. `options`: `token`, `private` and
        `commit_message`, as the Hub's own library takes them.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.pushed(Path(folder), repo_id, revision, (*FILES, store.MANIFEST), **options)

    def _warn_of(self, alpha: float, smallest: float) -> None:
        if alpha < smallest and not self._warned:
            self._warned = True
            log.warning(
                f"{self.path}: alpha={alpha:g} is below the smallest p-value of {smallest:.3g} that the held-out rows "
                f"allow, so no row can be flagged; use alpha={smallest:.3g} or more, or train with more held-out rows"
            )

    def classify(self, x: Any) -> Float[Tensor, "b k"]:
        """p(label | x) = softmax of -E(x, label), (B, K), calibrated on held-out data; UserError without classes."""
        return classify.probabilities(self, checked_rows(self, x))

    def _annealed(self, n: int, seed: int, num_steps: int | None, labels: Tensor | None, strength: float) -> Any:
        sampler = self.sampler if num_steps is None else dataclasses.replace(self.sampler, num_steps=num_steps)
        given = None if labels is None else classify.of_classes(self.model, labels, strength)
        precision = self.config.get("precision", "fp32")
        return anneal(sampler, self.model, n, seed=seed, precision=precision, of_rows=given)

    def _chains(self, n: int, seed: int, num_steps: int | None, labels: Tensor | None, strength: float) -> Any:
        for block, start in enumerate(range(0, n, BLOCK)):
            draws, image = generator(seed, "sample", block), self.kind == "image"
            make = torch.rand if image else torch.randn
            x = make(BLOCK, *self.shape, generator=draws, dtype=torch.float32)[: n - start]
            z = self.transform.forward(x) if image else x
            chain = generator(seed, "sample-chain", block).initial_seed()  # no block shares noise with another seed's
            sampler = of_block(self.sampler, BLOCK)
            energy = self.model
            if labels is not None:
                energy = classify.of_classes(energy, labels, strength)(start, start + len(z))
            yield run_chain(sampler, energy, z, num_steps=num_steps or CHAIN_STEPS, seed=chain)


def _require_files(folder: Path, names: Iterable[str]) -> None:
    """UserError where something other than a file stands in the place of one."""
    for path in (folder / name for name in names):
        if path.exists() and not path.is_file():
            hint = "move it away, or name another one"
            raise UserError("a folder stands where a file is to be written", argument=str(path), hint=hint)


def write_bundle(
    folder: Path,
    config: dict[str, Any],
    weights: Any,
    held_out: Tensor | None,
    mixture_prior: MixtureOfFactorAnalyzers | None = None,
) -> None:
    """Write the bundle's files into its folder, each whole, the manifest last: until then the folder is no bundle."""
    _require_files(folder, (*FILES, store.MANIFEST))
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
    """config.json of a run folder, its format checked; UserError where the folder is no run of this version."""
    return _checked(_config(folder), folder)


def _config(folder: Path) -> Any:
    if not (folder / "config.json").exists():
        raise UserError(
            "no config.json there, so it is not a run",
            argument=str(folder),
            hint="give the folder that `thalweg train` wrote",
        )
    return store.read_json(folder / "config.json")


def _checked(config: Any, folder: Path) -> dict[str, Any]:
    where = str(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise DamagedFile("not the configuration of a run", argument=where)
    if config["format"] != FORMAT:
        raise UserError(
            f"written by thalweg {config.get('thalweg')} in format {config['format']}; this version reads format "
            f"{FORMAT}",
            argument=str(folder),
            hint="use that version, or train again",
        )
    missing = {"run", "data", "normalised"} - config.keys()
    if missing:
        raise DamagedFile(f"lacks {', '.join(sorted(missing))}", argument=where)
    return config


def load(path_or_id: str | Path, *, revision: str | None = None) -> Any:
    """The bundle in a run folder, or on the Hugging Face Hub under that id; of a detector its `DetectorBundle`,
    of a re-ranker its `EnergyReranker`.

    `revision`: the branch, tag or commit of a bundle on the Hub; its main branch if not given.
    UserError: no such folder, another format. DamagedFile, by name: a file whose hash or form is wrong.
    """
    if not isinstance(path_or_id, str | Path):
        what = "must be the folder of a run, or its id on the Hugging Face Hub, as text"
        raise UserError(what, argument="path_or_id", value=stated(path_or_id))
    folder = Path(path_or_id)
    if not folder.exists():
        folder = hub.fetched(str(path_or_id), revision)  # the text as given: Path takes the ./ away
    elif revision is not None:
        raise UserError("has no effect on a folder that is here", argument="revision", value=revision)
    if not folder.is_dir():
        raise UserError("a file, where the folder of a run was wanted", argument=str(folder))
    try:
        return _opened(folder)
    except DamagedFile as error:
        if error.hint != store.REMEDY or any((folder / "checkpoints").glob("step-*")):
            raise
        raise error.replace(hint="restore it from a copy, or train or fit again") from error


def _opened(folder: Path) -> Any:
    """What a folder that is there holds; each file is hashed once, before anything in it is used."""
    sealed = (folder / store.MANIFEST).exists()
    if sealed:
        listed = store.verify(folder)
        store.require_listed(folder, [name for name in FILES if (folder / name).exists()], listed)
    config = _config(folder)
    app = config.get("app") if isinstance(config, dict) else None
    if app in ("anomaly", "rerank") and not sealed:  # which are written whole, the manifest with them
        raise DamagedFile(
            "missing, so the folder is not whole",
            argument=str(folder / store.MANIFEST),
            hint="restore it, or fit again",
        )
    if app == "anomaly":
        from thalweg.apps.anomaly.saved import read

        return read(folder, config)
    if app == "rerank":
        from thalweg.apps.rerank import EnergyReranker

        return EnergyReranker.read(folder, config)
    config = _checked(config, folder)
    if not sealed:
        return _of_checkpoint(folder, config)
    bundle = _filled(config, folder / "model.safetensors", folder)
    calibration = folder / "calibration.safetensors"
    bundle.held_out_energies = held_out_energies(calibration) if calibration.exists() else None
    if (folder / "prior.safetensors").exists():
        bundle.mixture_prior = read_mixture_prior(folder / "prior.safetensors", bundle.shape)
    return bundle


def _of_checkpoint(folder: Path, config: dict[str, Any]) -> Bundle:
    """The bundle of a run that has not ended."""
    newest, warnings = store.newest_valid(folder / "checkpoints")
    for warning in warnings:
        log.warning("%s", warning)
    if newest is None and (folder / "model.safetensors").exists():  # of a run that has ended
        raise DamagedFile(
            "missing, so nothing vouches for the weights",
            argument=str(folder / store.MANIFEST),
            hint="restore it",
        )
    if newest is None:
        raise UserError(
            "this run has not saved anything yet", argument=str(folder), hint="let it reach its first checkpoint"
        )
    log.warning("%s: the run has not ended; reading its checkpoint %s, without calibration", folder, newest.name)
    return _filled(config, newest / "model.safetensors", folder)


def _filled(config: dict[str, Any], weights: Path, folder: Path) -> Bundle:
    """The bundle with weights from a file, which are seen to be its own before memory is taken for either."""
    parts_of(config, folder / "config.json")
    require_weights(config, store.read_header(weights), weights)
    return Bundle(config, store.read_tensors(weights), None, folder)
