"""Features in which samples are compared: of the digit network, of a module of the user's, of an energy, or plain."""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core.errors import UserError, kind_of, one_line
from thalweg.energy.base import HasNoiseLevels
from thalweg.energy.wrappers import AtNoise
from thalweg.evaluate.digit_network import DigitNetwork, digit_network_for, features_and_classes
from thalweg.evaluate.samples import plain_features

FeatureFn = Callable[[Tensor], Tensor]  # (B, *) rows in data units to (B, F)
FARTHEST = 1e6  # values of samples are cut to it, in deviations or pixels, so that squared distances stay finite
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class OfDigits:
    """The digit network's 84 features; `classes` are the digits it reads."""

    def __init__(self, network: DigitNetwork):
        self.network = network

    def __call__(self, x: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b 84"]:
        """Features of pixels, cut to [0, 1]."""
        return features_and_classes(self.network, x.clamp(0, 1))[0]

    def classes(self, features: Float[Tensor, "b 84"]) -> Tensor:
        """The likeliest digit, (B,)."""
        with torch.no_grad():
            return self.network.head(features).argmax(1)


class StandardisedColumns:
    """Columns in the deviations of `rows`; a column that is the same in all of them stays in its own units."""

    def __init__(self, rows: Tensor):
        rows = rows.flatten(1).double()
        self.mean, deviation = rows.mean(0), rows.std(0)
        self.deviation = torch.where(deviation > 0, deviation, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, *) to (B, D)."""
        return ((x.flatten(1).double() - self.mean) / self.deviation).clamp(-FARTHEST, FARTHEST).float()


def pixels(x: Tensor) -> Tensor:
    """Images as rows of pixels."""
    return x.flatten(1).clamp(-FARTHEST, FARTHEST)


def averaged(x: Tensor) -> Tensor:
    """Images averaged down to 8 x 8 a channel, as rows."""
    return plain_features(x.clamp(-FARTHEST, FARTHEST), x)


class LastHiddenLayer:
    """The input of an energy's last linear layer, (B, *) to (B, F), by a hook; averaged over positions and pixels.

    Found at the first call, of two different rows or more: of the linear and convolutional layers that a call of the
    energy runs, the last one whose input differs from row to row, so that the embedding of a noise level is none.
    """

    def __init__(self, energy: nn.Module, t: float | None):
        self.energy, self.t = copy.deepcopy(energy).eval().requires_grad_(False), t
        self.layer: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The features, on the CPU."""
        seen = self._seen(x)
        if self.layer is None:
            varied = [layer for layer, h in seen.items() if len(h) == len(x) and not bool((h == h[:1]).all())]
            if not varied:
                condition = f"must run a linear layer on what it makes of x; {kind_of(self.energy)} runs none"
                raise UserError(condition, argument="energy", hint="give a module or a function as features=")
            self.layer = varied[-1]
        h = seen[self.layer].float().cpu()
        if isinstance(self.layer, nn.Linear):  # (B, ..., F)
            return h.flatten(1, -2).mean(1) if h.ndim > 2 else h
        return h.flatten(2).mean(2)  # (B, F, ...)

    def _seen(self, x: Tensor) -> dict[nn.Module, Tensor]:
        """The input of each layer that ran, the last to run last."""
        seen: dict[nn.Module, Tensor] = {}

        def keep(layer: nn.Module, args: tuple[Any, ...]) -> None:
            seen.pop(layer, None)
            seen[layer] = args[0].detach()

        hooks = [m.register_forward_pre_hook(keep) for m in self.energy.modules() if isinstance(m, LAYERS)]
        weight = next(self.energy.parameters(), torch.zeros(()))
        x = x.to(weight.device, weight.dtype)
        try:
            self.energy(x) if self.t is None else self.energy(x, x.new_full((len(x),), self.t))
        finally:
            for hook in hooks:
                hook.remove()
        return seen


def last_hidden_layer(energy: object, *, t: float | None = None) -> FeatureFn:
    """Features of an energy's own: the input of its last linear layer, (B, *) in model units to (B, F).

    The energy is copied, so that features stay as they are while its training goes on. A noise-conditional energy
    U(y, t) is asked at noise variance t, its lowest if not given; `AtNoise` fixes its own. Images of convolutions are
    averaged over their pixels. UserError where there is no module, or no hidden layer (at the first call).
    """
    if isinstance(energy, AtNoise):
        energy, t = energy.energy, float(energy.t) if t is None else t
    if not isinstance(energy, nn.Module):
        hint = "give a module or a function as features="
        raise UserError(f"must be a torch module, not {kind_of(energy)}", argument="energy", hint=hint)
    if isinstance(energy, HasNoiseLevels) and t is None:
        t = float(energy.t_min)
    return LastHiddenLayer(energy, t)


class _Given:
    """A module or function of the user's, and the check of what it gives."""

    def __init__(self, features: FeatureFn):
        self.features = features

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        own = self.features
        if isinstance(own, nn.Module) and (weight := next(own.parameters(), None)) is not None:
            x = x.to(weight.device)
        try:
            found = own(x)
        except UserError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            text = f"must take rows of shape {(len(x), *x.shape[1:])}; it says: {one_line(error)}"
            raise UserError(text, argument="features") from error
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(x):
            what = tuple(found.shape) if isinstance(found, Tensor) else kind_of(found)
            raise UserError(f"must give a tensor (B, F) for B={len(x)} rows, not {what}", argument="features")
        found = found.detach().flatten(1).float().cpu()
        if not found.isfinite().all():
            raise UserError("must give finite numbers", argument="features")
        return found


def choose(held_out: Tensor, units: FeatureFn, features: object) -> FeatureFn:
    """The user's features or, where none are given, the digit network's of digits, averaged pixels of other images, and
    of all else `units`.
    """
    if features is not None:
        if not callable(features):
            text = f"must be a module or a function (B, *) -> (B, F), not {kind_of(features)}"
            raise UserError(text, argument="features")
        return _Given(cast(FeatureFn, features))
    network = digit_network_for(held_out, None)[0]
    if network is not None:
        return OfDigits(network)
    return averaged if held_out.ndim == 4 else units
