"""In-painting: several draws of the missing part of an image, given the observed part, best first.

    x | b  ~  exp(-E(x)) p(b | x),    b = A x + s n

A noise-conditional energy is sampled by `apps.inpaint.posterior`; an unnormalised one by its own Langevin chain with
the observed pixels fixed. `inpaint` is the case of a mask, `restore` that of any linear operator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.apps.inpaint.operators import Operator, Pixels, Separable, matrix
from thalweg.apps.inpaint.posterior import Denoiser, Observation, RowNoise, Schedule, sample_mixture, sample_posterior
from thalweg.apps.inpaint.ranking import Completions, RankBy, check_rank_by, ranked
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.inputs import as_rows, require_numbers
from thalweg.bundle.model_units import initial_positions
from thalweg.core import check
from thalweg.core.device import autocast
from thalweg.core.errors import UserError, kind_of
from thalweg.core.rng import generator
from thalweg.data.frames import is_frame
from thalweg.data.validate import as_float, as_tensor, check_input, check_shape
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.linear_observation import LinearObservation, PosteriorEnergy, SeparableBasis
from thalweg.energy.wrappers import Tempered
from thalweg.sampler.base import HasStepSize
from thalweg.sampler.chain import SamplerWrapper, run_chain
from thalweg.sampler.schedule import value_at

LARGEST_MATRIX = 6144  # numbers of an image, up to which an operator is written out as a matrix
IMAGES = 64  # in a block: bounds the memory


def inpaint(
    bundle: Bundle,
    x: Any,
    observed: Any,
    *,
    n: int = 1,
    seed: int = 0,
    noise: float = 0.0,
    schedule: Schedule | None = None,
    rank_by: RankBy = "expected_error",
) -> Completions:
    """n completions of images x (B, *shape) in data units where `observed` (bool, broadcastable to x) is false.

    Of a table x may be a frame, and `observed` have a mark a column; a missing category is drawn (`Bundle.frame` names
    it). What x holds at missing pixels is not looked at, so it may be NaN. Observed pixels come back exactly; with
    `noise` > 0, their standard deviation in data units, they are repaired too. An image with nothing observed is a
    sample; one with nothing missing is returned. Image i's completions do not depend on the images beside it, up to
    rounding.
    The best come first: by their expected error, or by energy (`apps.inpaint.ranking`). They lie where x does.
    """
    check_rank_by(rank_by)
    n, seed = check.whole("n", n, 1), check.whole("seed", seed, 0, 2**64 - 1)
    require_numbers(bundle, "in-painting")
    if isinstance(x, list | tuple):
        raise UserError(f"must be a tensor or an array, not {kind_of(x)}", argument="x")
    x = as_rows(bundle.layout, x, gaps=True) if is_frame(x) else as_tensor(x)
    home, observed = x.device, _mask(observed, x, bundle).cpu()
    x = _values(x.cpu(), observed, bundle)
    masks, which = torch.unique(observed.flatten(1), dim=0, return_inverse=True)
    measured = []
    for k, mask in enumerate(masks):
        rows, operator = (which == k).nonzero()[:, 0], Pixels(mask.reshape(bundle.shape))
        measured.append(Measurements(rows, operator, operator(x[rows])))
    observations = _observations(bundle, measured, noise)
    found = _complete(bundle, observations, len(x), n, seed, schedule)
    if noise == 0:
        found = torch.where(observed.to(found.device), x.to(found.device), found)
    return ranked(bundle, found, observations, rank_by).to(home)


def restore(
    bundle: Bundle,
    measurements: Any,
    operator: Operator,
    *,
    n: int = 1,
    seed: int = 0,
    noise: float = 0.0,
    schedule: Schedule | None = None,
    rank_by: RankBy = "expected_error",
) -> Completions:
    """n draws of the images x (B, *shape) of which `measurements` = A x + noise are known, A = `operator`.

    `measurements` (B, …) in data units, as many numbers a row as `operator` gives, which is applied on the CPU. For
    `Blur`, `Downsample`, or your own linear map. The draws lie where `measurements` do.
    """
    check_rank_by(rank_by)
    n, seed = check.whole("n", n, 1), check.whole("seed", seed, 0, 2**64 - 1)
    require_numbers(bundle, "in-painting")
    given = torch.as_tensor(measurements)
    b = given.to("cpu", torch.float32)
    if b.ndim < 2 or not bool(b.isfinite().all()):
        text = f"must be (B, …) finite numbers, a row for each image, not of shape {tuple(b.shape)}"
        raise UserError(text, argument="measurements")
    wanted = operator(torch.zeros(1, *bundle.shape)).shape[1]
    if b[0].numel() != wanted:
        text = f"must have {wanted} numbers a row, as {operator} gives of this model's images, not {b[0].numel()}"
        raise UserError(text, argument="measurements")
    observations = _observations(bundle, [Measurements(torch.arange(len(b)), operator, b.flatten(1))], noise)
    found = _complete(bundle, observations, len(b), n, seed, schedule)
    return ranked(bundle, found, observations, rank_by).to(given.device)


class Measurements(NamedTuple):
    """The values (r, m) of one operator at the images of these row numbers (r,), in data units."""

    rows: Tensor
    operator: Operator
    values: Tensor


def _observations(bundle: Bundle, measured: Sequence[Measurements], noise: float) -> list[Observation]:
    """The same in model units, without the images of which nothing is observed, on the bundle's device but the rows."""
    check.non_negative(noise=noise)
    scale, offset = _affine(bundle)
    observations = []
    for part in measured:
        if isinstance(part.operator, Pixels):
            pixels = part.operator.observed.flatten().nonzero()[:, 0]
            if len(pixels):
                linear = LinearObservation.from_pixels(pixels, len(scale), noise / scale[pixels])
                values = ((part.values - offset[pixels]) / scale[pixels]).to(torch.float32)
                observations.append(Observation(part.rows, linear.to(bundle.device), values.to(bundle.device)))
            continue
        if len(scale) > LARGEST_MATRIX:
            linear = _separable(part.operator, bundle.shape, scale, noise)
            values = (part.values - part.operator(offset.reshape(1, *bundle.shape))).to(torch.float32)
            projections = linear.project(values).to(bundle.device)
            observations.append(Observation(part.rows, linear.to(bundle.device), projections))
            continue
        a = matrix(part.operator, bundle.shape)
        if len(a):
            linear = LinearObservation.from_matrix(a * scale, noise)
            values = (part.values - a.to(offset.dtype) @ offset).to(torch.float32)  # the offset may be far from zero
            projections = linear.project(values).to(bundle.device)
            observations.append(Observation(part.rows, linear.to(bundle.device), projections))
    return observations


def _separable(operator: Operator, shape: tuple[int, ...], scale: Tensor, noise: float) -> LinearObservation:
    """What an operator says of images too large for its matrix, in model units; UserError where it is not separable."""
    unit = float(scale.mean())
    if len(shape) == 3 and isinstance(operator, Separable) and torch.allclose(scale, scale.mean(), rtol=1e-5):
        channels, height, width = shape
        x = torch.linspace(-1, 2, len(scale)).reshape(1, *shape)
        seen = operator(x)  # which refuses sizes that it cannot take
        vertical, horizontal = operator.factors(height, width)
        if not torch.allclose(seen, (vertical @ x @ horizontal.T).flatten(1), atol=1e-3):
            raise UserError("must have the factors of its map", argument=type(operator).__name__)
        return LinearObservation.from_separable(
            SeparableBasis.of(vertical, horizontal, channels, unit), len(scale), noise
        )
    text = (
        f"must be a mask, or a separable operator such as Blur and Downsample, as a row of the model has "
        f"{len(scale):,} numbers ({' x '.join(map(str, shape))}), and other operators are written out as matrices, "
        f"for at most {LARGEST_MATRIX:,}"
    )
    hint = "give it `factors`" if len(shape) == 3 else "give what is missing as a mask"
    raise UserError(text, argument="operator", value=type(operator).__name__, hint=hint)


def _complete(
    bundle: Bundle, observations: Sequence[Observation], size: int, n: int, seed: int, schedule: Schedule | None
) -> Float[Tensor, "n b *d"]:
    """In data units, unranked, on the bundle's device; samples where nothing is observed."""
    schedule = schedule or (Schedule.wide() if bundle.mixture_prior is None else Schedule())
    check.fits_memory(n * size, bundle.shape)
    out = torch.empty(n, size, *bundle.shape, dtype=bundle.dtype, device=bundle.device)
    unobserved = torch.ones(size, dtype=torch.bool)
    for observation in observations:
        unobserved[observation.rows] = False
    if count := int(unobserved.sum()):
        out[:, unobserved] = bundle.sample(n * count, seed=seed).reshape(n, count, *bundle.shape)
    with torch.inference_mode(False), torch.no_grad():
        for start in range(0, size, IMAGES):
            images, block = _block(observations, start, n)
            if len(images):
                place = {"device": bundle.device}
                streams = [generator(seed, "inpaint", i, k, **place) for i in images.tolist() for k in range(n)]
                block = [observation.to(bundle.device) for observation in block]
                z = (_annealed if bundle.noisy else _chains)(bundle, block, streams, schedule)
                x = bundle.decode(z.reshape(-1, *bundle.shape))
                out[:, images] = x.reshape(len(images), n, *bundle.shape).transpose(0, 1)
    return out


def _block(observations: Sequence[Observation], start: int, n: int) -> tuple[Tensor, list[Observation]]:
    """(images of the block, observations of their chains): image j's n chains are rows j n … j n + n - 1."""
    images, block, count = [], [], 0
    for observation in observations:
        inside = (observation.rows >= start) & (observation.rows < start + IMAGES)
        if r := int(inside.sum()):
            images.append(observation.rows[inside])
            rows = torch.arange(count * n, (count + r) * n)
            projections = observation.projections[inside].repeat_interleave(n, 0)
            block.append(Observation(rows, observation.linear, projections))
            count += r
    return torch.cat(images) if images else torch.zeros(0, dtype=torch.int64), block


def _annealed(
    bundle: Bundle, observations: Sequence[Observation], streams: Sequence[Generator], schedule: Schedule
) -> Tensor:
    noise = RowNoise(streams, math.prod(bundle.shape))
    with autocast(bundle.device, bundle.config.get("precision") == "bf16"):
        model = cast(Denoiser, bundle.model)  # `bundle.noisy`, and every energy of a recipe has a shape
        return sample_posterior(model, observations, noise, schedule, mixture=bundle.mixture_prior)


def _chains(
    bundle: Bundle, observations: Sequence[Observation], streams: Sequence[Generator], schedule: Schedule
) -> Tensor:
    """The run's own kernel on E(z) with the observations fixed, from a draw of the mixture or, without one, from noise.

    Exact observations are kept exactly. The noise on others is taken to be at least that of one step, for ULA
    sqrt(2 h T): a narrower likelihood would be stiffer than the step can follow. Of schedules h is the largest and T
    the last; at an earlier, higher T the model and the likelihood weigh less by the same factor.
    """
    kernel, temperature, step_noise, out = bundle.sampler, 1.0, 0.0, []
    if isinstance(kernel, HasStepSize):
        temperature, step_size = _of_chain(kernel, schedule.chain_steps)
        step_noise = kernel.step_noise(step_size, temperature)
    size = (1, *bundle.shape)
    start = torch.cat([initial_positions(bundle.kind, bundle.transform, size, g) for g in streams])
    if bundle.mixture_prior is not None:
        noise = RowNoise(streams, math.prod(bundle.shape))
        start = sample_mixture(bundle.mixture_prior, observations, noise).reshape(start.shape)
    with frozen(bundle.model) as energy:
        for rows, linear, projections in observations:
            x = start[rows]
            linear = linear._replace(noise=torch.where(linear.noise > 0, linear.noise.clamp(min=step_noise), 0))
            fixed = linear.set_projections(x.flatten(1), projections).reshape(x.shape)
            # The kernel divides all of the energy by T, but only the model's part is meant to be tempered.
            posterior = PosteriorEnergy(Tempered(energy, 1 / temperature), 0.0, linear, projections, fixed)
            per_row = _PerRowNoise(kernel, [streams[i] for i in rows.tolist()])
            z = run_chain(per_row, Tempered(posterior, temperature), fixed, num_steps=schedule.chain_steps)
            out.append(posterior.restore(z).flatten(1))
    return torch.cat(out)


def _of_chain(kernel: HasStepSize, num_steps: int) -> tuple[float, float]:
    """(T of the last step, the largest h) of a chain of that many steps."""
    steps = torch.arange(max(num_steps, 1))
    temperature = 1.0 if kernel.temperature is None else kernel.temperature
    return float(value_at(temperature, steps[-1])), max(float(value_at(kernel.step_size, i)) for i in steps)


@dataclass(frozen=True)
class _PerRowNoise(SamplerWrapper):
    """A kernel whose noise comes from a generator for each row, so that no row depends on its neighbours."""

    generators: Sequence[Generator]

    def draw(self, state: Any, generator: Generator) -> tuple[Tensor, ...]:
        each = [self.sampler.draw(state._replace(x=state.x[:1]), g) for g in self.generators]
        return tuple(torch.cat(parts) if parts[0].ndim else parts[0] for parts in zip(*each, strict=True))


def _affine(bundle: Bundle) -> tuple[Tensor, Tensor]:
    """(a, b), flat: data = a model + b; UserError where the transform is not of that kind."""
    zero, one = torch.zeros(1, *bundle.shape), torch.ones(1, *bundle.shape)
    low, high, twice = (bundle.transform.inverse(z).flatten() for z in (zero, one, 2 * one))
    if not torch.allclose(twice - high, high - low, rtol=1e-3, atol=1e-5):
        text = f"must have a transform that scales and shifts, not {bundle.transform}"
        raise UserError(text, argument=str(bundle.path))
    return (high - low).to(torch.float32), low


def _mask(observed: Any, x: Tensor, bundle: Bundle) -> Tensor:
    """(B, *shape) bool."""
    check_shape(x, bundle.shape, bundle.kind, where="x")
    try:
        observed = torch.as_tensor(observed)
    except (TypeError, ValueError, RuntimeError) as error:
        text = f"must be an array of bool, true where a pixel is known, not {kind_of(observed)}"
        raise UserError(text, argument="observed", hint="thalweg.apps.inpaint.masks.observed reads words") from error
    if observed.dtype != torch.bool:
        text = f"must be bool, true where a pixel is known, not {observed.dtype}"
        raise UserError(text, argument="observed")
    if bundle.kind == "vector" and observed.ndim and observed.shape[-1] == bundle.layout.num_columns:
        observed = bundle.layout.widened(observed)
    try:
        return observed.expand(x.shape)
    except RuntimeError as error:
        text = f"must broadcast to x, {tuple(x.shape)}, and has shape {tuple(observed.shape)}"
        raise UserError(text, argument="observed") from error


def _values(x: Tensor, observed: Tensor, bundle: Bundle) -> Tensor:
    """x in data units, float32, with zero where it is missing; NaN among the observed pixels is refused, by row."""
    return check_input(
        torch.where(observed, as_float(x), 0.0), bundle.shape, bundle.kind, where="x, where it is observed"
    )
