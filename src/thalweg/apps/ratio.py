"""Learn E(x) = -log p_data(x) / p_gen(x) from rows of both, without learning either by heart.

Overfitting is the danger: a network that knows its rows tells them apart without knowing why. So there are several
small ones, each trained without a fold of its own (cross-fitting), stopped where the loss on that fold is least, on
altered copies of both sides, with weight decay; their mean is the energy. Every row is then judged once by a network
that never saw it, which gives the check against chance and the one factor that calibrates the scale.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from thalweg.apps import support, trials, views
from thalweg.apps.trials import Noise, Trial
from thalweg.apps.views import View
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.augment import Warp
from thalweg.energy.mlp import MLPEnergy
from thalweg.energy.strided import StridedEnergy
from thalweg.objective.base import Batch
from thalweg.objective.damage import Damage
from thalweg.objective.ratio import LikelihoodRatio, balanced_loss

LEAST = 20  # rows of either kind
BLOCK = 1000
WIDER = 3.0  # the most by which the deviation of both sides together may exceed the one that standardises
_WANTED = {
    "rate": ("a learning rate above zero", lambda v: 0 < v < math.inf),
    "weight_decay": ("zero or more", lambda v: 0 <= v < math.inf),
    "smoothing": ("a share in [0, 0.5)", lambda v: 0 <= v < 0.5),
    "stretch": ("zero or more", lambda v: 0 <= v < math.inf),
    "shift": ("zero or more", lambda v: 0 <= v < math.inf),
    "damaged": ("a share in [0, 1)", lambda v: 0 <= v < 1),
}


@dataclass(frozen=True, kw_only=True)
class RatioSettings:
    """How a likelihood ratio is learned; the defaults are for some thousand images and a few CPU minutes.

    `members` networks, each without one fold of the rows; `batch` rows of either kind a step; `rate` falls to zero in a
    line; every `check` steps the held-out loss is taken, and `patience` checks without progress end a training.
    `noise`, in standard deviations of the data, smooths both laws; a pair gives each row its own, log-uniform between
    the two. `view` is what the networks are shown of images (`apps.views`). "auto" leaves either to `apps.trials`:
    short trainings, judged on rows not seen. `stretch` and `shift` alter half of the images
    (`data.augment.Warp`). `damaged` is the share of the generated side that is damaged data instead
    (`objective.damage`): E is then the ratio to that mixture.
    """

    members: int = 3
    steps: int = 800
    batch: int = 64
    rate: float = 3e-3
    weight_decay: float = 0.05
    smoothing: float = 0.05
    noise: Noise | Literal["auto"] = "auto"
    channels: tuple[int, ...] = (16, 32, 64)
    hidden: int = 64
    stretch: float = 0.05
    shift: float = 0.05
    damaged: float = 0.0
    view: View | Literal["auto"] = "auto"
    check: int = 100
    patience: int = 4

    def __post_init__(self):
        for name in ("steps", "batch", "check", "patience", "hidden"):
            if not _is_count(getattr(self, name)):
                raise UserError(f"{name}={getattr(self, name)!r}: want 1 or more, a whole number")
        if not isinstance(self.channels, Sequence) or not self.channels or not all(map(_is_count, self.channels)):
            raise UserError(f"channels={self.channels!r}: want one or more whole numbers of 1 or more, one a halving")
        for name, (want, fits) in _WANTED.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
                raise UserError(f"{name}={value!r}: want {want}")
        views = ("auto", *get_args(View))
        if self.view not in views:
            raise UserError(f"view={self.view!r}: want one of {', '.join(views)}")
        if self.noise != "auto":
            _require_noise(self.noise)
        if not _is_count(self.members) or self.members < 2:
            raise UserError(f"members={self.members!r}: want 2 or more, each is checked on rows that it did not see")


class Check(NamedTuple):
    """What the networks know of rows that they did not see: `loss` in nats with its standard error (chance is log 2 =
    0.693), `auc` of telling data from generated rows (chance is 0.5), and the steps that each member took; then the
    view and noise that were used, and the short trainings that chose them, if any.
    """

    loss: float
    standard_error: float
    auc: float
    steps: tuple[int, ...]
    view: str
    noise: Noise
    trials: tuple[Trial, ...] = ()

    @property
    def beats_chance(self) -> bool:
        """Whether the loss is below log 2 by more than two standard errors."""
        return self.loss + 2 * self.standard_error < math.log(2)


class RatioEnergy(nn.Module):
    """E(x) = s mean_k E_k((view(x) - m) / d) + c + far(x), (B, *) to (B,) nats; > 0 where the generator makes too many.

    m and d standardise (a number each for images, one a column for rows); s and c calibrate; far(x), of images, is zero
    except far from all rows of both sides (`apps.support`). x is taken for a draw of the generator: with the view
    "tone" the map of tones that is fitted to its draws comes first. `features` are the members' last hidden layers side
    by side, (B, F): what two rows have in common in the energy's eyes.
    """

    def __init__(self, *, shape: tuple[int, ...] = (1, 28, 28), settings: RatioSettings | None = None):
        super().__init__()
        s = settings or RatioSettings()
        self.shape, self.settings = tuple(shape), s
        self.members = nn.ModuleList(_network(self.shape, s) for _ in range(s.members))
        columns = shape if len(shape) == 1 else (1,) * len(shape)
        for name, value in (("mean", torch.zeros(columns)), ("deviation", torch.ones(columns))):
            self.register_buffer(name, value.to(torch.float32))
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float32))
        self.register_buffer("limits", support.unlimited(len(shape) == 3))
        self.register_buffer("price", torch.zeros((), dtype=torch.float32))  # nats a width
        self.register_buffer("tones", views.identity(shape[0] if len(shape) == 3 else 0))

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(3,), settings=RatioSettings(members=2, hidden=5))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(E(x), features(x)) at the price of one."""
        x, outs, hidden = self.retoned(x), [], []
        z = self.alike(x)
        for member in self.members:
            *body, head = member.sequence()  # pyright: ignore[reportCallIssue]
            h = z
            for layer in body:
                h = layer(h)
            hidden.append(h)
            outs.append(head(h).squeeze(1))
        u = self.offset - self.scale * torch.stack(outs).mean(0)
        if x.ndim == 4:
            u = u + self.price * support.beyond(x, self.limits)
        return u, torch.cat(hidden, 1)

    def standardised(self, x: Tensor) -> Tensor:
        """(view(x) - m) / d of draws of the generator."""
        return self.alike(self.retoned(x))

    def retoned(self, x: Tensor) -> Tensor:
        """Draws of the generator in the data's tones, where the view wants that."""
        return views.toned(x, self.tones) if self.settings.view == "tone" and x.ndim == 4 else x

    def alike(self, x: Tensor) -> Tensor:
        """What is done to data and to retoned draws alike before the networks see them."""
        shown = views.inked(x) if self.settings.view == "ink" and x.ndim == 4 else x
        return (shown - self.mean) / self.deviation

    def features(self, x: Tensor) -> Tensor:
        """What the heads read, (B, F)."""
        return self.both(x)[1]

    def forward(self, x: Tensor) -> Tensor:
        """E(x) in nats."""
        return self.both(x)[0]


def fit_ratio(
    real: Tensor,
    generated: Tensor,
    settings: RatioSettings | None = None,
    *,
    seed: int = 0,
    names: tuple[str, str] = ("real", "generated"),
) -> tuple[RatioEnergy, Check]:
    """The energy, frozen, and its check on held-out rows; real and generated (N, *) float32 of one shape.

    `energy.settings` holds the view and noise that were chosen in place of "auto". The same seed gives the same energy
    on one machine. UserError for fewer than 20 rows of either kind, more members than rows, two shapes, or images too
    small to be halved once an entry of `channels`; it calls the two by `names`.
    """
    s = settings or RatioSettings()
    _require(real, generated, s, names)
    if real.ndim != 4 and s.view not in ("auto", "pixels"):
        raise UserError(f"view={s.view!r}: is a view of images, and these are rows; leave it out")
    s, tried = _settled(real, generated, s, seed)
    energy = _untrained(real, generated, s, seed)
    label, fold = _sides(real, generated, s.members, seed)
    x = torch.cat([real, energy.retoned(generated)])
    held, steps = torch.empty(len(x)), []
    for k in range(s.members):
        mine = fold == k
        member, taken = _train(energy, k, x[~mine], label[~mine], x[mine], label[mine], seed)
        held[mine] = _energies(member, energy.alike(x[mine]))
        steps.append(taken)
    _calibrate(energy, held, label)
    held = energy.scale * held + energy.offset
    energy.price.fill_(support.PRICE * (held.max() - held.min()))
    check = _check(held, label)
    used = {"steps": tuple(steps), "view": s.view, "noise": s.noise, "trials": tried}
    return energy.eval().requires_grad_(False), Check(*check, **used)  # pyright: ignore[reportArgumentType]


def _settled(real: Tensor, generated: Tensor, s: RatioSettings, seed: int) -> tuple[RatioSettings, tuple[Trial, ...]]:
    """The settings with a view and a noise in place of "auto", and the trials that chose them: one member each."""
    ways = trials.ways(real, s.view, s.noise)
    if len(ways) == 1:
        return replace(s, view=ways[0][0], noise=ways[0][1]), ()
    label, fold = _sides(real, generated, s.members, seed)
    mine = fold == 0
    common = views.toned(generated, views.tones(generated, real)) if real.ndim == 4 else generated
    compared, held = torch.cat([real, common])[mine], label[mine]
    if real.ndim == 2:
        mean, deviation = _standard(real, generated)
        compared = (compared - mean) / deviation
    real_held, made_held = compared[held], compared[~held]
    tried = []
    for view, noise in ways:
        short = replace(s, view=view, noise=noise, steps=max(1, s.steps // trials.SHORTER))
        energy = _untrained(real, generated, short, seed)
        x = torch.cat([real, energy.retoned(generated)])
        member, _ = _train(energy, 0, x[~mine], label[~mine], x[mine], label[mine], seed)
        u = _energies(member, energy.alike(x[mine]))
        auc = _auc(u, held)
        tried.append(Trial(view, noise, auc, trials.parted(u[~held], made_held, real_held)))
    best = trials.best(tried, made_held, real_held, seed=seed)
    return replace(s, view=best.view, noise=best.noise), tuple(tried)


def _sides(real: Tensor, generated: Tensor, members: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of all rows, the data first: whether they are data, and the fold of each."""
    label = torch.cat([torch.ones(len(real)), torch.zeros(len(generated))]) > 0
    folds = [_folds(len(part), members, seed, name) for part, name in ((real, "real"), (generated, "gen"))]
    return label, torch.cat(folds)


def _network(shape: tuple[int, ...], s: RatioSettings) -> nn.Module:
    """A small network for rows of this shape; large images get more halvings, so that its cost grows with the area."""
    if len(shape) == 1:
        return MLPEnergy(shape=shape, width=s.hidden, depth=2)  # pyright: ignore[reportArgumentType]
    channels = list(s.channels)
    while min(shape[1:]) >> len(channels) > 7:
        channels.append(channels[-1])
    return StridedEnergy(shape=shape, channels=channels, hidden=s.hidden)


def _untrained(real: Tensor, generated: Tensor, s: RatioSettings, seed: int) -> RatioEnergy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "ratio-weights").initial_seed())
        energy = RatioEnergy(shape=tuple(real.shape[1:]), settings=s)
    if s.view == "tone" and real.ndim == 4:
        energy.tones.copy_(views.tones(generated, real))
    if real.ndim == 4:
        energy.limits.copy_(support.limits(real, energy.retoned(generated)))
    # mean 0 and deviation 1 so far: what is shown, as it is
    mean, deviation = _standard(energy.alike(real), energy.standardised(generated))
    energy.mean.copy_(mean.view_as(energy.mean))
    energy.deviation.copy_(deviation.view_as(energy.deviation))
    return energy


def _standard(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """(m, d): the mean of the data and their deviation, a number each for images, one a column for rows.

    A column that (all but) stands still in the data and moves in the draws would fill the whole distance: there d is a
    third of the deviation of both sides together. One that stands still in both, to rounding, is left in its units.
    """
    over = 0 if real.ndim == 2 else tuple(range(real.ndim))
    if real.ndim == 2:  # a column's mean is then the very value that it stands at
        real, generated = real.double(), generated.double()
    mean, gap = real.mean(over), (generated.mean(over) - real.mean(over)) / 2
    both = ((real.var(over) + generated.var(over)) / 2 + gap.square()).sqrt()
    deviation = torch.maximum(real.std(over), both / WIDER)
    still = deviation <= 4 * torch.finfo(torch.float32).eps * mean.abs()
    return mean.float(), torch.where(still, 1.0, deviation).float()


def _train(
    energy: RatioEnergy, k: int, x: Tensor, label: Tensor, x_held: Tensor, held: Tensor, seed: int
) -> tuple[nn.Module, int]:
    """Member k at the step where the loss on its held-out fold was least, and that step."""
    s, member = energy.settings, energy.members[k]
    low, high = s.noise if isinstance(s.noise, tuple) else (s.noise, None)
    objective = LikelihoodRatio(smoothing=s.smoothing, noise=low, most=high)  # pyright: ignore[reportArgumentType]
    warp = Warp(stretch=s.stretch, shift=s.shift) if x.ndim == 4 else None
    optimiser = torch.optim.AdamW(member.parameters(), lr=s.rate, weight_decay=s.weight_decay)
    num_damaged = round(s.damaged * s.batch)
    sides, z_held = (label.nonzero().flatten(), (~label).nonzero().flatten()), energy.alike(x_held)
    least, best, at = math.inf, copy.deepcopy(member.state_dict()), 0
    for step in range(1, s.steps + 1):
        draws = generator(seed, f"ratio-{k}", step)
        rows = torch.cat([side[torch.randint(len(side), (s.batch,), generator=draws)] for side in sides])
        batch = x[rows] if warp is None else warp(x[rows], draws, 0.0)
        if num_damaged:
            batch[-num_damaged:] = Damage()(batch[:num_damaged], draws)  # the data come first, the generated last
        data = Batch(energy.alike(batch), label[rows])
        state = objective.init(member, data.x, draws)
        loss, _, _ = objective.loss(member, state, data, objective.draw(state, data, draws, step / s.steps))
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = s.rate * (1 - (step - 1) / s.steps)
        optimiser.step()
        if step % s.check == 0 or step == s.steps:
            now = float(balanced_loss(_energies(member, z_held), held))
            if now < least:
                least, best, at = now, copy.deepcopy(member.state_dict()), step
            elif step - at >= s.patience * s.check:
                break
    member.load_state_dict(best)
    return member, at


@torch.no_grad()
def _energies(energy: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([energy(part) for part in x.split(BLOCK)])


def _folds(n: int, members: int, seed: int, side: str) -> Tensor:
    return torch.randperm(n, generator=generator(seed, f"ratio-folds-{side}")) % members


def _calibrate(energy: RatioEnergy, held: Tensor, label: Tensor) -> None:
    """s and c of least logistic loss on the rows as judged by networks that did not see them (Platt 1999); s > 0."""
    u = held.double()

    def loss(p):
        return float(balanced_loss(math.exp(p[0]) * u + p[1], label))

    found = minimize(loss, [0.0, 0.0], method="Nelder-Mead", bounds=[(-3, 3), (-20, 20)], options={"maxiter": 200})
    energy.scale.fill_(math.exp(found.x[0]))
    energy.offset.fill_(found.x[1])


def _check(u: Tensor, label: Tensor) -> tuple[float, float, float]:
    """(loss, its standard error, AUC)."""
    each = F.softplus(torch.where(label, u, -u)).double()
    sides = (each[label], each[~label])
    error = math.sqrt(sum(float(side.var()) / len(side) for side in sides)) / 2
    return float(sum(side.mean() for side in sides)) / 2, error, _auc(u, label)


def _auc(u: Tensor, label: Tensor) -> float:
    return float(roc_auc_score(label.numpy(), -u.numpy()))


def _require_noise(noise: Any) -> None:
    pair = noise if isinstance(noise, tuple) else (noise, noise)
    if len(pair) != 2 or not all(isinstance(v, int | float) and math.isfinite(v) for v in pair) or pair[0] > pair[1]:
        raise UserError(f'noise={noise!r}: want "auto", deviations of zero or more, or a pair (least, most)')
    if pair[0] < 0 or (isinstance(noise, tuple) and not pair[0]):
        raise UserError(f"noise={noise!r}: want deviations of zero or more, a pair of more than zero")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require(real: Tensor, generated: Tensor, s: RatioSettings, names: tuple[str, str]) -> None:
    for name, x in zip(names, (real, generated), strict=True):
        if len(x) < LEAST:
            raise UserError(f"{name}: holds {len(x)} rows, a likelihood ratio wants {LEAST} or more of either kind")
    if real.shape[1:] != generated.shape[1:]:
        raise UserError(
            f"{names[0]}: rows of shape {tuple(real.shape[1:])}, {names[1]}: of {tuple(generated.shape[1:])}; "
            "give one shape"
        )
    least = max(8, 2 ** len(s.channels))
    if real.ndim == 4 and min(real.shape[2:]) < least:
        height, width = real.shape[2:]
        raise UserError(
            f"{names[0]}: images of {width} x {height} pixels, want {least} or more a side with channels={s.channels}; "
            "enlarge them"
        )
    fewest, name = min((len(x), name) for name, x in zip(names, (real, generated), strict=True))
    if s.members > fewest:
        raise UserError(
            f"members={s.members}: want at most {fewest}, the rows of {name}: each member is checked on rows of either "
            "side that it did not see"
        )
