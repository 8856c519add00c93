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


class Rows(NamedTuple):
    """What is known of each of n rows by itself."""

    units: Float[Tensor, "n d"]  # pixels or standardised columns, centred
    features: Float[Tensor, "n f"]
    classes: Int[Tensor, " n"]
    near: Float[Tensor, "n r"]  # 1 where the row lies in the neighbourhood of a reference row, in features
    near_units: Float[Tensor, "n r"]  # the same in units
    to_train: Float[Tensor, " n"]  # distance to the nearest training row over the reference's median; empty: no rows

    def part(self, index: Tensor) -> "Rows":
        """Some of the rows."""
        return Rows(*(x[index] if len(x) else x for x in self))

    def joined(self, other: "Rows") -> "Rows":
        """These rows and then the others."""
        return Rows(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


class Reference:
    """The half of the held-out rows that all others are taken against, and every scale: nothing else sets one.

    Args:
        x: The reference rows (r, *), r above K.
        units: (n, *) to (n, D), in which duplicates and training rows are looked for.
        features: (n, *) to (n, F).
        classifier: Features to classes 0 … num_classes - 1.
        num_classes: How many classes.
        train: Training rows (m, *), or None.
    """

    def __init__(
        self,
        x: Tensor,
        units: FeatureFn,
        features: FeatureFn,
        classifier: Classifier,
        num_classes: int,
        train: Tensor | None,
    ):
        self._to_units, self._to_features, self._classify, self.num_classes = units, features, classifier, num_classes
        u, self.features = units(x), features(x).double()
        self._centre = u.mean(0)
        u = (u - self._centre).double()
        apart, felt = torch.cdist(u, u), torch.cdist(self.features, self.features)
        off = ~torch.eye(len(x), dtype=torch.bool)
        self._slack = SLACK * max(apart[off].median().item(), 1e-12)
        self._felt_slack = SLACK * max(felt[off].median().item(), 1e-12)
        self.bandwidth = felt[off].median().item() or 1.0
        nearest_other = apart.masked_fill(~off, torch.inf).amin(1)
        self._repeat = nearest_other.quantile(REPEATS).item() + self._slack
        self._radii = felt.kthvalue(K + 1, dim=1).values + self._felt_slack
        self._units, self._unit_radii = u, apart.kthvalue(K + 1, dim=1).values + self._slack
        self.shares = self.histogram(classifier(self.features.float()))
        self._train = None if train is None else units(train) - self._centre
        own = torch.zeros(1) if self._train is None else nearest(u.float(), self._train)[0] + self._slack
        self._train_scale = own.median().item()
        self._copy = (own / own.median()).quantile(REPEATS).item()

    def histogram(self, classes: Tensor) -> Float[Tensor, " c"]:
        """The share of each class."""
        return torch.bincount(classes, minlength=self.num_classes).float() / len(classes)

    def rows(self, x: Tensor) -> Rows:
        """All that the statistics need of rows in data units."""
        units, f = self._to_units(x) - self._centre, self._to_features(x)
        near = (torch.cdist(f.double(), self.features) <= self._radii).float()
        near_units = (torch.cdist(units.double(), self._units) <= self._unit_radii).float()
        to_train = torch.empty(0)
        if self._train is not None:
            to_train = (nearest(units, self._train)[0] + self._slack) / self._train_scale
        return Rows(units, f, self._classify(f), near, near_units, to_train)

    def copied(self, rows: Rows) -> float:
        """The share of rows nearer to a training row than 99 % of reference rows are; 0 without training rows."""
        return (rows.to_train < self._copy).double().mean().item() if len(rows.to_train) else 0.0

    def kernel(self, rows: Rows) -> Float[Tensor, "n n"]:
        """The radial kernel exp(-|a - b|² / (2 h²)) of features, h the median distance of reference rows."""
        f = rows.features.double()
        return torch.cdist(f, f).div(self.bandwidth).square().mul(-0.5).exp().float()

    def repeats(self, rows: Rows) -> Float[Tensor, "n n"]:
        """1 where two of the rows are nearer than all but 1 % of reference rows are to any other."""
        u = rows.units.double()
        return (torch.cdist(u, u) <= self._repeat).float().fill_diagonal_(0)

    def statistics(self, rows: Rows, members: Float[Tensor, "p n"]) -> dict[str, Float[Tensor, " p"]]:
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
