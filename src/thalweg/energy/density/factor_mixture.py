"""A mixture of factor analysers with one shared subspace, at every noise level in closed form.

    x = m + W z + sqrt(psi) e,    z ~ sum_k w_k N(mu_k, S_k),    e ~ N(0, I)
    U(y, t) = -log p(x + sqrt(t) n = y)

(Ghahramani & Hinton 1996). W holds the data's principal components. The model is coarse, but it is fitted in seconds,
and its posterior given a part of x, or any linear observation of it, is exact. So samplers of a better energy start
from a draw of it.
"""

import math
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from thalweg.core.errors import UserError
from thalweg.energy.linear_observation import LinearObservation
from thalweg.energy.shape import check_rows

ROWS, NUMBERS = 60_000, 50_000_000  # that are fitted to, at most
DIRECTIONS = 60
EACH, MOST = 150, 400  # rows for a component, and components at most
ROUNDS = 1  # of EM
PRIOR = 5.0  # rows' worth of the common covariance in each component's own
RIDGE = 2e-4  # of the largest variance, added to every variance in the subspace
LEAST = 1e-6  # of the largest variance: the smallest psi
BLOCK_NUMBERS = 1 << 23  # of whitened coordinates that are held at a time, 32 MiB


class MixtureOfFactorAnalyzers(nn.Module):
    """U(y, t), (B, *shape) and (B,) to (B,) nats, normalised. `fit` makes one from rows.

    Args:
        shape: Shape of one position, D numbers in all.
        mean: m (D,).
        basis: W (D, R), orthonormal columns.
        log_weights: log w_k (K,).
        means: mu_k (K, R).
        factors: Cholesky factors of the S_k, (K, R, R).
        psi: The variance of what W leaves out, ().
    """

    mean: Tensor
    basis: Tensor
    log_weights: Tensor
    means: Tensor
    factors: Tensor
    psi: Tensor
    spectra: Tensor  # of the S_k, so that every t is a matter of sums
    axes: Tensor

    def __init__(self, shape: tuple[int, ...], **parts: Tensor):
        super().__init__()
        self.shape = tuple(shape)
        for name in ("mean", "basis", "log_weights", "means", "factors", "psi"):
            if not isinstance(parts.get(name), Tensor):
                raise UserError("must be a tensor", argument=name)
            self.register_buffer(name, parts[name].detach().to(torch.float64))
        k, r, d = len(self.log_weights), self.basis.shape[1], math.prod(self.shape)
        wanted = {"mean": (d,), "basis": (d, r), "means": (k, r), "factors": (k, r, r), "psi": ()}
        for name, size in wanted.items():
            found = tuple(parts[name].shape)
            if found != size:
                condition = f"must have the shape {size}, for {k} components in {r} of {d} directions; it has {found}"
                raise UserError(condition, argument=name)
        spectra, axes = torch.linalg.eigh(self.factors @ self.factors.mT)
        self.register_buffer("spectra", spectra.clamp(min=0), persistent=False)
        self.register_buffer("axes", axes, persistent=False)

    @classmethod
    def example(cls) -> Self:
        """Two components in two of three directions."""
        eye = torch.eye(3)[:, :2]
        means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
        factors = torch.tensor([[[0.5, 0.0], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.6]]])
        weights = torch.tensor([0.4, 0.6]).log()
        return cls(
            (3,),
            mean=torch.tensor([0.0, 1.0, 0.5]),
            basis=eye,
            log_weights=weights,
            means=means,
            factors=factors,
            psi=torch.tensor(0.2),
        )

    @classmethod
    def fit(cls, x: Float[Tensor, "n *d"], *, seed: int = 0, rows_each: int = EACH) -> Self:
        """To rows x, two or more, on the CPU: a component for `rows_each` of them, at most 400, by EM from k-means."""
        from sklearn.decomposition import PCA  # seconds to import, and of no use where a mixture is only read

        rows = evenly_spaced_rows(x).flatten(1).cpu()
        pca = PCA(min(DIRECTIONS, *rows.shape), random_state=seed % 2**32)
        with np.errstate(divide="ignore", invalid="ignore"):  # the explained share of constant rows
            pca.fit(rows[:: max(1, len(rows) // 20_000)].numpy())
        mean, basis = torch.tensor(pca.mean_).to(rows), torch.tensor(pca.components_).T.contiguous().to(rows)
        z = (rows - mean) @ basis
        most = float(z.var(0, correction=0).max()) or 1.0
        left = (rows - mean - z @ basis.T).square().mean(0).double()
        # The variance where there is any: that of always empty pixels says nothing of the others.
        psi = (left.square().sum() / left.sum().clamp(min=1e-300)).clamp(min=LEAST * most)
        log_weights, means, factors = _em(z, min(MOST, max(1, len(z) // rows_each)), RIDGE * most, seed)
        parts = {"log_weights": log_weights, "means": means, "factors": factors}
        return cls(tuple(x.shape[1:]), mean=mean, basis=basis, psi=psi, **parts).to(x.device)

    def forward(self, y: Float[Tensor, "b *d"], t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """U(y, t) in nats. UserError for positions of another shape."""
        check_rows(y, self.shape)
        centred, t = y.flatten(1).double() - self.mean, t.double()
        z, (k, r) = centred @ self.basis, self.means.shape
        rotated = z @ self.axes.permute(1, 0, 2).reshape(r, -1) - (self.means[:, None] @ self.axes).reshape(-1)
        variance = self.spectra + (self.psi + t)[:, None, None]
        log = self.log_weights - 0.5 * (rotated.view(-1, k, r).square() / variance + variance.log()).sum(-1)
        d = centred.shape[1]
        rest = (centred.square().sum(1) - z.square().sum(1)).clamp(min=0) / (self.psi + t)
        rest = rest + (d - r) * (self.psi + t).log() + d * math.log(2 * math.pi)
        return (0.5 * rest - log.logsumexp(1)).to(y.dtype)

    def posterior(
        self, observation: LinearObservation, projections: Float[Tensor, "b m"], *, noise_inflation: float = 1.0
    ) -> "Posterior":
        """The law of z given <v_i, x> = projection_i up to noise_i: a mixture again.

        One Cholesky factor of R x R numbers for each component. `noise_inflation` multiplies psi: the residuals that W
        leaves out are correlated, so many projections tell less than as many independent ones.
        """
        residual = projections.double() - observation.projections_of(self.mean)
        view, noise = (
            observation.projections_of(self.basis.T).T,
            observation.noise.double().square() + noise_inflation * self.psi,
        )
        inverse = torch.cholesky_inverse(self.factors)
        factor = torch.linalg.cholesky(inverse + (view.T / noise) @ view)
        prior = (inverse @ self.means[..., None])[..., 0]
        information = ((residual / noise) @ view)[:, None] + prior
        means = torch.cholesky_solve(information[..., None], factor)[..., 0]
        size = [f.diagonal(dim1=-2, dim2=-1).log().sum(-1) for f in (self.factors, factor)]
        log = self.log_weights - size[0] - size[1] - 0.5 * (self.means * prior).sum(-1)
        return Posterior((log + 0.5 * (information * means).sum(-1)).softmax(1), means, factor)

    def sample_posterior(
        self,
        observation: LinearObservation,
        projections: Float[Tensor, "b m"],
        z: Float[Tensor, "b r"],
        u: Float[Tensor, " b"],
        *,
        noise_inflation: float = 1.0,
    ) -> Float[Tensor, "b d"]:
        """An exact draw of m + W z from `posterior`, made of standard normal z and uniform u."""
        weights, means, factor = self.posterior(observation, projections, noise_inflation=noise_inflation)
        k = (weights.cumsum(1) < u.double()[:, None]).sum(1).clamp(max=len(self.means) - 1)
        move = torch.linalg.solve_triangular(factor[k].mT, z.double()[..., None], upper=True)[..., 0]
        chosen = means[torch.arange(len(k), device=k.device), k]
        return (self.mean + (chosen + move) @ self.basis.T).to(projections.dtype)

    def draw(self, n: int, t: float, generator: Generator) -> Float[Tensor, "n *d"]:
        """n draws of y = x + sqrt(t) n, float64."""
        kind = {"generator": generator, "dtype": torch.float64, "device": self.mean.device}
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        z = self.means[k] + (self.factors[k] @ torch.randn(n, self.means.shape[1], 1, **kind)).squeeze(2)
        noise = (self.psi + t).sqrt() * torch.randn(n, len(self.mean), **kind)
        return (self.mean + z @ self.basis.T + noise).reshape(n, *self.shape)

    def coordinates(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b r"]:
        """W'(x - m)."""
        return (x.flatten(1).double() - self.mean) @ self.basis


class Posterior(NamedTuple):
    """A mixture for each of b rows: sum_k weights_k N(z; means_k, (L_k L_k')^-1), L_k = `precision_factors`[k]."""

    weights: Float[Tensor, "b k"]
    means: Float[Tensor, "b k r"]
    precision_factors: Float[Tensor, "k r r"]

    @property
    def mean(self) -> Float[Tensor, "b r"]:
        """E[z | observation]."""
        return (self.weights[..., None] * self.means).sum(1)


def most_rows(shape: tuple[int, ...]) -> int:
    """The number of rows (N, *shape) that `fit` uses, at most."""
    return max(2, min(shape[0], ROWS, NUMBERS // max(1, math.prod(shape[1:]))))


def evenly_spaced_rows(x: Float[Tensor, "n *d"]) -> Float[Tensor, "m *d"]:
    """At most the number of rows that `fit` uses, spaced evenly through x."""
    most = most_rows(x.shape)
    return x if most >= len(x) else x[torch.linspace(0, len(x) - 1, most).long()]


def _em(z: Float[Tensor, "n r"], count: int, ridge: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(log weights, means, Cholesky factors of the covariances) of a mixture of `count` Gaussians.

    A component's covariance is drawn to the mean of all by `PRIOR` rows (a conjugate prior; Fraley & Raftery 2007),
    since some hold few rows more than they have directions.
    """
    labels = np.zeros(len(z), dtype=np.int64)
    if count > 1:
        from sklearn.cluster import MiniBatchKMeans

        labels = MiniBatchKMeans(count, random_state=seed % 2**32, batch_size=4096).fit(z.numpy()).labels_
    share = z.new_zeros(len(z), count).scatter_(1, torch.from_numpy(np.asarray(labels)).long()[:, None], 1)
    found = _of_shares(z, share, ridge)
    for _ in range(ROUNDS if count > 1 else 0):
        log_terms = _LogTerms(*found)
        block = max(1, BLOCK_NUMBERS // (count * z.shape[1]))
        for part, row in zip(share.split(block), z.split(block), strict=True):
            part.copy_(log_terms(row).softmax(1))
        found = _of_shares(z, share, ridge)
    return found


def _of_shares(z: Tensor, share: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    size = share.sum(0) + 1e-6
    means = share.T @ z / size[:, None]
    sums = []
    for k, mean in enumerate(means):
        rows = (share[:, k] > 1e-3).nonzero().squeeze(1)
        off = z[rows] - mean
        sums.append((off * share[rows, k, None]).T @ off)
    sums = torch.stack(sums).double()
    common, size = sums.sum(0) / size.sum(), size.double()
    covariances = (sums + PRIOR * common) / (size + PRIOR)[:, None, None] + ridge * torch.eye(z.shape[1]).to(common)
    return ((size + 1) / (size + 1).sum()).log().to(z), means, torch.linalg.cholesky(covariances).to(z)


class _LogTerms:
    """log w_k N(z; mu_k, S_k) up to a constant, (n, r) to (n, k)."""

    def __init__(self, log_weights: Tensor, means: Tensor, factors: Tensor):
        inverse = torch.linalg.inv(factors.double()).to(means)
        self.size = means.shape
        self.whiten = inverse.permute(2, 0, 1).reshape(means.shape[1], -1)
        self.centres = (inverse @ means[..., None]).reshape(-1)
        self.log = log_weights - factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def __call__(self, z: Tensor) -> Float[Tensor, "n k"]:
        white = (z @ self.whiten).sub_(self.centres)
        return self.log - 0.5 * white.square_().view(len(z), *self.size).sum(-1)
