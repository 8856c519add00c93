"""Rows beside a fixed reference: matrices taken once, from which the statistics of any subset cost little."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from thalweg.evaluate.samples import nearest
from thalweg.monitor.features import FeatureFn

K = 5  # a neighbourhood reaches to the fifth neighbour (Naeem et al. 2020)
REPEATS = 0.01  # the share of the reference's nearest-neighbour distances below which two rows are duplicates
SLACK = 1e-6  # of the median distance: what rounding may add
Classifier = Callable[[Tensor], Tensor]  # (n, F) features to (n,) classes


class RowFeatures(NamedTuple):
    """What n rows are by themselves."""

    units: Float[Tensor, "n d"]  # pixels or standardised columns
    features: Float[Tensor, "n f"]
    to_train: Float[Tensor, " n"]  # distance to the nearest training row, in units; empty where there are none


class ComparedRows(NamedTuple):
    """What n rows are beside a reference."""

    units: Float[Tensor, "n d"]
    features: Float[Tensor, "n f"]
    classes: Int[Tensor, " n"]
    near: Float[Tensor, "n r"]  # 1 where the row lies in the neighbourhood of a reference row, in features
    near_units: Float[Tensor, "n r"]  # the same in units
    to_train: Float[Tensor, " n"]  # distance to the nearest training row over the reference's median

    def part(self, index: Tensor) -> "ComparedRows":
        """Some of the rows."""
        return ComparedRows(*(x[index] if len(x) else x for x in self))

    def joined(self, other: "ComparedRows") -> "ComparedRows":
        """These rows and then the others."""
        return ComparedRows(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


class FeatureExtractor:
    """Rows in the form that is compared.

    Args:
        units: (n, *) to (n, D), in which duplicates and training rows are looked for.
        features: (n, *) to (n, F).
        train: Training rows (m, *), or None.
    """

    def __init__(self, units: FeatureFn, features: FeatureFn, train: Tensor | None):
        self.units, self.features = units, features
        self._train = None if train is None else units(train)

    def measure(self, x: Tensor) -> RowFeatures:
        """Rows (n, *) in data units."""
        u = self.units(x)
        f = u if self.features is self.units else self.features(x)
        return RowFeatures(u, f, torch.empty(0) if self._train is None else nearest(u, self._train)[0])


class ReferenceRows:
    """Held-out rows that all others are taken against, and every scale: nothing else sets one.

    Args:
        m: The rows, more than K.
        classifier: Features to classes 0 … num_classes - 1.
        num_classes: How many classes.
    """

    def __init__(self, m: RowFeatures, classifier: Classifier, num_classes: int):
        self._classify, self.num_classes = classifier, num_classes
        self._units, self._features = m.units.double(), m.features.double()
        apart, felt = torch.cdist(self._units, self._units), torch.cdist(self._features, self._features)
        off = ~torch.eye(len(m.units), dtype=torch.bool)
        self._slack = SLACK * max(apart[off].median().item(), 1e-12)
        self.bandwidth = felt[off].median().item() or 1.0
        nearest_other = apart.masked_fill(~off, torch.inf).amin(1)
        self._repeat = nearest_other.quantile(REPEATS).item() + self._slack
        self._radii = felt.kthvalue(K + 1, dim=1).values + SLACK * self.bandwidth
        self._unit_radii = apart.kthvalue(K + 1, dim=1).values + self._slack
        self.shares = self.histogram(classifier(m.features))
        own = m.to_train + self._slack if len(m.to_train) else torch.ones(1)
        self._train_scale, self._copy = own.median().item(), (own / own.median()).quantile(REPEATS).item()

    def histogram(self, classes: Tensor) -> Float[Tensor, " c"]:
        """The share of each class."""
        return torch.bincount(classes, minlength=self.num_classes).float() / len(classes)

    def rows(self, m: RowFeatures) -> ComparedRows:
        """All that the statistics need."""
        near = (torch.cdist(m.features.double(), self._features) <= self._radii).float()
        near_units = (torch.cdist(m.units.double(), self._units) <= self._unit_radii).float()
        to_train = (m.to_train + self._slack) / self._train_scale if len(m.to_train) else m.to_train
        return ComparedRows(m.units, m.features, self._classify(m.features), near, near_units, to_train)

    def copied(self, rows: ComparedRows) -> float:
        """The share of rows nearer to a training row than 99 % of reference rows are; 0 without training rows."""
        return (rows.to_train < self._copy).double().mean().item() if len(rows.to_train) else 0.0

    def kernel(self, rows: ComparedRows) -> Float[Tensor, "n n"]:
        """The radial kernel exp(-|a - b|² / (2 h²)) of features, h the median distance of reference rows."""
        f = rows.features.double()
        return torch.cdist(f, f).div(self.bandwidth).square().mul(-0.5).exp().float()

    def repeats(self, rows: ComparedRows) -> Float[Tensor, "n n"]:
        """1 where two of the rows are nearer than all but 1 % of reference rows are to any other."""
        u = rows.units.double()
        return (torch.cdist(u, u) <= self._repeat).float().fill_diagonal_(0)

    def statistics(self, rows: ComparedRows, members: Float[Tensor, "p n"]) -> dict[str, Float[Tensor, " p"]]:
        """The statistics of subsets of the rows, one a row of zeros and ones.

        The Vendi score is the one of order 2, 1 / mean K² (Pasarkar & Dieng 2023); the distance to training rows is the
        mean of those cut to the reference's median. Both move with a few rows, and cost little. Density is the lower
        one of two, in features and in units: a network sends what it never saw to where data are.
        """
        n = members.sum(1)
        close = members @ self.kernel(rows).square()
        inside = members @ rows.near
        shares = members @ F.one_hot(rows.classes, self.num_classes).float() / n[:, None]
        found = {
            "vendi": n.square() / (close * members).sum(1),
            "coverage": (inside > 0).float().mean(1),
            "histogram": 1 - (shares - self.shares).abs().sum(1) / 2,
            "duplicates": (((members @ self.repeats(rows)) > 0) * members).sum(1) / n,
            "density": torch.minimum(inside.sum(1), members @ rows.near_units.sum(1)) / (n * K),
        }
        if len(rows.to_train):
            found["nearest_train"] = members @ rows.to_train.clamp(max=1) / n
        return found


def vendi(k: Float[Tensor, "n n"]) -> float:
    """Effective number of different rows: exp of the entropy of the eigenvalues of K / n (Friedman & Dieng 2023)."""
    values = torch.linalg.eigvalsh(k.double() / len(k)).clamp(min=0)
    return torch.special.entr(values / values.sum()).sum().exp().item()


def subsets(m: int, n: int, count: int, g: Generator) -> Float[Tensor, "count m"]:
    """`count` random subsets of n of m rows, as rows of zeros and ones."""
    chosen = torch.rand(count, m, generator=g).argsort(1)[:, :n]
    return torch.zeros(count, m).scatter_(1, chosen, 1.0)
