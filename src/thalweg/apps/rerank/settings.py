"""How a likelihood ratio is learned: the settings of `density_ratio.fit_ratio`, checked when they are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from thalweg.apps.rerank.preprocessing import View
from thalweg.apps.rerank.preprocessing_search import NoiseSetting
from thalweg.core import check
from thalweg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RatioSettings:
    """How a likelihood ratio is learned; the defaults are for some thousand images and a few CPU minutes.

    Args:
        ensemble: Networks, each trained without one fold of the rows; 2 or more.
        steps: Training steps of each network, at most.
        batch: Rows of either kind a step.
        rate: Learning rate at the start; it falls to zero in a line.
        weight_decay: Of AdamW.
        smoothing: Targets are 1 - smoothing and smoothing in place of 1 and 0.
        noise: Deviation of the Gaussian noise on both sides, in standard deviations of the data. A pair (low, high)
            gives each row a deviation of its own, log-uniform between the two. "auto":
            `apps.rerank.preprocessing_search` chooses.
        channels: Of the networks for images, one entry a halving.
        hidden: Width of the networks' last hidden layer.
        stretch: Strength of random stretching of half of the images (`data.augment.Warp`).
        shift: Strength of random shifts of half of the images.
        damaged: Share of the generated side that is damaged data instead (`objective.corruption`). The energy is then
            the ratio to that mixture.
        view: What the networks are shown of images (`apps.rerank.preprocessing`). "auto":
            `apps.rerank.preprocessing_search` chooses.
        check_every: Steps between two checks of the held-out loss.
        patience: Checks without progress that end a training.
    """

    ensemble: int = 3
    steps: int = 800
    batch: int = 64
    rate: float = 3e-3
    weight_decay: float = 0.05
    smoothing: float = 0.05
    noise: NoiseSetting | Literal["auto"] = "auto"
    channels: tuple[int, ...] = (16, 32, 64)
    hidden: int = 64
    stretch: float = 0.05
    shift: float = 0.05
    damaged: float = 0.0
    view: View | Literal["auto"] = "auto"
    check_every: int = 100
    patience: int = 4

    def __post_init__(self):
        check.whole("ensemble", self.ensemble, 2)
        check.count(steps=self.steps, batch=self.batch, hidden=self.hidden)
        check.count(check_every=self.check_every, patience=self.patience)
        if not isinstance(self.channels, Sequence) or isinstance(self.channels, str) or not self.channels:
            text = "must be one or more whole numbers, one a halving"
            raise UserError(text, argument="channels", value=self.channels)
        for i, width in enumerate(self.channels):
            check.whole(f"channels[{i}]", width, 1)
        check.positive(rate=self.rate)
        check.non_negative(rate=self.rate, weight_decay=self.weight_decay, stretch=self.stretch, shift=self.shift)
        check.share(smoothing=self.smoothing, damaged=self.damaged)
        for name, value, bound in (("smoothing", self.smoothing, 0.5), ("damaged", self.damaged, 1.0)):
            if value >= bound:
                raise UserError(f"must be in [0, {bound:g})", argument=name, value=value)
        check.one_of(("auto", *get_args(View)), view=self.view)
        if self.noise != "auto":
            _check_noise(self.noise)


def _check_noise(noise: Any) -> None:
    """Deviations of zero or more; in a pair both above zero and in order."""
    pair = isinstance(noise, tuple)
    try:
        if pair and len(noise) != 2:
            raise UserError("must have two entries", argument="noise")
        low, high = noise if pair else (noise, noise)
        check.non_negative(low=low, high=high)
        if pair:
            check.positive(low=low)
        if low > high:
            raise UserError("must be in order", argument="noise")
    except UserError:
        condition = 'must be "auto", a deviation of zero or more, or a pair (low, high) with 0 < low <= high'
        raise UserError(condition, argument="noise", value=check.stated(noise)) from None
