"""One set of samples beside held-out data: figures, what the data themselves score, and a test of exact level."""

from typing import NamedTuple

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from thalweg.core import check
from thalweg.core.errors import UserError, kind_of
from thalweg.core.rng import generator
from thalweg.monitor.comparison import (
    REPEATS,
    Classifier,
    ComparedRows,
    FeatureExtractor,
    K,
    ReferenceRows,
    RowFeatures,
    subsets,
    vendi,
)
from thalweg.monitor.features import FeatureFn, OfDigits, StandardisedColumns, choose, pixels
from thalweg.monitor.figure import FIGURES, Kind
from thalweg.monitor.permutation import PermutationResult, min_rank_test
from thalweg.monitor.sentence import fault, of_classes, percent, sentence

ALARM = 0.003  # of the p-value: below the 1 % that is promised, since one held-out set serves many calls
HALF = 0.5  # of what data score: a figure beyond names the cause
BAD = 0.01  # of a figure's own p-value: the sentence of an alarm names it
MIN_HELD_OUT, MIN_SAMPLES = 20, 10
MOST = 600  # rows of each half, and samples measured at once
PERMUTATIONS, SUBSETS = 999, 200
CLUSTERS = 10
LARGEST = 1e15  # of held-out and training values: beyond, squared distances overflow
Figures = dict[str, float]
Bands = dict[str, tuple[float, float]]  # (mean, deviation) of each figure


class Report(NamedTuple):
    """What a check found.

    alarm: whether the samples differ from held-out data for the worse; p_value: of all figures together; figures: as
    `Diversity.figures`; sentence: what is wrong, in words; reference: mean and deviation of each figure for data of
    the same number; kind: of the worst figure, None without alarm.
    """

    alarm: bool
    p_value: float
    figures: dict[str, float]
    sentence: str
    reference: dict[str, tuple[float, float]]
    kind: Kind | None


class Diversity:
    """Figures of samples beside held-out data, and a test of them.

    Held-out rows are split once: a reference, which sets every scale, and a half that stands for the data's law.
    `check` takes them the other way round too.

    Args:
        held_out: Rows (N, *) that no training saw, N >= 20, in data units: images (N, C, H, W) or columns (N, D).
        train: The training rows (M, *), for "nearest_train"; None leaves that figure out.
        features: A module or function (B, *) -> (B, F) in which samples are compared, such as
            `thalweg.monitor.features.last_hidden_layer(energy)`. None: the digit network where the data are digits to
            it, else standardised columns, and images averaged down to 8 x 8.
        labels: Classes (N,) of the held-out rows; a sample takes the class of most of its five nearest reference rows.
            None: the digits that the digit network reads, else ten clusters of the features (k-means).
        seed: Of the split, the clusters and the permutations.
    """

    def __init__(
        self,
        held_out: Tensor,
        train: Tensor | None = None,
        features: object = None,
        *,
        labels: Tensor | None = None,
        seed: int = 0,
    ):
        held_out = _rows(held_out, "held_out", MIN_HELD_OUT)
        self._shape, self._seed = tuple(held_out.shape[1:]), seed
        if train is not None:
            train = self._checked(train, "train", 1)
        first, second = halves(len(held_out), seed)
        given = _labels(labels, len(held_out))
        extractor = _ruler(held_out, held_out[first], train, features)
        self._sides = [_Side(extractor, held_out, first, second, given, seed)]
        if train is None and held_out.ndim != 4:  # each reference has the columns' deviations of its own
            extractor = _ruler(held_out, held_out[second], None, features)
        self._sides += [_Side(extractor, held_out, second, first, given, seed)]
        self._reference, self._law = self._sides[0].reference, self._sides[0].law
        self._known: dict[int, dict[str, tuple[float, float]]] = {}
        self._scales: dict[int, float] = {}
        self._drawn: tuple[tuple[int, int], Tensor] | None = None

    def figures(self, samples: Tensor, *, lineages: Tensor | None = None) -> dict[str, float]:
        """Each figure of `FIGURES` that can be taken of samples (n, *), n >= 10.

        lineages (n,) are numbers of the beginnings that chains go back to. Where there are more samples than rows in
        half of the held-out data, parts of that many are measured and averaged, four at most.
        """
        x = self._checked(samples, "samples", MIN_SAMPLES)
        found = self._figures(self._rows(x[: 4 * len(self._law.units)]))
        if lineages is not None:
            ids = torch.as_tensor(lineages)
            if ids.shape != (len(x),):
                raise UserError(f"must be of shape {(len(x),)}, not {tuple(ids.shape)}", argument="lineages")
            found["lineages"] = len(ids.unique()) / len(ids)
        return found

    def classes(self, samples: Tensor) -> Tensor:
        """The class or cluster of each sample, (n,): of chains, to be compared at two looks by `switch_rate`."""
        return self._rows(self._checked(samples, "samples", 1)).classes

    def reference(self, n: int) -> dict[str, tuple[float, float]]:
        """(mean, deviation) of each figure of n rows of the data's own law, from many subsets of held-out rows.

        Subsets overlap; the deviation is corrected for that, by 1 / sqrt(1 - n / rows), and is taken of subsets of half
        the rows at most, and then scaled by the square root of n.
        """
        n = min(check.whole("n", n, MIN_SAMPLES), len(self._law.units))
        if n not in self._known:
            mean = self._subset_figures(n)
            m = min(n, len(self._law.units) // 2)
            spread = mean if m == n else self._subset_figures(m)
            scale = (m / n / (1 - m / len(self._law.units))) ** 0.5
            self._known[n] = {k: (v.mean().item(), scale * spread[k].std(correction=1).item()) for k, v in mean.items()}
        return self._known[n]

    def check(self, samples: Tensor) -> Report:
        """Test samples (n, *), n >= 10, against held-out rows; of more than 600 the first 600 are tested.

        A permutation test on the pool of samples and one half of the held-out rows beside the other half, one-sided in
        the bad direction of every figure (Westfall & Young 1993); then the same with the halves exchanged. The p-value
        is the larger of the two, and an alarm one of at most 0.003. Either test alone is exact over draws of samples
        and held-out rows. One set of held-out rows serves many calls, and may by chance be better than its law: seldom
        are both of its halves.
        """
        x = self._checked(samples, "samples", MIN_SAMPLES)[:MOST]
        n, measured, outcomes = len(x), self._measure(x), []
        for side, m in zip(self._sides, measured, strict=True):
            pool = side.reference.rows(m).joined(side.law)
            values = side.reference.statistics(pool, self._permutations(len(pool.units), n))
            outcomes.append(min_rank_test({k: -v if FIGURES[k].worse == "high" else v for k, v in values.items()}))
        outcome, p_value = outcomes[0], max(one.p_value for one in outcomes)
        own = self._reference.rows(measured[0])
        figures, reference = self._figures(own), self.reference(n)
        if p_value > ALARM:
            return Report(False, p_value, figures, sentence(n, [], None, p_value), reference, None)
        bad = self._worst_first(outcome, figures, reference)
        kind, faults = FIGURES[bad[0]].kind, [self._fault(k, own, figures, reference) for k in bad]
        return Report(True, p_value, figures, sentence(n, faults, kind, p_value), reference, kind)

    def _worst_first(self, outcome: PermutationResult, figures: Figures, reference: Bands) -> list[str]:
        """The bad figures, by how many deviations they lie off, those of the cause before those of its effects.

        Where most samples repeat each other, that is it; else low density, as samples that are unlike the data cover
        little of them; and few different samples come before any nearness to training rows.
        """
        far, same = outcome.deviations, figures["duplicates"] - reference["duplicates"][0] > HALF
        unlike = figures["density"] < HALF * reference["density"][0]
        alike = same or (not unlike and figures["vendi"] < HALF)
        first: Kind | None = "variety" if alike else "noise" if unlike else None
        order = sorted(far, key=lambda k: (FIGURES[k].kind == first, far[k]), reverse=True)
        return [k for k in order if outcome.single[k] <= BAD] or order[:1]

    def _fault(self, name: str, own: ComparedRows, figures: Figures, reference: Bands) -> str:
        value, usual = figures[name], reference[name][0]
        if name == "histogram":
            return of_classes(value, usual, self._reference.histogram(own.classes), self._reference.shares)
        if name == "nearest_train" and (share := self._reference.copied(own)) > 2 * REPEATS:
            return f"{percent(share)} lie nearer to a training row than {percent(1 - REPEATS)} of unseen rows do"
        return fault(name, value, usual)

    def _measure(self, x: Tensor) -> list[RowFeatures]:
        """The samples by each side's extractor, once where it is the same."""
        one, other = (side.extractor for side in self._sides)
        first = one.measure(x)
        return [first, first if other is one else other.measure(x)]

    def _rows(self, x: Tensor) -> ComparedRows:
        return self._reference.rows(self._sides[0].extractor.measure(x))

    def _figures(self, rows: ComparedRows) -> dict[str, float]:
        """The figures, of parts that are as large as the half of the law at most."""
        size = len(self._law.units)
        n = len(rows.units)
        parts = [torch.arange(n)] if n <= size else list(torch.arange(n // size * size).split(size))
        found = [self._figures_of(rows.part(part)) for part in parts]
        return {k: sum(one[k] for one in found) / len(found) for k in found[0]}

    def _figures_of(self, rows: ComparedRows) -> dict[str, float]:
        n = len(rows.units)
        found = {k: v.item() for k, v in self._reference.statistics(rows, torch.ones(1, n)).items()}
        found["vendi"] = vendi(self._reference.kernel(rows)) / self._scale(n)
        if len(rows.to_train):
            found["nearest_train"] = rows.to_train.median().item()
        return found

    def _scale(self, n: int) -> float:
        """The mean Vendi score of n held-out rows."""
        if n not in self._scales:
            self._scales[n] = self._vendis(n).mean().item()
        return self._scales[n]

    def _vendis(self, n: int, count: int = SUBSETS // 4) -> Tensor:
        k = self._reference.kernel(self._law)
        members = self._members(n)[:count].bool()
        return torch.tensor([vendi(k[one][:, one]) for one in members])

    def _subset_figures(self, n: int) -> dict[str, Tensor]:
        members = self._members(n)
        found = self._reference.statistics(self._law, members)
        found["vendi"] = self._vendis(n) / self._scale(n)
        if len(self._law.to_train):
            found["nearest_train"] = torch.stack([self._law.to_train[one].median() for one in members.bool()])
        return found

    def _permutations(self, m: int, n: int) -> Tensor:
        """The first n of m rows, and random n of them: the same in each call, since the rows are random."""
        if self._drawn is None or self._drawn[0] != (m, n):
            first = (torch.arange(m) < n).float()[None]
            draws = subsets(m, n, PERMUTATIONS, generator(self._seed, "diversity-permutations"))
            self._drawn = (m, n), torch.cat([first, draws])
        return self._drawn[1]

    def _members(self, n: int) -> Tensor:
        return subsets(len(self._law.units), n, SUBSETS, generator(self._seed, "diversity-subsets", n))

    def _checked(self, x: Tensor, name: str, least: int) -> Tensor:
        x = _rows(x, name, least)
        if tuple(x.shape[1:]) != self._shape:
            text = f"must be rows of shape {self._shape}, as held_out has, not {tuple(x.shape[1:])}"
            raise UserError(text, argument=name)
        return x


def switch_rate(before: Tensor, after: Tensor) -> float:
    """The share of chains whose class or cluster is another one than at the previous look; 0: the chains are stuck."""
    if before.shape != after.shape or not len(before):
        raise UserError(f"must be of one shape, not {tuple(before.shape)} and {tuple(after.shape)}", argument="after")
    return (before != after).double().mean().item()


def halves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the reference, and rows that stand for the law: a split of n at random, of 600 each at most."""
    order = torch.randperm(n, generator=generator(seed, "diversity-split"))
    return order[: n // 2][:MOST], order[n // 2 : n // 2 * 2][:MOST]


def _rows(x: object, name: str, least: int) -> Tensor:
    """Rows as float32 on the CPU, uint8 images in [0, 1]; UserError unless they are finite numbers and enough."""
    try:
        rows = torch.as_tensor(x).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"must be a tensor of rows, not {kind_of(x)}", argument=name) from None
    if rows.ndim < 2 or rows.is_complex() or not rows[0:1].numel():
        raise UserError(f"must be rows (B, *) of numbers, not of shape {tuple(rows.shape)}", argument=name)
    if len(rows) < least:
        raise UserError(f"must hold {least} rows or more, not {len(rows)}", argument=name)
    rows = rows.float() / 255 if rows.dtype == torch.uint8 and rows.ndim == 4 else rows.float()
    if name != "samples" and float(rows.nan_to_num(0.0).abs().amax()) > LARGEST:
        raise UserError(f"must hold values up to {LARGEST:.0e}", argument=name, hint="rescale the columns")
    if not rows.isfinite().all():
        bad = int((~rows.isfinite().flatten(1).all(1)).sum())
        raise UserError(f"must be finite; {bad} of {len(rows)} rows hold NaN or infinity", argument=name)
    return rows


class _Side:
    """One half of the held-out rows as the reference, and the other as the law."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        held_out: Tensor,
        first: Tensor,
        second: Tensor,
        labels: Tensor | None,
        seed: int,
    ):
        self.extractor = extractor
        m = extractor.measure(held_out[first])
        classes = _classifier(extractor.features, m.features, labels, first, seed)
        self.reference = ReferenceRows(m, *classes)
        self.law = self.reference.rows(extractor.measure(held_out[second]))


def _ruler(held_out: Tensor, reference: Tensor, train: Tensor | None, features: object) -> FeatureExtractor:
    """The units and features of these data."""
    units = pixels if held_out.ndim == 4 else StandardisedColumns(reference if train is None else train)
    return FeatureExtractor(units, choose(held_out, units, features), train)


def _labels(labels: Tensor | None, n: int) -> Tensor | None:
    """The labels of the held-out rows, numbered from 0."""
    if labels is None:
        return None
    try:
        given = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"must be a tensor of classes, not {kind_of(labels)}", argument="labels") from None
    if given.shape != (n,):
        raise UserError(
            f"must be of shape {(n,)}, one of each held-out row, not {tuple(given.shape)}", argument="labels"
        )
    return given.unique(return_inverse=True)[1]


def _classifier(
    felt: FeatureFn, features: Tensor, labels: Tensor | None, first: Tensor, seed: int
) -> tuple[Classifier, int]:
    """(features to classes, how many): labels of neighbours, digits read, or clusters."""
    if labels is not None:
        num, own = int(labels.max()) + 1, labels[first]

        def vote(f: Tensor) -> Tensor:
            near = torch.cdist(f, features).topk(min(K, len(features)), largest=False).indices
            return torch.nn.functional.one_hot(own[near], num).sum(1).argmax(1)

        return vote, num
    if isinstance(felt, OfDigits):
        return felt.classes, 10
    num = min(CLUSTERS, len(features) // K, len(features.unique(dim=0)))
    centres = torch.from_numpy(
        KMeans(num, n_init="auto", random_state=seed % 2**32).fit(features.double().numpy()).cluster_centers_
    ).float()
    return lambda f: torch.cdist(f, centres).argmin(1), num
