"""The three scalings of a table (`anomaly.tabular.scalings`) as modules of tensor operations, in float64."""

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.apps.anomaly.graph.lookup import SortedLists, hold
from thalweg.apps.anomaly.tabular.scalings import FAR, HUGE, Arcsinh, NormalScores, Standard

LARGE = 1e8  # from here on arcsinh(x) is log(2 x) in float64


class Powers(nn.Module):
    """x 2^-e within ±HUGE: two factors, as 2^-e itself may be no number of float64."""

    factors: Tensor
    bound: Tensor

    def __init__(self, powers: np.ndarray):
        super().__init__()
        half = powers // 2
        hold(self, factors=np.stack([np.ldexp(1.0, -half), np.ldexp(1.0, half - powers)]), bound=HUGE)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D)."""
        return within(x * self.factors[0] * self.factors[1], self.bound)


class StandardGraph(nn.Module):
    """z = (x - mean) / sd within ±FAR; the mean is subtracted in float64."""

    mean: Tensor
    scale: Tensor
    bound: Tensor

    def __init__(self, scaling: Standard):
        super().__init__()
        hold(self, mean=scaling.mean, scale=scaling.scale, bound=FAR)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D)."""
        return within((x - self.mean) / self.scale, self.bound)


class ArcsinhGraph(nn.Module):
    """The standardised arcsinh of (x - median) / s within ±FAR."""

    middle: Tensor
    scale: Tensor
    mean: Tensor
    sd: Tensor
    bound: Tensor

    def __init__(self, scaling: Arcsinh):
        super().__init__()
        hold(self, middle=scaling.middle, scale=scaling.scale, mean=scaling.mean, sd=scaling.sd, bound=FAR)
        self.arcsinh = Arcsinhs()

    def forward(self, x: Tensor) -> Tensor:
        """(B, D)."""
        raw = self.arcsinh((x - self.middle) / self.scale)
        return within((raw - self.mean) / self.sd, self.bound)


class NormalScoresGraph(nn.Module):
    """The normal score of x's mid-rank, plus the arcsinh of how far x lies outside the stored range."""

    at_value: Tensor
    between: Tensor
    low: Tensor
    high: Tensor
    scale: Tensor
    sd: Tensor

    def __init__(self, scaling: NormalScores):
        super().__init__()
        searches, at, between = zip(*scaling.tables, strict=True)
        self.lists = SortedLists([search.values[:-1] for search in searches])
        hold(self, at_value=np.concatenate(at), between=np.concatenate(between))
        hold(self, low=scaling.low, high=scaling.high, scale=scaling.scale, sd=scaling.sd)
        self.arcsinh = Arcsinhs()

    def forward(self, x: Tensor) -> Tensor:
        """(B, D)."""
        place = self.lists.places(x)  # the last value of each list is infinity
        equal = self.lists.at(self.lists.entries, place) == x
        rank = torch.where(equal, self.lists.at(self.at_value, place), self.lists.at(self.between, place))
        outside = x - torch.minimum(torch.maximum(x, self.low), self.high)
        return rank / self.sd + self.arcsinh(outside / self.scale)


class Arcsinhs(nn.Module):
    """arcsinh(x) by logarithms, as not every runtime has it in float64; within 1e-15 for all finite x."""

    large: Tensor
    log2: Tensor
    one: Tensor

    def __init__(self):
        super().__init__()
        hold(self, large=LARGE, log2=np.log(2.0), one=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of x."""
        size = x.abs()
        small = torch.minimum(size, self.large)
        near = torch.log(small + torch.sqrt(small * small + self.one))
        far = torch.log(torch.maximum(size, self.large)) + self.log2
        return torch.where(x < 0, -self.one, self.one) * torch.where(size < self.large, near, far)


def within(x: Tensor, bound: Tensor) -> Tensor:
    """x within ±bound."""
    return torch.maximum(torch.minimum(x, bound), -bound)


GRAPHS = {"standard": StandardGraph, "arcsinh": ArcsinhGraph, "ranks": NormalScoresGraph}
