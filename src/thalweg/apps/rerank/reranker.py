"""Re-ranking: the best of many candidates of a generator, chosen by an energy and for variety.

The energy is E(x) = -log p_data(x) / p_gen(x), learned from data and the generator's draws
(`apps.rerank.density_ratio`). A choice counts energies and the features of what is chosen beside
(`apps.rerank.selection`). It is as strict as was shown to help on unseen draws (`apps.rerank.held_out_check`). A
model's own -log p is a poor energy here: it prefers plain images.
"""

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thalweg.apps.rerank import saved, selection
from thalweg.apps.rerank.candidates import as_candidates
from thalweg.apps.rerank.density_ratio import HeldOutCheck, fit_ratio
from thalweg.apps.rerank.held_out_check import Strictness, strictness
from thalweg.apps.rerank.ratio_energy import RatioEnergy
from thalweg.apps.rerank.scoring import Energy, Features, energies_and_features, features_of
from thalweg.apps.rerank.selection import Variety
from thalweg.apps.rerank.served import ServedReranker
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.files import StoredType, load_as, require_replaceable
from thalweg.bundle.inputs import require_numbers
from thalweg.bundle.servable import Servable
from thalweg.core import check
from thalweg.core.device import CPU, find_device, place
from thalweg.core.errors import UserError, kind_of
from thalweg.data.columns.layout import Layout
from thalweg.data.float32_check import as_float32
from thalweg.data.frames import is_frame
from thalweg.energy.base import HasShape

log = logging.getLogger("thalweg")


class Ranking(NamedTuple):
    """What a re-ranker made of candidates.

    Args:
        energies: Energy of each candidate, low = good, (N,).
        order: Indices of all, best first, (N,).
        kept: Indices of the kept ones, best first, (K,).
        strictness: How the choice was made; None where the order given was kept.
    """

    energies: Float[Tensor, " n"]
    order: Int[Tensor, " n"]
    kept: Int[Tensor, " k"]
    strictness: Strictness | None


class EnergyReranker(StoredType):
    """Rank candidates, best first, and keep the best without copies of one another.

    After `fit`, `check_` says what the energy knows of rows that it did not see, and what choosing by it did to their
    distance from data. Choices are as strict as that check supports: where it shows nothing, the order given is kept,
    and a warning says so. An energy that was given, and not fitted here, is taken at its word.

    Args:
        energy: A `Bundle`, any module or callable (B, *) to (B,), low = good. None: `fit` learns a likelihood ratio.
        variety: How a given number is kept: "maximal_marginal_relevance", or "none" for the energy alone.
        features: A callable (B, *) to (B, F) that says what is alike. None: the ratio's last hidden layer, or coarse
            pixels.
        seed: Of training and choices, below 2**64.
        settings: How the ratio is learned.
        device: Where it is learned, and lies then: "auto" (THALWEG_DEVICE, else a GPU, else the CPU), "cpu", "cuda" or
            "cuda:N". What is given may lie on any; results come back to where it was.
    """

    title, command = "a re-ranker", "thalweg rerank"
    variety: Variety
    check_: HeldOutCheck | None = None
    layout: Layout = Layout()  # the columns of the table that the rows came from, by which candidates are matched
    size: int | None = None  # to which pictures in files were resized and cropped, as those of candidates are

    def __init__(
        self,
        energy: Energy | None = None,
        *,
        variety: Variety = "maximal_marginal_relevance",
        features: Features | None = None,
        seed: int = 0,
        settings: RatioSettings | None = None,
        device: str | torch.device = "auto",
    ):
        self.energy, self.variety, self.features = energy, variety, features
        self.seed, self.settings, self.device = seed, settings, device
        if isinstance(energy, Bundle):
            require_numbers(energy, "a re-ranker")
            self.layout = energy.layout
        self.require_variety()
        if features is not None and not callable(features):
            raise UserError(f"must be a callable (B, *) -> (B, F), not {kind_of(features)}", argument="features")
        if settings is not None and not isinstance(settings, RatioSettings):
            raise UserError(f"must be a RatioSettings, not {kind_of(settings)}", argument="settings")
        check.whole("seed", seed, 0, 2**64 - 1)

    def fit(self, real: Any, generated: Any, *, names: tuple[str, str] = ("real", "generated")) -> Self:
        """Learn E(x) = -log p_data / p_gen from real rows and the generator's own; some thousand of either are good.

        Generated rows must not be among the candidates later: of those it was trained on, the energy thinks worse.
        Where no choice is shown to help, a warning says so. Errors call the two sides by `names`.
        """
        self.require_variety()
        device = find_device(self.device)
        if is_frame(real):
            self.layout = Layout.fit(real, where=names[0])
        real, generated = (
            as_float32(as_candidates(x, where=name, layout=self.layout), self.layout.owners, name)
            for x, name in zip((real, generated), names, strict=True)
        )
        features = None if self.features is None else partial(features_of, features=self.features)
        self.energy, self.check_ = fit_ratio(
            real, generated, self.settings, seed=self.seed, names=names, features=features, device=device
        )
        if not self.check_.supported(self.variety):
            log.warning(
                f"no evidence that choosing helps (held-out loss {self.check_.loss:.3f} ± "
                f"{self.check_.standard_error:.3f} nats, chance is 0.693): candidates will be kept in the order given; "
                "more rows may show more"
            )
        return self

    def servable(self) -> Servable:
        return ServedReranker(self)

    def to(self, device: str | torch.device) -> Self:
        """The re-ranker itself, its bundle or module moved to a device; other callables stay where they are."""
        self.device = find_device(device)
        if isinstance(self.energy, Bundle):
            self.energy.to(self.device)
        elif isinstance(self.energy, nn.Module):
            place(self.energy, self.device)
        return self

    def energies(self, candidates: Any) -> Float[Tensor, " n"]:
        """(N,) energies, low = good. UserError where the energy is NaN, with the index."""
        return self._score(self._positions(candidates), False)[0].to(_device_of(candidates))

    def rank(self, candidates: Any, keep: int | None = None, *, force: bool = False) -> Int[Tensor, " k"]:
        """Indices, best first: all of them, (N,), or `keep` chosen for variety too, (keep,).

        Copies of a candidate, bit by bit, are kept once. Where fewer than `keep` differ, those come first and the best
        of the copies after them, with a warning. Ties go to the lower index; the same candidates give the same indices.
        A fitted ratio ranks as strictly as `check_` supports; with `force` by its energies all the same. Of the order
        of all, each beginning is a choice of that size. UserError for keep > N.
        """
        found = self.ranked(candidates, keep, force=force)
        return found.order if keep is None else found.kept

    def ranked(self, candidates: Any, keep: int | None = None, *, force: bool = False) -> Ranking:
        """Energies, order and choice of the candidates at once, as `rank`; all are kept if `keep` is not given."""
        found, home = self._ranked(candidates, keep, force), _device_of(candidates)
        return Ranking(found.energies.to(home), found.order.to(home), found.kept.to(home), found.strictness)

    def _ranked(self, candidates: Any, keep: int | None, force: bool) -> Ranking:
        self.require_variety()
        x = self._positions(candidates)
        keep = None if keep is None else _count(keep, len(x))
        if not len(x):
            none = torch.zeros(0, dtype=torch.long)
            return Ranking(torch.zeros(0), none, none, None)
        first = torch.arange(len(x)) if keep is None else selection.distinct(x)
        varied = keep is not None and self.variety != "none" and keep < len(first)
        u, f = self._score(x, varied)
        strict = self._strictness(0.0 if keep is None else keep / max(keep, len(first)), force)
        v = u * 0 if strict is None else selection.perturbed(u, strict.temperature, self.seed)
        order = selection.best(v, len(v))
        if keep is None:
            return Ranking(u, order, order, strict)
        return Ranking(u, order, self._kept(u, v, f, first, keep, strict), strict)

    def best_of(self, candidates: Any, size: int, *, force: bool = False) -> Int[Tensor, " groups"]:
        """The best of each `size` candidates in turn, (ceil(N / size),) indices: a best-of-N choice as it is served."""
        check.whole("size", size, 1)
        u, home = self._score(self._positions(candidates), False)[0], _device_of(candidates)
        strict = self._strictness(1 / size, force)
        if strict is None:
            return torch.arange(0, len(u), size, device=home)
        v = selection.perturbed(u, strict.temperature, self.seed)
        return selection.best_of_groups(v, size, considered=max(1, int(size * strict.considered))).to(home)

    def require_savable(self, folder: Path) -> None:
        """UserError where the folder holds something that is no re-ranker, before any work."""
        require_replaceable(folder, type(self))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the fitted likelihood ratio to a folder that `thalweg.load` opens, whole or not at all."""
        energy = self._require_energy()
        if not isinstance(energy, RatioEnergy):
            raise UserError("must be a fitted likelihood ratio to be saved", argument="energy", hint="call fit first")
        stored = saved.Stored(energy, self.check_, self.variety, self.seed, self.layout, self.size)
        saved.write(Path(folder), stored, type(self))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The re-ranker that `save_pretrained` wrote; UserError or DamagedFile, by name, for anything else."""
        return load_as(folder, cls)

    @classmethod
    def read(cls, folder: Path, config: dict[str, Any]) -> Self:
        """The re-ranker in a folder whose files have been verified, with its config."""
        stored = saved.read(folder, config)
        settings = stored.energy.settings
        found = cls(stored.energy, variety=stored.variety, seed=stored.seed, settings=settings)
        found.check_, found.layout, found.size = stored.check, stored.layout, stored.size
        return found

    @property
    def shape(self) -> tuple[int, ...] | None:
        """What a candidate must look like, where the energy says."""
        return tuple(self.energy.shape) if isinstance(self.energy, HasShape) else None

    def require_variety(self) -> None:
        """UserError for a `variety` that is none."""
        check.one_of(get_args(Variety), variety=self.variety)

    def _strictness(self, share: float, force: bool) -> Strictness | None:
        """How a share of the candidates is kept, by the check if there is one, with a word where it holds back."""
        if force or self.check_ is None:
            return Strictness(0.0, 1.0)
        found = strictness(self.check_.supported(self.variety), share)
        if found is None:
            log.warning("no evidence that choosing helps: the order given is kept, unless a ranking is forced")
        elif share and found.considered < 1:
            log.warning(
                f"keeping 1 of {1 / share:.3g} was not shown to help: the first {100 * found.considered:.3g} % of the "
                "candidates are considered, unless a ranking is forced"
            )
        return found

    def _score(self, x: Tensor, featured: bool) -> tuple[Tensor, Tensor]:
        return energies_and_features(self._require_energy(), x, self.features, featured=featured)

    def _kept(self, u: Tensor, v: Tensor, f: Tensor, first: Tensor, keep: int, strict: Strictness | None) -> Tensor:
        """`keep` indices by the perturbed energies v of the candidates `first`, which differ; then copies, by u."""
        if keep > len(first):
            log.warning(f"keep={keep}: of the {len(v)} only {len(first)} differ bit by bit; copies fill the rest")
            copies = torch.ones(len(v), dtype=torch.bool)
            copies[first] = False
            rest = copies.nonzero().flatten()
            return torch.cat([_ordered(first, v), _ordered(rest, u if strict else v)[: keep - len(first)]])
        if strict is None:
            return first[:keep]
        pool = first[: max(keep, math.ceil(strict.considered * len(first)))]
        if keep == len(first):
            return _ordered(pool, v)
        return _ordered(pool[selection.choose(v[pool], f[pool], keep, self.variety)], v)

    def _require_energy(self) -> Energy:
        if self.energy is None:
            hint = "give an energy, or call fit(real, generated)"
            raise UserError("must be given or fitted", argument="energy", hint=hint)
        return self.energy

    def _positions(self, candidates: Any) -> Tensor:
        x = as_candidates(candidates, self.shape, layout=self.layout)
        return x if isinstance(self.energy, Bundle) else x.to(torch.float32)


def _device_of(candidates: Any) -> torch.device:
    return candidates.device if isinstance(candidates, Tensor) else CPU


def _ordered(chosen: Tensor, u: Tensor) -> Tensor:
    """Some indices, best first."""
    return chosen[u[chosen].sort(stable=True).indices]


def _count(keep: Any, n: int) -> int:
    """`keep` from 1 to the number of candidates."""
    if not n:
        raise UserError("is for candidates, of which there are none", argument="keep", value=keep)
    return check.whole("keep", keep, 1, n)
