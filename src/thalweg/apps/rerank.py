"""Re-ranking: many candidates in, the best out, by an energy and without losing variety.

A generator is cheap to ask again and knows nothing of its faults. An energy that was trained to tell its draws from
data knows them: E(x) = -log p_data(x) / p_gen(x) (`apps.ratio`). What is kept is chosen by that energy *and* by what
is kept beside it (`apps.selection`). A model's own -log p is a poor judge here: it prefers what is plain.
"""

import logging
import math
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

import thalweg
from thalweg.apps import selection, support
from thalweg.apps.candidates import as_candidates
from thalweg.apps.ratio import Check, RatioEnergy, RatioSettings, fit_ratio
from thalweg.apps.trials import Trial
from thalweg.core import store
from thalweg.core.errors import DamagedFile, UserError
from thalweg.sampler.langevin import ULA
from thalweg.sampler.run import run_chain

Variety = Literal["strata", "repelled", "determinantal", "none"]
APP, FORMAT = "rerank", 2
BLOCK = 500
PIXELS = 14  # a side, of images as features
log = logging.getLogger("thalweg")


class EnergyReranker:
    """Rank candidates, best first, and keep the best without copies of one another.

    - `energy`: a `Bundle`, any module or callable (B, *) to (B,), low = good; None: learn a likelihood ratio by `fit`.
    - `variety`: how `keep` of them are chosen, a function of `apps.selection`; "none": by energy alone.
    - `features`: a callable (B, *) to (B, F) that says what is alike; the ratio's last hidden layer, or coarse pixels.
    - `seed`: of training and clusters. `settings`: how the ratio is learned.

    After `fit`: `check_`, what the energy knows of rows that it did not see.
    """

    check_: Check | None = None

    def __init__(
        self,
        energy: Any = None,
        *,
        variety: Variety = "repelled",
        features: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        settings: RatioSettings | None = None,
    ):
        self.energy, self.variety, self.features = energy, variety, features
        self.seed, self.settings = seed, settings
        self.require_variety()
        if features is not None and not callable(features):
            raise UserError(f"features: a {type(features).__name__}; want a callable (B, *) -> (B, F)")
        if settings is not None and not isinstance(settings, RatioSettings):
            raise UserError(f"settings: a {type(settings).__name__}; want a RatioSettings")
        if not _is_whole(seed, 0) or seed >= 2**64:
            raise UserError(f"seed={seed!r}: want a whole number, zero or more, below 2**64")

    def fit(self, real: Any, generated: Any, *, names: tuple[str, str] = ("real", "generated")) -> Self:
        """Learn E(x) = -log p_data / p_gen from real rows and the generator's own; some thousand of either are good.

        Generated rows must not be among the candidates later: of those it was trained on, the energy thinks worse.
        A check that does not beat chance is warned of: then any order is as good as another. Errors call the two sides
        by `names`.
        """
        self.require_variety()
        real, generated = (as_candidates(x, where=name) for x, name in zip((real, generated), names, strict=True))
        self.energy, self.check_ = fit_ratio(real, generated, self.settings, seed=self.seed, names=names)
        if not self.check_.beats_chance:
            log.warning(
                f"real and generated rows cannot be told apart: held-out loss {self.check_.loss:.3f} ± "
                f"{self.check_.standard_error:.3f} nats, chance is 0.693; the ranking will be noise: give more rows"
            )
        return self

    def energies(self, candidates: Any) -> Tensor:
        """(N,) energies, low = good. UserError where the energy is NaN, with the index."""
        return self._look(self._given(candidates), False)[0]

    def rank(self, candidates: Any, keep: int | None = None) -> Tensor:
        """Indices, best first: all in order of energy, or `keep` of them chosen for variety too, (N,) or (keep,).

        Copies of a candidate, bit by bit, are kept once. Where fewer than `keep` differ, those come first and the best
        of the copies after them, with a warning. Ties go to the lower index; the same candidates give the same indices.
        UserError for keep > N.
        """
        return self.ranked(candidates, keep)[1]

    def ranked(self, candidates: Any, keep: int | None = None) -> tuple[Tensor, Tensor]:
        """(`energies` (N,), `rank`) of the candidates, at the price of one."""
        self.require_variety()
        x = self._given(candidates)
        keep = _count(keep, len(x))
        if keep is None:
            u, _ = self._look(x, False)
            return u, selection.best(u, len(u))
        first = selection.distinct(x)
        varied = self.variety != "none" and keep < len(first)
        u, f = self._look(x, varied)
        if keep > len(first):
            log.warning(f"keep={keep}: of the {len(x)} only {len(first)} differ bit by bit; copies fill the rest")
            rest = u.clone()
            rest[first] = torch.inf
            return u, torch.cat([_ordered(first, u), selection.best(rest, keep - len(first))])
        chosen = first[self._choose(u[first], f[first], keep)] if varied else first
        return u, _ordered(chosen, u)[:keep]

    def best_of(self, candidates: Any, size: int) -> Tensor:
        """The best of each `size` candidates in turn, (ceil(N / size),) indices: a best-of-N choice as it is served."""
        if not _is_whole(size, 1):
            raise UserError(f"size={size!r}: want 1 or more candidates a group, a whole number")
        return selection.best_of_groups(self.energies(candidates), size)

    def refine(
        self,
        candidates: Any,
        energy: Any = None,
        *,
        num_steps: int = 5,
        step_size: float = 1e-3,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Tensor:
        """The candidates after a few Langevin steps on an energy in nats, this one's if none is given; images stay in
        [0, 1].

        `step_size` in squared units of the data. A likelihood ratio is only known near the generator's draws and a long
        chain leaves them: with it few steps, or none; a bundle's own energy is the safer one to walk on.
        """
        for name, value, fits in (
            ("num_steps", num_steps, _is_whole(num_steps, 0)),
            ("step_size", step_size, _is_number(step_size) and step_size > 0),
            ("temperature", temperature, _is_number(temperature) and temperature >= 0),
            ("seed", seed, _is_whole(seed, 0)),
        ):
            if not fits:
                want = {"step_size": "a number above zero", "temperature": "a number, zero or more"}
                raise UserError(f"{name}={value!r}: want {want.get(name, 'a whole number, zero or more')}")
        x = self._given(candidates)
        if not len(x):
            return x
        u = _function(self._energy() if energy is None else energy)
        with torch.no_grad():
            _numbers(u(x[:1]), 1)
        sampler = ULA(step_size=step_size, temperature=temperature, clamp=(0.0, 1.0) if x.ndim == 4 else None)
        return torch.cat(
            [run_chain(sampler, u, part, num_steps=num_steps, seed=seed + i) for i, part in enumerate(x.split(BLOCK))]
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the fitted likelihood ratio to a folder that `thalweg.load` opens, whole or not at all."""
        energy = self._energy()
        if not isinstance(energy, RatioEnergy):
            raise UserError("only a fitted likelihood ratio is saved; the energy given here has a home of its own")
        folder, s = Path(folder), energy.settings
        self.require_savable(folder)
        config = {
            "format": FORMAT,
            "app": APP,
            "thalweg": thalweg.__version__,
            "shape": list(energy.shape),
            "settings": {name: getattr(s, name) for name in s.__dataclass_fields__},
            "variety": self.variety,
            "seed": self.seed,
            "check": None if self.check_ is None else self.check_._asdict(),
        }

        def write(aside: Path) -> None:
            store.write_json(aside / "config.json", config)
            store.write_tensors(aside / "model.safetensors", energy.state_dict())

        folder.parent.mkdir(parents=True, exist_ok=True)
        store.save_folder(folder, write)

    @staticmethod
    def require_savable(folder: Path) -> None:
        """UserError where the folder holds something else."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not _is_reranker(folder):
            raise UserError(f"{folder}: holds something that is no re-ranker; name another folder")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The re-ranker that `save_pretrained` wrote; UserError or DamagedFile, by name, for anything else."""
        folder = Path(folder)
        if not _is_reranker(folder):
            raise UserError(f"{folder}: not a fitted re-ranker; give the folder that `thalweg rerank fit` wrote")
        store.verify(folder)
        return cls.read(folder, store.read_json(folder / "config.json"))

    @classmethod
    def read(cls, folder: Path, config: dict[str, Any]) -> Self:
        """The re-ranker in a folder whose files have been verified, with its config."""
        if config.get("format") != FORMAT:
            raise UserError(f"{folder}: a re-ranker of format {config.get('format')}, this reads {FORMAT}; fit again")
        weights = store.read_tensors(folder / "model.safetensors")
        try:
            settings = RatioSettings(**{name: _tuple(value) for name, value in config["settings"].items()})
            energy = _restored(_tuple(config["shape"]), settings, weights)
            found = cls(
                energy.eval().requires_grad_(False), variety=config["variety"], seed=config["seed"], settings=settings
            )
            if config["check"] is not None:
                check = {name: _tuple(value) for name, value in config["check"].items()}
                found.check_ = Check(**{**check, "trials": tuple(Trial(*trial) for trial in check["trials"])})
                _ = found.check_.beats_chance + check["auc"]
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            why = " ".join(str(error).split())[:200]
            raise DamagedFile(
                f"{folder / 'config.json'}: not a re-ranker's, or not of the weights beside it ({why}); fit again"
            ) from error
        return found

    @property
    def shape(self) -> tuple[int, ...] | None:
        """What a candidate must look like, where the energy says."""
        shape = getattr(self.energy, "shape", None)
        return None if shape is None else tuple(shape)

    def _choose(self, u: Tensor, f: Tensor, keep: int) -> Tensor:
        if self.variety == "strata":
            return selection.strata(u, f, keep, seed=self.seed)
        return (selection.repelled if self.variety == "repelled" else selection.determinantal)(u, f, keep)

    def require_variety(self) -> None:
        """UserError for a `variety` that is none."""
        if self.variety not in get_args(Variety):
            raise UserError(f"variety={self.variety!r}: want one of {', '.join(get_args(Variety))}")

    def _energy(self) -> Any:
        if self.energy is None:
            raise UserError("this EnergyReranker has no energy: give one, or call fit(real, generated)")
        return self.energy

    def _given(self, candidates: Any) -> Tensor:
        return as_candidates(candidates, self.shape)

    @torch.no_grad()
    def _look(self, x: Tensor, featured: bool) -> tuple[Tensor, Tensor]:
        """Energies (N,) and, if wanted, features (N, F), block by block."""
        energy, blocks = self._energy(), []
        for part in x.split(BLOCK) if len(x) else ():
            if featured and self.features is None and isinstance(energy, RatioEnergy):
                blocks.append(energy.both(part))
            else:
                u = _numbers(_function(energy)(part), len(part))
                blocks.append((u, self._features(part) if featured else u[:, None][:, :0]))
        if not blocks:
            return torch.zeros(0), torch.zeros(0, 0)
        u, f = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return _checked(u, len(x)), f

    def _features(self, x: Tensor) -> Tensor:
        if self.features is not None:
            f = self.features(x)
            if not isinstance(f, Tensor) or f.ndim < 2 or len(f) != len(x):
                raise UserError(f"features: gives {_form(f)} for {len(x)} candidates; want a row each, ({len(x)}, F)")
            f = f.flatten(1).float()
            if not bool(f.isfinite().all()):
                raise UserError("features: gives NaN or infinity; want finite numbers")
            return f
        if x.ndim != 4:
            return x
        return F.adaptive_avg_pool2d(x, [min(PIXELS, side) for side in x.shape[2:]]).flatten(1)


def _restored(shape: Any, settings: RatioSettings, weights: dict[str, Tensor]) -> RatioEnergy:
    """The energy of a file's settings and weights; built without memory of its own, which a false size would claim.

    ValueError or RuntimeError where they do not belong together or do not give numbers.
    """
    if "auto" in (settings.view, settings.noise):
        raise ValueError("view and noise are not settled")
    if len({name.split(".")[1] for name in weights if name.startswith("members.")}) != settings.members:
        raise ValueError(f"members={settings.members}, and the weights are of another number")
    bad = [name for name, value in weights.items() if value.dtype != torch.float32 or not bool(value.isfinite().all())]
    if bad:
        raise ValueError(f"{bad[0]} holds what is no finite float32")
    if "limits" not in weights:  # of a judge that was fitted before there were any
        weights = {**weights, "limits": support.unlimited(len(shape) == 3), "price": torch.zeros(())}
    with torch.device("meta"):
        energy = RatioEnergy(shape=shape, settings=settings)
    energy.load_state_dict(weights, assign=True)
    if not (bool((energy.deviation > 0).all()) and float(energy.scale) > 0):
        raise ValueError("deviation and scale are not above zero")
    return energy


def _ordered(chosen: Tensor, u: Tensor) -> Tensor:
    """Some indices, best first."""
    return chosen[u[chosen].sort(stable=True).indices]


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tuple(value: Any) -> Any:
    """What JSON read as a list, as the tuple that it was, and so within."""
    return tuple(_tuple(part) for part in value) if isinstance(value, list) else value


def _function(energy: Any) -> Callable[[Tensor], Tensor]:
    """The callable (B, *) to (B,) that an energy is, or that a bundle has."""
    found = energy if isinstance(energy, torch.nn.Module) else getattr(energy, "energy", energy)
    if not callable(found):
        raise UserError(f"energy: a {type(energy).__name__}; want a bundle, a module or a callable (B, *) -> (B,)")
    return found


def _numbers(u: Any, n: int) -> Tensor:
    if not isinstance(u, Tensor) or u.shape != (n,):
        raise UserError(f"energy: gives {_form(u)} for {n} candidates; want one number each, ({n},)")
    return u


def _form(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}, no tensor,"


def _checked(u: Tensor, n: int) -> Tensor:
    u = u.detach().float().cpu()
    bad = u.isnan().nonzero().flatten()
    if len(bad):
        raise UserError(f"energy: is NaN for {len(bad)} of {n} candidates, the first at {int(bad[0])}; drop them")
    return u.clamp(*_finite(u))


def _finite(u: Tensor) -> tuple[float, float]:
    """The range of the finite energies, one nat wider: infinite ones are put at its ends."""
    finite = u[u.isfinite()]
    return (float(finite.min()) - 1, float(finite.max()) + 1) if len(finite) else (-1.0, 1.0)


def _count(keep: int | None, n: int) -> int | None:
    if keep is None:
        return None
    if not _is_whole(keep, 1) or keep > n:
        raise UserError(f"keep={keep!r}: want a whole number from 1 to the number of candidates, which is {n}")
    return int(keep)


def _is_reranker(folder: Path) -> bool:
    file = folder / "config.json"
    config = store.read_json(file) if file.is_file() else None
    return isinstance(config, dict) and config.get("app") == APP
