"""The energy behind the detector of images, with the place of a fault and its repair.

    E(x) = v1(E1(x)) + v2(E2(x))

E1 is the energy of a network that tells data from damaged data (`energy.networks.autoencoder`), trained without labels
by `--recipe contrast`. E2 is high where few training rows have features like x's (`energy.density.feature_kde`). v1 and
v2 bring both to the scale of normal rows (`apps.anomaly.surprise`). Images plainer than the data have a high E1, those
of another shape a high E2.
"""

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.apps.anomaly.surprise import LogSurvival
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.dataset import data_of
from thalweg.core import check
from thalweg.core.config import build, plain
from thalweg.core.device import CPU, place
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.core.weights import Stored, require_fit
from thalweg.data.catalog import Dataset, split
from thalweg.data.stored_rows import some_rows
from thalweg.data.validate import as_float, check_images
from thalweg.energy.base import energy_and_grad
from thalweg.energy.density.feature_kde import FeatureKernelEnergy
from thalweg.energy.networks.autoencoder import AutoencoderEnergy
from thalweg.evaluate.corruptions import gaussian_blur
from thalweg.run.fit import Request, settings
from thalweg.run.in_memory import train_in_memory

BLOCK = 512
BANK = 20_000  # training rows whose features are kept
NEAREST = 256  # stored images that a repair is chosen among
STORED = 32 << 20  # bytes of them at most, a byte a pixel and channel
LEAST = 40
MIN_HELD_OUT = 4


class ImageEnergy:
    """Energies of images, high = anomalous, with attribution and repair.

    Images are (N, C, H, W) or (N, H, W), uint8 or float in [0, 1], at least 8 pixels a side. `fit` takes 40 of them or
    more; a few thousand are good.

    Args:
        steps: Training steps. None: the recipe's 3,000 of 256 rows, about 2 CPU minutes at 28 x 28.
        held_out: The share of rows that training does not see: half of them set the two energies' scales, the energies
            of the other half are `calibration_energies_`.
        overrides: Changes of the recipe, as on the command line.

    Attributes:
        calibration_energies_: Energies of rows that the fit did not see, nats, (m,).
        train_outlier_scores_: Energies of all images given, each without its own kernel, nats, (N,); after
            `from_bundle` those of the training rows.
    """

    calibration_energies_: np.ndarray
    train_outlier_scores_: np.ndarray

    def __init__(self, *, steps: int | None = None, held_out: float = 0.1, overrides: Sequence[str] = ()):
        self.steps, self.held_out, self.overrides = steps, held_out, tuple(overrides)
        self.device = CPU

    def to(self, device: torch.device) -> Self:
        """Itself, which trains and computes on the device from now on."""
        self.device = device
        if "_model" in vars(self):
            self._take(self._spec, self._model, self._kernel, self._images, self._tails)
        return self

    def fit(self, x: Any, *, seed: int = 0) -> Self:
        """Train on normal images; the same seed gives the same energies on one machine. UserError for what is none."""
        images = as_images(x)
        if len(images) < LEAST:
            raise UserError(
                f"must be {LEAST} images or more, to train and to calibrate, not {len(images)}", argument="x"
            )
        if images.shape[1] not in (1, 3):
            text = f"must be (N, H, W) or (N, C, H, W) of 1 or 3 channels, not of shape {tuple(np.shape(x))}"
            raise UserError(text, argument="x")
        _require_held_out(self._num_held_out(len(images)))  # now, not after the training
        if bool((images == images[0]).all()):
            raise UserError("must be images that differ", argument="x")
        pixels = check_images(images, None, where="x")
        overrides = [f"data.held_out={self.held_out}", *self.overrides]
        run = settings(Request(data="x", recipe="contrast", steps=self.steps, seed=seed, overrides=overrides), "image")
        assert run.data.held_out is not None  # as overridden
        rows = images if images.dtype == torch.uint8 else pixels
        data = split(rows, name="x", source="images", held_out=run.data.held_out, seed=run.seed, limit=run.data.limit)
        model = _require_autoencoder(train_in_memory(run, data, device=self.device), "overrides", run.energy["type"])
        banked = self._set_scales(model, plain(run.energy), data, run.seed)
        own, known = torch.zeros(len(images), dtype=torch.bool), {row.numpy().tobytes() for row in banked}
        for i, row in enumerate(pixels):
            own[i] = row.numpy().tobytes() in known
        self.train_outlier_scores_ = self._outlier_scores(pixels, own)
        return self

    def num_calibrating(self, num_rows: int) -> int:
        """Of so many images the number that calibrate: half of those that training does not see."""
        return self._num_held_out(num_rows) // 2

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return tuple(self._model.shape)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Self:
        """From a run of `--recipe contrast`, whose data are read again where the run found them."""
        self, run = cls().to(bundle.device), bundle.config["run"]
        model = _require_autoencoder(bundle.model, str(bundle.path), run["energy"]["type"])
        self._set_scales(model, run["energy"], data_of(bundle), run["seed"])
        return self

    def energy(self, x: Any) -> np.ndarray:
        """E(x), (B,) nats, float64, low = normal: 2 log(1/alpha) where both are at their 1 - alpha quantile."""
        return self._map(self._fused, self._check(x)).double().numpy()

    def parts(self, x: Any) -> dict[str, np.ndarray]:
        """What E(x) is made of, (B,) each in its own units: "contrast" E1 and "kernel" E2."""
        images = self._check(x)
        found = {"contrast": self._map(self._model, images), "kernel": self._map(self._kernel, images)}
        return {name: u.double().numpy() for name, u in found.items()}

    def attribution(self, x: Any) -> np.ndarray:
        """(B, H, W): |dE/dx| summed over channels, smoothed by a Gaussian of 1/28 of the side; zero or more."""

        def at(part: Tensor) -> Tensor:
            g = energy_and_grad(self._fused, part)[1].abs().sum(1, keepdim=True)
            return gaussian_blur(g, max(0.5, min(g.shape[2:]) / 28)).squeeze(1).clamp(min=0)

        return self._map(at, self._check(x)).numpy()

    def repair(self, x: Any) -> np.ndarray:
        """The repaired images, of x's shape, float32 in [0, 1]: of the 256 stored normal images whose features are most
        like x's the one nearest to x in pixels, or x itself where that is no less strange.
        """

        def at(part: Tensor) -> Tensor:
            cosines = self._kernel.cosines(part)[:, : len(self._images)]
            like = cosines.topk(min(NEAREST, len(self._images)), dim=1).indices
            gaps = torch.stack([_gaps(row, self._images[i]) for row, i in zip(part, like, strict=True)])
            best = self._images[like.gather(1, gaps.argmin(1, keepdim=True)).squeeze(1)].float() / 255
            better = self._fused(best) < self._fused(part)
            return torch.where(better[:, None, None, None], best, part)

        return self._map(at, self._check(x)).view(np.shape(x)).numpy()

    def state(self) -> dict[str, np.ndarray]:
        """All there is to keep, as plain arrays (`settings` is JSON in bytes): for `np.savez` or safetensors."""
        settings = {"energy": self._spec, "shape": list(self._model.shape), "beta": self._kernel.beta}
        settings |= {"steps": self.steps, "held_out": self.held_out, "overrides": list(self.overrides)}
        state = {"settings": np.frombuffer(json.dumps(settings).encode(), np.uint8).copy()}
        state |= {f"model.{name}": value.cpu().numpy() for name, value in self._model.state_dict().items()}
        kernel = {"bank": self._kernel.bank, "mean": self._kernel.mean, "whiten": self._kernel.whiten}
        state |= {f"kernel.{name}": value.cpu().numpy() for name, value in kernel.items()}
        for i, tail in enumerate(self._tails):
            state |= {f"tail{i}.{name}": value.cpu().numpy() for name, value in tail._asdict().items()}
        state["images"] = self._images.cpu().numpy()
        state["calibration_energies"] = self.calibration_energies_
        return state | {"train_outlier_scores": self.train_outlier_scores_}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The same object as the one whose `state` this is."""
        arrays = {name: np.asarray(value) for name, value in state.items()}
        settings = json.loads(arrays["settings"].tobytes())
        found = cls(steps=settings["steps"], held_out=settings["held_out"], overrides=settings["overrides"])
        weights, shape = _under("model.", arrays), tuple(settings["shape"])
        make = functools.partial(build, settings["energy"], trusted=("thalweg.energy",), shape=shape)
        require_fit(make, {name: Stored("", tuple(value.shape)) for name, value in weights.items()})
        model = _require_autoencoder(make(), "settings", settings["energy"]["type"])
        model.load_state_dict(weights)
        kernel = FeatureKernelEnergy(_Features(model), **_under("kernel.", arrays), beta=settings["beta"])
        tails = LogSurvival(**_under("tail0.", arrays)), LogSurvival(**_under("tail1.", arrays))
        images = torch.from_numpy(np.array(arrays["images"]))
        found._take(settings["energy"], model, kernel, images, tails)
        found.calibration_energies_ = arrays["calibration_energies"]
        found.train_outlier_scores_ = arrays["train_outlier_scores"]
        return found

    def _num_held_out(self, num_rows: int) -> int:
        self._check_options()
        return min(max(1, round(num_rows * float(self.held_out))), num_rows - 1)

    def _check_options(self) -> None:
        if self.steps is not None:
            check.count(steps=self.steps)
        check.share(held_out=self.held_out)
        if not 0 < self.held_out < 1:
            raise UserError("must be above 0 and below 1", argument="held_out", value=self.held_out)
        if not all(isinstance(text, str) for text in self.overrides):
            hint = "write them as 'train.batch_size=64'"
            raise UserError("must be texts", argument="overrides", value=self.overrides, hint=hint)

    def _outlier_scores(self, x: Tensor, own: Tensor) -> np.ndarray:
        """E(x) of float images, (B,), of `own` ones (bool) without their own kernel."""
        u = self._map(self._kernel, x)
        u[own] = self._map(self._kernel.leave_one_out, x[own])
        contrast, kernel = (tail.to(u.device) for tail in self._tails)
        return (contrast(self._map(self._model, x)) + kernel(u)).double().numpy()

    def _set_scales(self, model: AutoencoderEnergy, spec: dict[str, Any], data: Dataset, seed: int) -> Tensor:
        """Bank, scales and calibration from the rows that the model was trained on and not; the banked rows."""
        train, held_out = as_float(some_rows(data.train, len(data.train))), as_float(data.held_out)
        _require_held_out(len(held_out))
        chosen = torch.randperm(len(train), generator=generator(seed, "bank"))[:BANK]
        model.to(self.device)
        banked = train[chosen].to(self.device)
        kernel = FeatureKernelEnergy.of(_Features(model), banked).eval().requires_grad_(False)
        scales, rest = held_out[0::2], held_out[1::2]
        try:
            tails = LogSurvival.of(self._map(model, scales)), LogSurvival.of(self._map(kernel, scales))
        except ValueError as error:
            raise UserError(f"must be images that differ, also those held out ({error})", argument="x") from error
        stored = train[chosen[: max(1, STORED // math.prod(train.shape[1:]))]]
        self._take(spec, model, kernel, (255 * stored).round().byte(), tails)
        self.calibration_energies_ = self.energy(rest)
        kept = torch.zeros(len(train), dtype=torch.bool)
        kept[chosen] = True
        self.train_outlier_scores_ = self._outlier_scores(train, kept)
        return train[chosen]

    def _take(
        self,
        spec: dict[str, Any],
        model: AutoencoderEnergy,
        kernel: FeatureKernelEnergy,
        images: Tensor,
        tails: tuple[LogSurvival, LogSurvival],
    ) -> None:
        self._spec, self._model, self._kernel = spec, model, kernel
        self._images, self._tails = images.to(self.device), (tails[0].to(self.device), tails[1].to(self.device))
        for module in (model, kernel):
            place(module, self.device).eval().requires_grad_(False)

    def _fused(self, x: Tensor) -> Tensor:
        return self._tails[0](self._model(x)) + self._tails[1](self._kernel(x))

    def _check(self, x: Any) -> Tensor:
        if "_model" not in vars(self):
            raise UserError("must be fitted", argument="ImageEnergy", hint="call fit, or from_bundle")
        return check_images(as_images(x), tuple(self._model.shape), where="x")

    def _map(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """f on the device, block by block, of rows on the CPU, where it lies then; without gradients of its own."""
        with torch.no_grad():
            parts = x.split(BLOCK) if len(x) else [x]
            return torch.cat([f(part.to(self.device)).cpu() for part in parts])


def _require_held_out(num: int) -> None:
    if num < MIN_HELD_OUT:
        text = f"must hold out {MIN_HELD_OUT} images or more, not {num}"
        raise UserError(text, argument="held_out", hint="raise it, or give more images")


def _require_autoencoder(model: nn.Module, where: str, kind: str) -> AutoencoderEnergy:
    if not isinstance(model, AutoencoderEnergy):
        text = f"must be a model with an AutoencoderEnergy, not {kind}"
        raise UserError(text, argument=where, hint="train an image bundle with --recipe contrast")
    return model


def _gaps(x: Tensor, images: Tensor) -> Tensor:
    """|x - y|² for each y of the images (n, C, H, W), bytes, (n,)."""
    return (images.float() / 255 - x).flatten(1).square().sum(1)


class _Features(nn.Module):
    """The encoder alone, as a module that holds no parameters of its own beside the energy's."""

    def __init__(self, energy: AutoencoderEnergy):
        super().__init__()
        self.shape = energy.shape
        self.encoder = energy.encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def as_images(x: Any) -> Tensor:
    """(N, C, H, W), uint8 or float in [0, 1], from that or from (N, H, W); UserError for anything else."""
    try:
        a = x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
    except (TypeError, ValueError) as error:
        raise UserError(f"must be an array of pixels ({str(error).splitlines()[0]})", argument="x") from error
    if a.ndim == 3:
        a = a[:, None]
    if a.ndim != 4 or min(a.shape[1:]) < 1 or math.prod(a.shape[2:]) < 1:
        raise UserError(f"must be images (N, H, W) or (N, C, H, W), not of shape {tuple(np.shape(x))}", argument="x")
    check_images(a, None, where="x")
    return a


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): torch.from_numpy(np.array(a)) for n, a in arrays.items() if n.startswith(prefix)}
