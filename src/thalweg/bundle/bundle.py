"""The bundle: a trained energy as a run leaves it and everything else reads it.

A run that has not ended is read from its newest whole checkpoint. `bundle.files` says what lies in the folder.
"""

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.bundle import classes, hub
from thalweg.bundle import constant as constants
from thalweg.bundle.chain_length import start_law
from thalweg.bundle.draws import annealed_blocks, chain_blocks
from thalweg.bundle.files import EXTRAS, FILES, HoldsEnergy, holds, load_as, require_files, write_bundle
from thalweg.bundle.flags import ConformalFlags
from thalweg.bundle.from_config import energy_of, given_energy, held_out_energies, parts_of, require_weights
from thalweg.bundle.inputs import chain_positions, checked_rows, decoded_frame, some_rows, wants_grad
from thalweg.bundle.kept import KeptEnergy
from thalweg.bundle.model_units import decoded, initial_positions
from thalweg.bundle.prior import read_mixture_prior
from thalweg.bundle.servable import Servable
from thalweg.core import store
from thalweg.core.check import fits_memory, share, stated, whole
from thalweg.core.device import find_device, place
from thalweg.core.errors import DamagedFile, NotNormalised, ThalwegError, UserError
from thalweg.core.rng import generator
from thalweg.data.validate import Kind
from thalweg.energy.base import Classifier, EnergyFn, HasExactDraws, HasExactLogZ, NoiseConditional
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.engine.discovery import device_of
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.engine.fused import keep_memory
from thalweg.energy.outcomes import Conditional
from thalweg.energy.wrappers import AtNoise
from thalweg.normaliser.estimate import LogProb, LogZ
from thalweg.sampler.base import Sampler

EVALUATION_BLOCK = 256
ALPHA = 0.01
MANIFEST = store.MANIFEST
log = logging.getLogger("thalweg")


class Bundle(HoldsEnergy):
    """A trained energy with its data's transform, its sampler and its calibration. Made by `load`, not by hand.

    It computes on one device (`to`). What is given may lie on any, and results come back to where it was.
    """

    title, command = "a trained energy", "thalweg score"

    def __init__(
        self,
        config: dict[str, Any],
        weights: nn.Module | dict[str, Tensor],
        held_out: Tensor | None,
        path: Path,
        sampler: Sampler[Any] | None = None,
    ):
        """`weights`: the energy itself, or its tensors by name. `sampler`: in place of the config's."""
        self.config, self.path = config, path
        parts = parts_of(config, path / "config.json", sampler)
        self.kind: Kind
        self.kind, self.shape, self.normalised, self.dtype, self.layout, self.transform, self.sampler = parts[:-1]
        self.alphabet = parts.alphabet
        self.model: nn.Module = weights if isinstance(weights, nn.Module) else energy_of(config)
        self.noisy, self.held_out_energies = isinstance(self.model, NoiseConditional), held_out
        self.num_classes = self.model.num_classes if isinstance(self.model, Classifier) else 0
        self.mixture_prior: MixtureOfFactorAnalyzers | None = None  # in model units
        self._kept, self._flags = KeptEnergy(), ConformalFlags(path)
        if not isinstance(weights, nn.Module):
            self.model.load_state_dict(weights)
        self.model.eval().requires_grad_(False)

    @classmethod
    def read(cls, folder: Path, config: dict[str, Any], energy: Any = None) -> Self:
        """The bundle in a run's folder; of a run that has not ended, that of its newest whole checkpoint."""
        missing = {"run", "data", "normalised"} - config.keys()
        if missing:
            raise DamagedFile(f"must hold {', '.join(sorted(missing))}", argument=str(folder / "config.json"))
        if not (folder / store.MANIFEST).exists():
            return cls._of_checkpoint(folder, config, energy)
        bundle = cls._filled(config, folder / "model.safetensors", folder, energy)
        calibration = folder / "calibration.safetensors"
        bundle.held_out_energies = held_out_energies(calibration) if calibration.exists() else None
        if (folder / "prior.safetensors").exists():
            bundle.mixture_prior = read_mixture_prior(folder / "prior.safetensors", bundle.shape)
        return bundle

    @classmethod
    def _of_checkpoint(cls, folder: Path, config: dict[str, Any], energy: Any) -> Self:
        """The bundle of a run that has not ended."""
        newest, warnings = store.newest_valid(folder / "checkpoints")
        for warning in warnings:
            log.warning("%s", warning)
        if newest is None and (folder / "model.safetensors").exists():  # of a run that has ended
            text, file = "must be there, as it holds the hashes of the weights", folder / store.MANIFEST
            raise DamagedFile(text, argument=str(file), hint="restore it")
        if newest is None:
            text = "must hold a checkpoint, and the run has not saved one yet"
            raise UserError(text, argument=str(folder), hint="wait for its first checkpoint")
        log.warning("%s: the run has not ended; reading its checkpoint %s, without calibration", folder, newest.name)
        return cls._filled(config, newest / "model.safetensors", folder, energy)

    @classmethod
    def _filled(cls, config: dict[str, Any], weights: Path, folder: Path, energy: Any) -> Self:
        """The bundle with weights from a file, which are seen to be its own before memory is taken for either."""
        parts_of(config, folder / "config.json")
        header = store.read_header(weights)
        if energy is None:
            require_weights(config, header, weights)
            return cls(config, store.read_tensors(weights), None, folder)
        module = given_energy(config, energy, header)
        module.load_state_dict(store.read_tensors(weights))
        return cls(config, module, None, folder)

    @property
    def energy_shape(self) -> tuple[int, ...]:
        """The shape of one row in model units: one-hot letters (L, K) of texts, else that of the data."""
        return self.shape if self.alphabet is None else (*self.shape, self.alphabet.num_states)

    @property
    def device(self) -> torch.device:
        """Where the energy lies."""
        return self._kept.device or device_of(self.model)

    def to(self, device: str | torch.device) -> Self:
        """The bundle itself, moved to a device, as `load` takes it. UserError where that is not there."""
        self._kept.end()
        place(self.model, find_device(device))
        if self.held_out_energies is not None:
            self.held_out_energies = self.held_out_energies.to(self.device)
        if self.mixture_prior is not None:
            self.mixture_prior.to(self.device)
        return self

    @property
    def t_min(self) -> float:
        """The lowest noise variance, in model units; 0 where the energy has no noise levels."""
        return float(self.model.t_min) if isinstance(self.model, NoiseConditional) else 0.0

    @property
    def t_max(self) -> float:
        """The highest noise variance, in model units."""
        return float(self.model.t_max) if isinstance(self.model, NoiseConditional) else 0.0

    @property
    def noisy_energy(self) -> nn.Module | None:
        """U(y, t) in model units, (B, *) and (B,) to (B,) nats; None where the energy has no noise levels."""
        return self.model if self.noisy else None

    @property
    def countable(self) -> HasExactLogZ | None:
        """The energy in model units, where it is one of states that may be summed over; None for any other."""
        return self.model if isinstance(self.model, HasExactLogZ) else None

    @property
    def constant(self) -> LogZ | None:
        """What `log_z` estimated and stored, in data units; None where it was not asked."""
        found = constants.stored(self.config)
        return None if found is None else found[0]

    def prior_log_prob(self, y: Tensor) -> Tensor:
        """log p of y at t_max, (B,) nats, in model units."""
        if not isinstance(self.model, NoiseConditional):
            raise NotNormalised(
                "must be a model with noise levels, whose law at t_max is known", argument=str(self.path)
            )
        return self.model.prior_log_prob(y)

    def encode(self, x: Tensor) -> Tensor:
        """Data units to model units, on the bundle's device."""
        return self.transform.forward(x.to(self.device))

    def decode(self, z: Tensor) -> Tensor:
        """Model units to data units, where z lies; images in [0, 1]."""
        return decoded(self.kind, self.transform, z)

    def chains(self, n: int, *, seed: int = 0) -> tuple[Sampler[Any], EnergyFn, Tensor] | None:
        """(sampler, E(z), n independent starts) in model units; None where samples are drawn without such chains."""
        if self.noisy or isinstance(self.model, HasExactDraws):
            return None
        draws = generator(seed, "chains", device=self.device)
        given = (self.kind, self.transform, (n, *self.shape), draws, self.model)
        return self.sampler, self.model, initial_positions(*given, start_law(self))

    @property
    def lowest(self) -> EnergyFn:
        """The ordinary energy E(z) in model units: U(z, t_min), or the model itself."""
        if self._kept.energy is not None:
            return self._kept.energy
        t = torch.full((), self.t_min, dtype=torch.float32, device=self.device)
        return AtNoise(self.model, t) if self.noisy else self.model

    def keep_frozen(self) -> None:
        """Get ready for many small calls: weights become constants until `to`. The model must not be trained then."""
        self._kept.begin(self.lowest)

    def energy(self, x: Any) -> Float[Tensor, " b"]:
        """E(x), (B,) nats, low = likely; x (B, *) in data units. Equal to -log p(x) where the model is normalised.

        A frame (pandas, polars, Arrow) is matched by the names of its columns. Of a model of texts x is a list of str,
        or their codes. Differentiable in an x that requires grad; such an x may leave the range of the data.
        """
        keep_memory()  # the same sizes are asked for block by block, call by call
        with torch.set_grad_enabled(wants_grad(x)), frozen(self.lowest) as energy:
            x = self._rows(x)
            parts = [energy(self.encode(part)) for part in x.split(EVALUATION_BLOCK)]
            u = torch.cat(parts) if len(parts) > 1 else parts[0]
            return u.to(x.device) - self.transform.log_abs_det(x)

    def _rows(self, x: Any) -> Tensor:
        return chain_positions(self, x) if wants_grad(x) else some_rows(self, x)

    def log_prob(self, x: Any) -> Float[Tensor, " b"] | LogProb:
        """log p(x), (B,) nats, in data units; of a model with noise levels, of data smoothed by the lowest noise. Of
        categories it is the density of the columns of 0 and 1 that they become (docs/guide/tables.md).

        Where the constant was estimated by `log_z` it is a `LogProb` of (B,) tensors, with that interval, for
        exp(-E(x) / T); -inf outside the box that it integrated over. NotNormalised where the constant is not known.
        """
        if self.normalised:
            return -self.energy(x)
        if constants.stored(self.config) is not None:
            log_p = constants.log_prob(self, self._rows(x), self.energy(x))
            assert log_p is not None
            return log_p
        raise constants.not_normalised(self)

    def log_z(self, *, seed: int = 0, store: bool = True, support: str | None = None, **options: Any) -> LogZ:
        """log Z in nats with an interval, for log p(x) = -E(x) / T - log Z; E is `energy`, so x is in data units.

        T is the temperature of the bundle's sampler, 1 where it has none: exp(-E / T) is what its chains sample. The
        integral runs over the box that the sampler clamps to, over [0, 1] for other images, over all of space for rows;
        an energy of states is summed, exactly and without draws where it can count them (`countable`; then `estimate`,
        `low` and `high` are equal, `ess` is infinite, and options have no effect). A clamped chain has probability on
        the walls, which a density has not, so its samples follow log p but for that.

        `log_prob`, `score` and the commands then answer with the interval. UserError where the integral does not exist,
        or where the folder cannot be written.

        Args:
            seed: Of all draws.
            store: Keep it in the bundle and, where it was read from a run's folder, in that folder.
            support: "real" or "box", in place of the above.
            options: Of `thalweg.log_z`: `num_chains`, `max_steps`, `tolerance` … For images the first two are smaller.
        """
        found = constants.estimated(self, seed=seed, support=support, options=options)
        constant = constants.stored({"log_z": found})
        assert constant is not None
        if store:
            self.config = {**self.config, "log_z": found}
            if (self.path / MANIFEST).exists():
                self.save_pretrained(self.path)
        return constant[0]

    def sample(
        self, n: int, *, seed: int = 0, num_steps: int | None = None, labels: Any = None, strength: float = 1.0
    ) -> Float[Tensor, "n *d"]:
        """n samples in data units (images clamped to [0, 1]), on the bundle's device.

        Sample i does not depend on how many follow. A GPU draws other samples by a seed than the CPU.
        `num_steps`: levels of the annealed sampler, or steps of a chain (if not given 1,000, as many as
        `bundle.chain_length` found, or none after exact draws).
        `seed` is a whole number of 64 bits. Blocks of 100 are computed together, so up to rounding where n cuts one.
        `labels`, n of them or one for all, ask a classifier's energy for classes; `strength` above 1 for typical ones.
        Of a model of texts these are codes, which `texts` reads; of a table `frame` gives its columns.
        """
        if isinstance(self.model, Conditional):
            text = "must be a law of whole rows, and this one is p(y | x)"
            hint = "draw y by thalweg.apps.conditional.model:ConditionalModel"
            raise UserError(text, argument=str(self.path), hint=hint)
        n, seed = whole("n", n, 0), whole("seed", seed, 0, 2**64 - 1)
        fits_memory(n, self.energy_shape)
        num_steps = None if num_steps is None else whole("num_steps", num_steps, 1)
        given = None if labels is None else classes.check_labels(self, labels, n)
        if given is None and strength != 1:
            hint = "give the classes to draw as labels"
            raise UserError("must be 1 without labels", argument="strength", value=strength, hint=hint)
        with torch.inference_mode(False):  # gradients of the energy are wanted whatever the caller's mode
            blocks = list((annealed_blocks if self.noisy else chain_blocks)(self, n, seed, num_steps, given, strength))
        z = torch.cat(blocks) if blocks else torch.zeros(0, *self.energy_shape, dtype=torch.float32, device=self.device)
        return self.decode(z)

    def texts(self, codes: Any) -> list[str]:
        """The texts of codes (B, L), such as samples; U+FFFD stands for a letter that no training text has."""
        if self.alphabet is None:
            text, hint = f"must be a model of texts; it is one of {self.kind} data", "take the samples as they are"
            raise UserError(text, argument=str(self.path), hint=hint)
        return self.alphabet.decode(checked_rows(self, codes, where="codes"))

    def frame(self, x: Any) -> Any:
        """Rows (B, D), such as samples, as a pandas frame of the columns of the run's table, its categories by name."""
        return decoded_frame(self, x)

    def inpaint(self, x: Any, observed: Any, *, n: int = 1, seed: int = 0) -> Float[Tensor, "n b *d"]:
        """n completions of each x where `observed` (bool, broadcastable to x) is false, lowest energy first.

        Data units; observed pixels come back exactly. More, such as operators: `thalweg.apps.inpaint.inpaint`.
        """
        from thalweg.apps.inpaint.inpaint import inpaint

        return inpaint(self, x, observed, n=n, seed=seed).images

    def explain(self, x: Any, *, edits: int = 1, channel: bool = False, beam: int = 20) -> Any:
        """Of a model of texts: the surprise of each letter of each text, what was expected, and the likeliest repair.

        A list of `thalweg.apps.words.explain:Explanation`; options as there.
        """
        from thalweg.apps.words.explain import explain

        return explain(self, x, edits=edits, channel=channel, beam=beam)

    def score(self, x: Any, *, alpha: float = ALPHA) -> dict[str, Tensor]:
        """energy, log_prob (where the constant is known), p_value and flag = p_value <= alpha, each (B,).

        Where `log_z` has estimated the constant, log_prob_low and log_prob_high are the ends of its interval.

        p(x) = (1 + #{held-out energies >= E(x)}) / (1 + their number): the share of normal data at least as odd.
        An alpha below the smallest p-value there is, 1 / (1 + their number), flags nothing and is warned of once.
        """
        share(alpha=alpha)
        with torch.no_grad():
            u = self.energy(x)
        result = {"energy": u}
        if self.normalised:
            result["log_prob"] = -u
        elif self.constant is not None:
            log_p = constants.log_prob(self, self._rows(x), u)
            assert log_p is not None
            result |= {"log_prob": log_p.estimate, "log_prob_low": log_p.low, "log_prob_high": log_p.high}
        if self.held_out_energies is not None:
            result["p_value"], result["flag"] = self._flags(self.held_out_energies, u, alpha)
        return result

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the bundle's own files (not checkpoints or logs) to a folder that `load` reads, hashes included.

        UserError, and nothing written, where the folder has files of these names that are no trained energy's.
        """
        if not isinstance(folder, str | Path) or not str(folder):
            raise UserError("must be the path of a folder", argument="folder", value=stated(folder))
        folder = Path(folder)
        there = [name for name in (*FILES, *EXTRAS, store.MANIFEST) if (folder / name).is_file()]
        if there and not (folder / "config.json").is_dir() and not holds(folder, Bundle):
            text = f"must be a folder without {there[0]}, or one that holds a trained energy"
            raise UserError(text, argument=str(folder), hint="name another folder")
        extras = [name for name in EXTRAS if (self.path / name).is_file() and store.inside(self.path, name)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            require_files(folder, extras)
            write_bundle(folder, self.config, self.model.state_dict(), self.held_out_energies, self.mixture_prior)
            for name in extras if self.path.resolve() != folder.resolve() else ():
                shutil.copy(self.path / name, folder / name)
        except ThalwegError:
            raise
        except OSError as error:
            text = f"must be a folder that can be written in ({error.strerror})"
            raise UserError(text, argument=str(folder), hint="name another folder") from error

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        revision: str | None = None,
        energy: Any = None,
        trust: Sequence[str] = (),
        device: str | torch.device = "auto",
    ) -> Self:
        """The same as `thalweg.load`, of a trained energy only."""
        return load_as(path_or_id, cls, revision=revision, energy=energy, trust=trust, device=device)

    def push_to_hub(self, repo_id: str, *, revision: str | None = None, **options: Any) -> str:
        """Upload the bundle to the Hugging Face Hub. Returns the repository's address.

        `revision`: the branch to commit to, made if need be; main if not given. `options`: `token`, `private` and
        `commit_message`, as the Hub's own library takes them.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.upload(Path(folder), repo_id, revision, (*FILES, store.MANIFEST), **options)

    def classify(self, x: Any) -> Float[Tensor, "b k"]:
        """p(label | x) = softmax of -E(x, label), (B, K), calibrated on held-out data; UserError without classes."""
        from thalweg.apps.classify.probabilities import probabilities

        return probabilities(self, checked_rows(self, x))

    def servable(self) -> Servable:
        from thalweg.bundle.served import served

        return served(self)
