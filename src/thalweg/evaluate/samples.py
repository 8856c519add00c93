"""Sample quality: how far samples are from unseen data, in features and in classes, and whether they are copies.

A figure is read beside those of `baselines`: unseen data, copies of the training set, a Gaussian with the data's mean
and covariance. Distances are computed in blocks, which bounds the memory.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.energy.density.stationary import StationaryGaussian, anchor_of
from thalweg.evaluate.digit_network import DigitNetwork, features_and_classes

Features = Float[Tensor, "n f"]


def distances(a: Tensor, b: Tensor, *, block: int = 512) -> Iterator[Tensor]:
    """Euclidean distances of flattened rows, blocks of (<= block, len(b)): O(block len(b)) memory."""
    b = b.flatten(1).float()
    for rows in a.flatten(1).float().split(block):
        yield torch.cdist(rows, b)


def nearest(a: Tensor, b: Tensor) -> tuple[Float[Tensor, " n"], Tensor]:
    """(distance, index) of each row's nearest row in b, in the units of the data (pixels in [0, 1])."""
    found = [d.min(dim=1) for d in distances(a, b)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def radii(a: Features, k: int = 5) -> Float[Tensor, " n"]:
    """Distance of each row to its k-th nearest neighbour in the same set, itself not counted."""
    if len(a) <= k:
        raise ValueError(f"{len(a)} rows have no {k}-th neighbour: want more than k={k} rows, or a smaller k")
    return torch.cat([d.kthvalue(k + 1, dim=1).values for d in distances(a, a)])


def _root(c: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix, negative rounding errors cut to zero."""
    values, vectors = torch.linalg.eigh(c)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet(a: Features, b: Features) -> float:
    """Fréchet distance of two Gaussian fits: |mu_a - mu_b|² + tr(A + B - 2 (A^½ B A^½)^½).

    In squared units of the features; float64; the trace comes from eigenvalues of a symmetric matrix, so it
    is real and stable where the covariances are singular. Biased upwards in small sets: compare sets of one
    size only. (Dowson & Landau 1982; Heusel et al. 2017.)
    """
    a, b = a.double(), b.double()
    cov_a, cov_b, root = torch.cov(a.T), torch.cov(b.T), _root(torch.cov(a.T))
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, (gap + cov_a.trace() + cov_b.trace() - 2 * cross).item())


def neighbourhoods(samples: Features, reference: Features, *, k: int = 5) -> dict[str, float]:
    """Density, coverage, precision and recall from balls that reach to the k-th neighbour.

    density = mean count of reference balls holding a sample, over k; coverage = share of reference balls that hold a
    sample (Naeem et al. 2020). precision = share of samples inside a reference ball; recall = share of reference rows
    inside a ball of the samples (Kynkäänniemi et al. 2019). All near 1 for equal laws, save density, which is 1 on
    average and unbounded above. Coverage grows with the number of samples.
    """
    r_reference, r_samples = radii(reference, k), radii(samples, k)
    inside, covered, recalled = [], [], []
    for d, r in zip(distances(reference, samples), r_reference.split(512), strict=True):
        hit = d <= r.unsqueeze(1)
        inside.append(hit.sum(0))
        covered.append(hit.any(1))
        recalled.append((d <= r_samples).any(1))
    count = torch.stack(inside).sum(0).double()
    return {
        "density": (count.mean() / k).item(),
        "coverage": torch.cat(covered).double().mean().item(),
        "precision": (count > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
    }


def class_entropy(classes: Tensor, num_classes: int = 10) -> float:
    """Entropy of the histogram of classes, -sum p log p, in nats: log(num_classes) = 2.303 when all are
    equally frequent.
    """
    p = torch.bincount(classes, minlength=num_classes).double() / len(classes)
    return torch.special.entr(p).sum().item()


def memorisation(samples: Tensor, reference: Tensor, train: Tensor) -> dict[str, float]:
    """Are samples nearer to the training set than unseen data are? In pixel space.

    nearest_ratio = median over samples of (distance to the nearest training row) / (median of the same over
    the reference): about 1 or more is healthy, 0 is copying. share_near = share of samples nearer than the
    reference's 1st percentile: unseen data score 0.01 by construction.
    """
    own, unseen = nearest(samples, train)[0], nearest(reference, train)[0]
    scale = unseen.median().clamp(min=1e-12)
    return {
        "nearest_ratio": (own / scale).median().item(),
        "share_near": (own < unseen.quantile(0.01)).double().mean().item(),
    }


def plain_features(x: Tensor, train: Tensor) -> Features:
    """Features that need no network: images averaged down to 8 x 8 a channel, columns in training deviations."""
    if x.ndim == 4:
        return F.adaptive_avg_pool2d(x.float(), 8).flatten(1)
    return (x.float() - train.float().mean(0)) / train.float().std(0).clamp(min=1e-12)


def quality(
    samples: Tensor, reference: Tensor, train: Tensor, network: DigitNetwork | None, *, k: int = 5
) -> dict[str, float]:
    """Every sample figure at once; without a network in plain features, and without the figures that need classes.

    samples and reference should have one size (Fréchet's bias and coverage depend on it); train may be any size.
    """
    if not samples.isfinite().all():
        raise ValueError("samples hold values that are not finite: no figure of quality can be taken of them")
    figures: dict[str, float] = {}
    if network is None:
        own, real = plain_features(samples, train), plain_features(reference, train)
    else:
        (own, p), (real, _) = (
            features_and_classes(network, samples.clamp(0, 1)),
            features_and_classes(network, reference),
        )
        top = p.max(dim=1)
        figures["confident"] = (top.values > 0.9).double().mean().item()
        figures["mean_confidence"] = top.values.double().mean().item()
        figures["class_entropy"] = class_entropy(top.indices, p.shape[1])
    figures["frechet"] = frechet(own, real)
    return figures | neighbourhoods(own, real, k=k) | memorisation(samples, reference, train)


def gaussian_noise(train: Tensor, n: int, *, seed: int = 0) -> Tensor:
    """n draws of the Gaussian with the training data's mean and covariance; images are clamped to [0, 1].

    Of images of more than 1,536 numbers the covariance is `StationaryGaussian`'s.
    """
    if isinstance(found := anchor_of(tuple(train.shape[1:])), StationaryGaussian):
        x = found.fit(train.flatten(1)).draw(n, 0.0, generator(seed, "gaussian-noise"))
        return x.view(n, *train.shape[1:]).clamp(0, 1)
    flat = train.flatten(1).double()
    z = torch.randn(n, flat.shape[1], generator=generator(seed, "gaussian-noise"), dtype=torch.float64).to(flat)
    x = (flat.mean(0) + z @ _root(torch.cov(flat.T))).float().view(n, *train.shape[1:])
    return x.clamp(0, 1) if train.ndim == 4 else x


def baselines(unseen: Tensor, train: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """The sets to print beside the samples, each as large as `unseen` (or as the training set allows).

    real: unseen data that are not the reference; copies: rows of the training set; gaussian: `gaussian_noise`.
    """
    rows = torch.randperm(len(train), generator=generator(seed, "copies"))[: len(unseen)]
    return {"real": unseen, "copies": train[rows], "gaussian": gaussian_noise(train, len(unseen), seed=seed)}
