"""The rows of a check: random ones, of three laws, and hostile ones."""

from collections.abc import Sequence

import numpy as np

from thalweg.bundle.exportable import Arrays
from thalweg.bundle.servable import NUMPY, Content, TensorSpec

JITTER = 0.1  # standard deviations
WIDER = 0.2  # of a column's range, beyond each end
TEXTS = (
    "",
    " ",
    "other",
    "a new one",
    "None",
    "nan",
    "0",
    "-1",
    "дом",
    "家",
    "é",
    "e\u0301",
    "\U0001f600",
    "a\tb",
    "x" * 300,
)


def random_rows(specs: Sequence[TensorSpec], content: Content, typical: Arrays, seed: int) -> dict[str, np.ndarray]:
    """As many rows as there are typical ones: a third like those, jittered; a third uniform over their range and
    beyond; a third with heavy tails. Images stay in [0, 1]. A tenth of the categories are new.
    """
    random = np.random.default_rng(seed)
    n = len(typical[specs[0].name])
    law = random.permutation(np.arange(n) % 3)
    return {spec.name: _random(spec, content, typical[spec.name], law, random) for spec in specs}


def _random(
    spec: TensorSpec, content: Content, x: np.ndarray, law: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    if spec.datatype == "BYTES":
        shuffled = random.permutation(x)
        found = np.where(law == 0, x, shuffled)
        return np.where((law == 2) & (random.random(len(x)) < 0.3), "a new one", found).astype(object)
    x = x.astype(np.float64)
    powers = np.frexp(np.abs(x).max(0))[1]
    x = np.ldexp(x, -powers)  # at most 1, lest squares and ranges overflow
    low, high, spread, middle = x.min(0), x.max(0), x.std(0), np.median(x, axis=0)
    wide = (high - low) * (0 if content == "image" else WIDER)
    jittered = x + JITTER * spread * random.standard_normal(x.shape)
    uniform = random.uniform(low - wide, high + wide, x.shape)
    heavy = middle + spread * random.standard_t(1.5, x.shape)
    which = law.reshape(-1, *[1] * (x.ndim - 1))
    found = np.where(which == 0, jittered, np.where(which == 1, uniform, heavy))
    with np.errstate(over="ignore"):
        x, found = np.ldexp(x, powers), np.ldexp(found, powers)
    info = np.finfo(NUMPY[spec.datatype])
    found = found.clip(0, 1) if content == "image" else found.clip(info.min, info.max)
    whole = (x == np.round(x)).all(0) & (content != "image")
    return np.where(whole & (which == 0), np.round(found), found).astype(NUMPY[spec.datatype])


def hostile_rows(specs: Sequence[TensorSpec], content: Content, typical: Arrays, seed: int) -> dict[str, np.ndarray]:
    """Typical rows, of which each but the first fifth has one or several entries replaced: by huge, tiny and denormal
    numbers, by the ends of a column's range and the numbers next to them, by texts that are no category. The first
    fifth are repeated rows.
    """
    random = np.random.default_rng(seed)
    n = len(typical[specs[0].name])
    changed, share = np.arange(n) >= n // 5, random.choice([1 / max(1, len(specs)), 0.5, 1.0], size=n)
    return {spec.name: _hostile(spec, content, typical[spec.name], changed, share, random) for spec in specs}


def _hostile(
    spec: TensorSpec,
    content: Content,
    x: np.ndarray,
    changed: np.ndarray,
    share: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    if spec.datatype == "BYTES":
        at = changed & (random.random(len(x)) < share)
        return np.where(at, random.choice(np.array(TEXTS, object), len(x)), x)
    kind = np.dtype(NUMPY[spec.datatype])
    info = np.finfo(kind)
    ends = [f(x, axis=0) for f in (np.min, np.max)]
    near = [np.nextafter(end, toward).astype(kind) for end in ends for toward in (-np.inf, np.inf)]
    tiny = [0.0, info.tiny, info.smallest_subnormal, info.eps]
    huge = [info.max, 1e30, 1e16, 1e8, 1e4]
    plain = [np.broadcast_to(np.array(v, kind), x.shape[1:]) for v in (*tiny, *huge, *(-v for v in (*tiny, *huge)))]
    if content == "image":
        plain = [np.broadcast_to(np.array(v, kind), x.shape[1:]) for v in (*tiny, 0.5, 1.0, 1 - float(info.epsneg))]
        near = [part.clip(0, 1) for part in near]
    values = np.stack([*plain, *ends, *near]).astype(kind)
    pick = random.integers(len(values), size=x.shape)
    chosen = np.take_along_axis(values, pick, axis=0)
    each = share.reshape(-1, *[1] * (x.ndim - 1))
    if x.ndim > 1 and content != "image":
        each = np.maximum(each, 1 / x[0].size)
    at = changed.reshape(each.shape) & (random.random(x.shape) < each)
    return np.where(at, chosen, x).astype(kind)
