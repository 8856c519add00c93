"""Learns the likelihood ratio E(x) = -log p_data(x) / p_gen(x) from rows of both, and checks it on held-out rows.

Overfitting is prevented by an ensemble of small networks. Each is trained without one fold of the rows (cross-fitting),
on altered copies of both sides, with weight decay, and stopped where the loss on its fold is least. Their mean is the
energy. Each row then has an energy by the one network that did not see it. These energies give the loss against chance,
the scale of the energy, and the check of what choosing by it is worth (`apps.rerank.held_out_check`).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from thalweg.apps.rerank import extrapolation_penalty, preprocessing, preprocessing_search
from thalweg.apps.rerank.held_out_check import HeldOut, ShareCheck, check_choices
from thalweg.apps.rerank.preprocessing_search import NoiseSetting, ViewTrial
from thalweg.apps.rerank.ratio_energy import RatioEnergy, head_and_hidden
from thalweg.apps.rerank.ratio_training import BLOCK, Rows, energies, train_network
from thalweg.apps.rerank.selection import Variety
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core.device import CPU, place
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.evaluate.detection import auroc
from thalweg.objective.ratio import balanced_loss

LEAST = 20  # rows of either kind
WIDER = 3.0  # the most by which the deviation of both sides together may exceed the one that standardises


class HeldOutCheck(NamedTuple):
    """What the networks know of rows that they did not see.

    Args:
        loss: Balanced logistic loss in nats; chance is log 2 = 0.693.
        standard_error: Of the loss.
        auc: Area under the ROC curve of telling data from generated rows; chance is 0.5.
        steps: Training steps that each network took.
        view: What the networks are shown of images.
        noise: The noise that was used, in standard deviations of the data.
        trials: The short trainings that chose view and noise, if any.
        choices: By `variety`, what keeping ever fewer unseen draws did to their distance from unseen data.
    """

    loss: float
    standard_error: float
    auc: float
    steps: tuple[int, ...]
    view: str
    noise: NoiseSetting
    trials: tuple[ViewTrial, ...]
    choices: dict[Variety, tuple[ShareCheck, ...]]

    @property
    def beats_chance(self) -> bool:
        """Whether the loss is below log 2 by more than two standard errors."""
        return self.loss + 2 * self.standard_error < math.log(2)

    def supported(self, variety: Variety) -> tuple[ShareCheck, ...]:
        """The choices that help; none where the sides are not told apart better than by chance."""
        return tuple(c for c in self.choices.get(variety, ()) if c.helps) if self.beats_chance else ()


def fit_ratio(
    real: Tensor,
    generated: Tensor,
    settings: RatioSettings | None = None,
    *,
    seed: int = 0,
    names: tuple[str, str] = ("real", "generated"),
    features: Callable[[Tensor], Tensor] | None = None,
    device: torch.device = CPU,
) -> tuple[RatioEnergy, HeldOutCheck]:
    """The energy, frozen, on a device, and its check on held-out rows; real and generated (N, *) float32 of one shape.

    `energy.settings` holds the view and noise that were chosen in place of "auto". The same seed gives the same energy
    on one machine. `features`, (N, *) to (N, F), says what is alike where choices are checked; the networks' last
    hidden layers, if not given. UserError for fewer than 20 rows of either kind, more networks than rows, two shapes,
    or images too small to be halved once an entry of `channels`; it calls the two by `names`.
    """
    s = settings or RatioSettings()
    _require(real, generated, s, names)
    real, generated = real.to(device), generated.to(device)
    sides = _sides(real, generated, s.ensemble, seed)
    s, tried = _choose_preprocessing(real, generated, s, sides, seed)
    energy = _untrained(real, generated, s, seed)
    x = torch.cat([real, energy.quantile_matched(generated)])
    steps = tuple(_train(energy, k, x, sides, seed) for k in range(s.ensemble))
    u, hidden = _held_out(energy, x, sides)
    _calibrate(energy, u, sides.real)
    u = energy.scale * u + energy.offset
    energy.price.fill_(extrapolation_penalty.PRICE * (u.max() - u.min()))
    own = hidden[~sides.real] if features is None else features(generated.cpu())
    data, draws = _distance_space(real, x[~sides.real])
    held_out = (data, draws, sides.fold[sides.real], sides.fold[~sides.real], u[~sides.real], own)
    choices = check_choices(HeldOut(*(part.cpu() for part in held_out)), seed=seed)
    assert s.noise != "auto"  # settled
    figures = _figures(u, sides.real)
    return energy.eval().requires_grad_(False), HeldOutCheck(*figures, steps, s.view, s.noise, tried, choices)


class _Sides(NamedTuple):
    """Of all rows, the data first: whether each is data, and its fold."""

    real: Tensor
    fold: Tensor


def _sides(real: Tensor, generated: Tensor, ensemble: int, seed: int) -> _Sides:
    is_real = torch.cat([torch.ones(len(real)), torch.zeros(len(generated))]) > 0
    draws = (generator(seed, f"ratio-folds-{side}") for side in ("real", "gen"))
    orders = [torch.randperm(len(part), generator=g) for part, g in zip((real, generated), draws, strict=True)]
    return _Sides(is_real.to(real.device), (torch.cat(orders) % ensemble).to(real.device))


def _train(energy: RatioEnergy, k: int, x: Tensor, sides: _Sides, seed: int) -> int:
    """Train network k without its fold, on which it is stopped; the step that it stopped at."""
    out = sides.fold == k
    rows, held_out = (Rows(x[part], sides.real[part]) for part in (~out, out))
    own = generator(seed, f"ratio-{k}").initial_seed()
    return train_network(energy.ensemble[k], rows, held_out, energy.settings, preprocess=energy.preprocessed, seed=own)


@torch.no_grad()
def _held_out(energy: RatioEnergy, x: Tensor, sides: _Sides) -> tuple[Tensor, Tensor]:
    """(energies before calibration (N,), last hidden layer (N, H)) of each row by the network that did not see it."""
    u, hidden = torch.empty(len(x), device=x.device), None
    for k, network in enumerate(energy.ensemble):
        out = sides.fold == k
        z = energy.preprocessed(x[out])
        u[out] = energies(network, z)
        h = torch.cat([head_and_hidden(network, part)[1] for part in z.split(BLOCK)])
        hidden = h.new_empty(len(x), h.shape[1]) if hidden is None else hidden
        hidden[out] = h
    assert hidden is not None  # an ensemble has two networks or more
    return u, hidden


def _distance_space(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides as rows: coarse pixels of images, standardised columns of rows."""
    if real.ndim == 4:
        return preprocessing_search.coarse(real), preprocessing_search.coarse(generated)
    mean, deviation = _standard(real, generated)
    return (real - mean) / deviation, (generated - mean) / deviation


def _choose_preprocessing(
    real: Tensor, generated: Tensor, s: RatioSettings, sides: _Sides, seed: int
) -> tuple[RatioSettings, tuple[ViewTrial, ...]]:
    """The settings with a view and a noise in place of "auto", and the trials that chose them: one network each."""
    options = preprocessing_search.options(real, s.view, s.noise)
    if len(options) == 1:
        return replace(s, view=options[0][0], noise=options[0][1]), ()
    out = sides.fold == 0
    matched = (
        preprocessing.mapped(generated, preprocessing.quantile_map(generated, real)) if real.ndim == 4 else generated
    )
    compared, is_real = torch.cat(_distance_space(real, matched))[out], sides.real[out]
    held_out_real, held_out_generated = compared[is_real], compared[~is_real]
    tried = []
    for view, noise in options:
        short = replace(s, view=view, noise=noise, steps=max(1, s.steps // preprocessing_search.SHORTER))
        energy = _untrained(real, generated, short, seed)
        x = torch.cat([real, energy.quantile_matched(generated)])
        _train(energy, 0, x, sides, seed)
        u = energies(energy.ensemble[0], energy.preprocessed(x[out]))
        gain = preprocessing_search.split_gain(u[~is_real], held_out_generated, held_out_real)
        tried.append(ViewTrial(view, noise, auroc(u[is_real], u[~is_real]), gain))
    best = preprocessing_search.best(tried, held_out_generated, held_out_real, seed=seed)
    return replace(s, view=best.view, noise=best.noise), tuple(tried)


def _untrained(real: Tensor, generated: Tensor, s: RatioSettings, seed: int) -> RatioEnergy:
    """The energy before training: first weights by the seed, and what is fitted to the rows directly."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, "ratio-weights").initial_seed())
        energy = place(RatioEnergy(shape=tuple(real.shape[1:]), settings=s), real.device)
    if s.view == "quantile_match" and real.ndim == 4:
        energy.quantile_map.copy_(preprocessing.quantile_map(generated, real))
    if real.ndim == 4:
        energy.limits.copy_(extrapolation_penalty.limits(real, energy.quantile_matched(generated)))
    # mean 0 and deviation 1 so far: what is shown, as it is
    mean, deviation = _standard(energy.preprocessed(real), energy.standardised(generated))
    energy.mean.copy_(mean.view_as(energy.mean))
    energy.deviation.copy_(deviation.view_as(energy.deviation))
    return energy


def _standard(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """(m, d): the mean of the data and their deviation, a number each for images, one a column for rows.

    A column that is (nearly) constant in the data and varies in the draws would dominate the distance: there d is a
    third of the deviation of both sides together. A column that is constant in both, to rounding, keeps its units.
    """
    over = 0 if real.ndim == 2 else tuple(range(real.ndim))
    if real.ndim == 2:  # the mean of a constant column is then its very value
        real, generated = real.double(), generated.double()
    mean, gap = real.mean(over), (generated.mean(over) - real.mean(over)) / 2
    both = ((real.var(over) + generated.var(over)) / 2 + gap.square()).sqrt()
    deviation = torch.maximum(real.std(over), both / WIDER)
    constant = deviation <= 4 * torch.finfo(torch.float32).eps * mean.abs()
    return mean.float(), torch.where(constant, 1.0, deviation).float()


def _calibrate(energy: RatioEnergy, held_out: Tensor, label: Tensor) -> None:
    """Set s > 0 and c to those of least logistic loss on held-out energies (Platt 1999)."""
    u, label = held_out.double().cpu(), label.cpu()

    def loss(p):
        return float(balanced_loss(math.exp(p[0]) * u + p[1], label))

    found = minimize(loss, [0.0, 0.0], method="Nelder-Mead", bounds=[(-3, 3), (-20, 20)], options={"maxiter": 200})
    energy.scale.fill_(math.exp(found.x[0]))
    energy.offset.fill_(found.x[1])


def _figures(u: Tensor, label: Tensor) -> tuple[float, float, float]:
    """(loss, its standard error, AUC)."""
    each = F.softplus(torch.where(label, u, -u)).double()
    sides = (each[label], each[~label])
    error = math.sqrt(sum(float(side.var()) / len(side) for side in sides)) / 2
    return float(sum(side.mean() for side in sides)) / 2, error, auroc(u[label], u[~label])


def _unlike_images(real: Tensor, generated: Tensor, names: tuple[str, str]) -> UserError:
    """The error for images of two sizes, or of which one set is grey."""
    (channels, height, width), (other, h, w) = real.shape[1:], generated.shape[1:]
    text = f"must hold images of {width} x {height} pixels, as {names[0]}, not of {w} x {h}"
    hint = f"--size {min(height, width, h, w)} resizes and crops the pictures of both"
    if (height, width) == (h, w):
        text = f"must hold images of {channels} channels, as {names[0]}, not of {other}"
        hint = "convert the colours of one"
    return UserError(text, argument=names[1], hint=hint)


def _require(real: Tensor, generated: Tensor, s: RatioSettings, names: tuple[str, str]) -> None:
    for name, x in zip(names, (real, generated), strict=True):
        if len(x) < LEAST:
            raise UserError(f"must hold {LEAST} rows or more, and holds {len(x)}", argument=name)
    if real.shape[1:] != generated.shape[1:]:
        if real.ndim == generated.ndim == 4:
            raise _unlike_images(real, generated, names)
        text = f"must hold rows of shape {tuple(real.shape[1:])}, as {names[0]}, not {tuple(generated.shape[1:])}"
        raise UserError(text, argument=names[1])
    least = max(8, 2 ** len(s.channels))
    if real.ndim == 4 and min(real.shape[2:]) < least:
        height, width = real.shape[2:]
        text = f"must have {least} pixels or more a side with channels={s.channels}, not {width} x {height}"
        raise UserError(text, argument=names[0], hint="enlarge the images")
    if real.ndim != 4 and s.view not in ("auto", "pixels"):
        raise UserError("must be pixels or auto for rows", argument="view", value=s.view, hint="leave it out")
    fewest, name = min((len(x), name) for name, x in zip(names, (real, generated), strict=True))
    if s.ensemble > fewest:
        raise UserError(f"must be at most {fewest}, the rows of {name}", argument="ensemble", value=s.ensemble)
