"""In-painting: several draws of what is missing of an image, given what was seen of it, best first.

    x | seen  ~  exp(-E(x)) p(seen | x),    seen = A x + s n

A noise-conditional energy is drawn from by `apps.posterior`; an unnormalised one by its own Langevin chain with the
observed pixels clamped. `inpaint` is the case of a mask, `restore` that of any linear operator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.apps.bundle import check_room, whole
from thalweg.apps.completions import Completions, RankBy, check_rank_by, ranked
from thalweg.apps.inputs import as_rows
from thalweg.apps.operators import Operator, Pixels, matrix
from thalweg.apps.posterior import Guided, Noise, Sight, draw, guessed
from thalweg.core.errors import UserError, kind_of
from thalweg.core.rng import generator
from thalweg.data.frames import is_frame
from thalweg.data.validate import as_float, check_input, check_shape
from thalweg.energy.compose import Tempered
from thalweg.energy.seen import Directions, Given
from thalweg.energy.spectral import frozen
from thalweg.sampler.precision import reads_energies
from thalweg.sampler.run import run_chain

IMAGES = 64  # in a block: bounds the memory


def inpaint(
    bundle: Any,
    x: Any,
    observed: Any,
    *,
    n: int = 1,
    seed: int = 0,
    noise: float = 0.0,
    how: Guided | None = None,
    rank_by: RankBy = "error",
) -> Completions:
    """n completions of images x (B, *shape) in data units where `observed` (bool, broadcastable to x) is false.

    What x holds at missing pixels is not looked at, so it may be NaN. Observed pixels come back exactly; with `noise`
    > 0, their standard deviation in data units, they are repaired too. An image with nothing observed is a sample, one
    with nothing missing is returned. Image i's completions do not depend on the images beside it, up to rounding.
    The best come first: by the error to be expected, or by energy (`apps.completions`).
    """
    check_rank_by(rank_by)
    n, seed = whole("n", n, 1), whole("seed", seed, 0, 2**64 - 1)
    x = as_rows(bundle.layout, x, gaps=True) if is_frame(x) else x
    observed = _mask(observed, x, bundle)
    x = _values(x, observed, bundle)
    masks, which = torch.unique(observed.flatten(1), dim=0, return_inverse=True)
    seen = [Seen((which == k).nonzero()[:, 0], Pixels(m.reshape(bundle.shape)), None) for k, m in enumerate(masks)]
    seen = [s._replace(values=s.operator(x[s.rows])) for s in seen]
    sights = _sights(bundle, seen, noise)
    found = _complete(bundle, sights, len(x), n, seed, how)
    if noise == 0:
        found = torch.where(observed, x, found)
    return ranked(bundle, found, sights, rank_by)


def restore(
    bundle: Any,
    seen: Any,
    operator: Operator,
    *,
    n: int = 1,
    seed: int = 0,
    noise: float = 0.0,
    how: Guided | None = None,
    rank_by: RankBy = "error",
) -> Completions:
    """n draws of the images x (B, *shape) of which `seen` = A x + noise was observed, A = `operator`.

    `seen` (B, …) in data units, as many numbers a row as `operator` gives. For `Blur`, `Downsample`, or your own map.
    """
    check_rank_by(rank_by)
    n, seed = whole("n", n, 1), whole("seed", seed, 0, 2**64 - 1)
    seen = torch.as_tensor(seen).to(torch.float32)
    if seen.ndim < 2 or not bool(seen.isfinite().all()):
        raise UserError(f"seen: shape {tuple(seen.shape)}: want (B, …) finite numbers, a row for each image")
    wanted = operator(torch.zeros(1, *bundle.shape)).shape[1]
    if seen[0].numel() != wanted:
        raise UserError(f"seen: {seen[0].numel()} numbers a row, {operator} gives {wanted} of this model's images")
    sights = _sights(bundle, [Seen(torch.arange(len(seen)), operator, seen.flatten(1))], noise)
    return ranked(bundle, _complete(bundle, sights, len(seen), n, seed, how), sights, rank_by)


class Seen(NamedTuple):
    """Some of the images and what one operator shows of them, in data units."""

    rows: Tensor  # (r,)
    operator: Any
    values: Any  # (r, m)


def _sights(bundle: Any, seen: Sequence[Seen], noise: float) -> list[Sight]:
    """The same in model units, for the images of which anything was seen."""
    if isinstance(noise, bool) or not 0 <= noise < math.inf:
        raise UserError(f"noise={noise}: want a standard deviation of 0 or more, in data units")
    scale, offset = _affine(bundle)
    sights = []
    for part in seen:
        a = matrix(part.operator, bundle.shape)
        if len(a):
            directions = Directions.of(a * scale, noise)
            values = (part.values - a.to(offset.dtype) @ offset).to(torch.float32)  # the offset may be far from zero
            sights.append(Sight(part.rows, directions, directions.read(values)))
    return sights


def _complete(
    bundle: Any, sights: Sequence[Sight], size: int, n: int, seed: int, how: Guided | None
) -> Float[Tensor, "n b *d"]:
    """In data units, unranked; samples where nothing was seen."""
    how = how or (Guided.wide() if bundle.guess is None else Guided())
    check_room(n * size, bundle.shape)
    out = torch.empty(n, size, *bundle.shape, dtype=bundle.dtype)
    blind = torch.ones(size, dtype=torch.bool)
    for sight in sights:
        blind[sight.rows] = False
    if count := int(blind.sum()):
        out[:, blind] = bundle.sample(n * count, seed=seed).reshape(n, count, *bundle.shape)
    with torch.inference_mode(False), torch.no_grad():
        for start in range(0, size, IMAGES):
            images, block = _block(sights, start, n)
            if len(images):
                streams = [generator(seed, "inpaint", int(i), k) for i in images for k in range(n)]
                z = (_annealed if bundle.noisy else _chains)(bundle, block, streams, how)
                x = bundle.decode(z.reshape(-1, *bundle.shape))
                out[:, images] = x.reshape(len(images), n, *bundle.shape).transpose(0, 1)
    return out


def _block(sights: Sequence[Sight], start: int, n: int) -> tuple[Tensor, list[Sight]]:
    """(images of the block, what was seen of their chains): image j's n chains are rows j n … j n + n - 1."""
    images, block, count = [], [], 0
    for sight in sights:
        inside = (sight.rows >= start) & (sight.rows < start + IMAGES)
        if r := int(inside.sum()):
            images.append(sight.rows[inside])
            rows = torch.arange(count * n, (count + r) * n)
            block.append(Sight(rows, sight.directions, sight.read[inside].repeat_interleave(n, 0)))
            count += r
    return torch.cat(images) if images else torch.zeros(0, dtype=torch.int64), block


def _annealed(bundle: Any, sights: Sequence[Sight], streams: Sequence[Generator], how: Guided) -> Tensor:
    size = math.prod(bundle.shape)
    with torch.autocast("cpu", torch.bfloat16, enabled=bundle.config.get("precision") == "bf16"):
        return draw(bundle.model, sights, Noise(streams, size), how, guess=bundle.guess)


def _chains(bundle: Any, sights: Sequence[Sight], streams: Sequence[Generator], how: Guided) -> Tensor:
    """The run's own kernel on E(z) with what was seen held, from the bundle's guess, or noise, in all that is missing.

    Exact observations are held exactly. Noise on others is taken to be at least sqrt(2 h T), the kick of one step: a
    finer bound would be stiffer than the step can follow.
    """
    kernel, out = bundle.sampler, []
    temperature, kick = float(getattr(kernel, "temperature", 1.0)), 0.0
    if hasattr(kernel, "step_size"):
        kick = (2 * float(kernel.step_size) * temperature) ** 0.5
    image = bundle.kind == "image"
    make = torch.rand if image else torch.randn
    start = torch.stack([make(bundle.shape, generator=g) for g in streams])
    start = bundle.transform.forward(start) if image else start
    if bundle.guess is not None:
        start = guessed(bundle.guess, sights, Noise(streams, math.prod(bundle.shape))).reshape(start.shape)
    with frozen(bundle.model) as still:
        for sight in sights:
            d, x = sight.directions, start[sight.rows]
            d = d._replace(noise=torch.where(d.noise > 0, d.noise.clamp(min=kick), 0))
            placed = d.place(x.flatten(1), sight.read).reshape(x.shape)
            # The kernel divides by T; what was seen is no matter of temperature.
            given = Given(Tempered(still, 1 / temperature), 0.0, d, sight.read, placed)
            rows = _Rows(kernel, [streams[i] for i in sight.rows.tolist()])
            z = run_chain(rows, Tempered(given, temperature), placed, num_steps=how.chain_steps)
            out.append(given.restore(z).flatten(1))
    return torch.cat(out)


@dataclass(frozen=True)
class _Rows:
    """A kernel whose noise comes from a generator for each row, so that no row depends on its neighbours."""

    sampler: Any
    generators: Sequence[Generator]

    @property
    def gradient_only(self) -> bool:
        return not reads_energies(self.sampler)

    def init(self, energy: Any, x: Tensor) -> Any:
        return self.sampler.init(energy, x)

    def draw(self, state: Any, generator: Generator) -> tuple[Tensor, ...]:
        each = [self.sampler.draw(state._replace(x=state.x[:1]), g) for g in self.generators]
        return tuple(torch.cat(parts) if parts[0].ndim else parts[0] for parts in zip(*each, strict=True))

    def step(self, energy: Any, state: Any, noise: tuple[Tensor, ...]) -> Any:
        return self.sampler.step(energy, state, noise)


def _affine(bundle: Any) -> tuple[Tensor, Tensor]:
    """(a, b), flat: data = a model + b; UserError where the transform is not of that kind."""
    zero, one = torch.zeros(1, *bundle.shape), torch.ones(1, *bundle.shape)
    low, high, twice = (bundle.transform.inverse(z).flatten() for z in (zero, one, 2 * one))
    if not torch.allclose(twice - high, high - low, rtol=1e-3, atol=1e-5):
        raise UserError(f"{bundle.path}: in-painting wants a transform that scales and shifts, not {bundle.transform}")
    return (high - low).to(torch.float32), low


def _mask(observed: Any, x: Any, bundle: Any) -> Tensor:
    """(B, *shape) bool."""
    if not hasattr(x, "shape"):
        raise UserError(f"x: {kind_of(x)}, want a tensor or an array")
    shape = tuple(x.shape)
    check_shape(torch.empty(shape), bundle.shape, bundle.kind, where="x")
    observed = torch.as_tensor(observed)
    if observed.dtype != torch.bool:
        raise UserError(f"observed: of type {observed.dtype}, want bool, true where a pixel is known")
    try:
        return observed.expand(shape)
    except RuntimeError as error:
        raise UserError(f"observed: shape {tuple(observed.shape)} does not broadcast to x, {shape}") from error


def _values(x: Any, observed: Tensor, bundle: Any) -> Tensor:
    """x in data units, float32, with zero where it is missing; NaN among the observed pixels is refused, by row."""
    x = as_float(x if isinstance(x, Tensor) else torch.as_tensor(x))
    return check_input(torch.where(observed, x, 0.0), bundle.shape, bundle.kind, where="x, where it is observed")
