"""A mixture of Gaussians in the data's principal components, at every noise level in closed form.

    x = m + W z + sqrt(psi) e,    z ~ sum_k w_k N(mu_k, S_k),    e ~ N(0, I)
    U(y, t) = -log p(x + sqrt(t) n = y)

(a mixture of factor analysers with one shared subspace: Ghahramani & Hinton 1996). It is coarse, but it is fitted in
seconds, and what it says of all of x given a part of x, or any linear view of it, is exact: a first guess for samplers
of a better energy.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from thalweg.energy.seen import Directions

ROWS, NUMBERS = 20_000, 50_000_000  # that are fitted to, at most
DIRECTIONS = 60
COUNTS = (1, 10, 30, 100)  # of components
EACH = 100  # rows for a component, at least
HELD_OUT = 10  # one row in so many, to choose the count by
ROUNDS = 12  # of EM: likelihoods on held-out digits change little beyond
RIDGE = 1e-3  # of the largest variance, added to every variance in the subspace
LEAST = 1e-6  # of the largest variance: the smallest psi


class PrincipalMixture(nn.Module):
    """U(y, t), (B, *shape) and (B,) to (B,) nats, normalised: `basis` (D, R) orthonormal, `means` (K, R), Cholesky
    `factors` (K, R, R) of the S_k, `log_weights` (K,), `mean` (D,), `psi` () the variance of what W leaves out.
    """

    noisy = True
    mean: Tensor
    basis: Tensor
    log_weights: Tensor
    means: Tensor
    factors: Tensor
    psi: Tensor

    def __init__(self, shape: tuple[int, ...], **parts: Tensor):
        super().__init__()
        self.shape = tuple(shape)
        for name in ("mean", "basis", "log_weights", "means", "factors", "psi"):
            self.register_buffer(name, parts[name].detach().to(torch.float64))
        k, r, d = len(self.log_weights), self.basis.shape[1], math.prod(self.shape)
        wanted = {"mean": (d,), "basis": (d, r), "means": (k, r), "factors": (k, r, r), "psi": ()}
        for name, size in wanted.items():
            found = tuple(getattr(self, name).shape)
            if found != size:
                raise ValueError(f"{name} has shape {found}: want {size}, for {k} components in {r} of {d} directions")

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
    def fit(cls, x: Float[Tensor, "n *d"], *, seed: int = 0) -> Self:
        """To rows x, two or more; 1, 10, 30 or 100 components, by the likelihood of a tenth of the rows held out."""
        rows = evenly(x).flatten(1).double()
        pca = PCA(min(DIRECTIONS, *rows.shape), random_state=seed % 2**32).fit(rows.numpy())
        mean, basis = torch.from_numpy(pca.mean_), torch.from_numpy(np.array(pca.components_).T.copy())
        z = (rows - mean) @ basis
        most = float(z.var(0, correction=0).max()) or 1.0
        left = (rows - mean - z @ basis.T).square().mean(0)
        psi = (left.square().sum() / left.sum().clamp(min=1e-300)).clamp(min=LEAST * most)
        held = torch.arange(len(z)) % HELD_OUT == HELD_OUT - 1
        counts = [k for k in COUNTS if k == 1 or k * EACH <= len(z)]
        found = [_mixture(z[~held], k, RIDGE * most, seed) for k in counts]
        best = max(found, key=lambda g: g.score(z[held].numpy())) if len(found) > 1 else found[0]
        return cls(
            tuple(x.shape[1:]),
            mean=mean,
            basis=basis,
            log_weights=torch.from_numpy(best.weights_).clamp(min=1e-300).log(),
            means=torch.from_numpy(best.means_),
            factors=torch.linalg.cholesky(torch.from_numpy(best.covariances_)),
            psi=psi,
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], shape: tuple[int, ...]) -> Self:
        """The one whose `state_dict` this is. ValueError, KeyError where it is of another form."""
        return cls(shape, **state)

    def forward(self, y: Float[Tensor, "b *d"], t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """U(y, t) in nats."""
        off, r = y.flatten(1).double() - self.mean, self.basis.shape[1]
        z, t = off @ self.basis, t.double()
        extra = (self.psi + t)[:, None, None, None] * torch.eye(r).to(z)
        factor = torch.linalg.cholesky(self.factors @ self.factors.mT + extra)
        white = torch.linalg.solve_triangular(factor, (z[:, None] - self.means)[..., None], upper=False)[..., 0]
        log = self.log_weights - 0.5 * white.square().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        d = off.shape[1]
        rest = (off.square().sum(1) - z.square().sum(1)).clamp(min=0) / (self.psi + t)
        rest = rest + (d - r) * (self.psi + t).log() + d * math.log(2 * math.pi)
        return (0.5 * rest - log.logsumexp(1)).to(y.dtype)

    def draw(
        self, seen: Directions, read: Float[Tensor, "b m"], z: Float[Tensor, "b r"], u: Float[Tensor, " b"]
    ) -> Float[Tensor, "b d"]:
        """m + W z | what was seen: <v_i, x> = read_i up to noise_i. From standard normal z and uniform u, exactly.

        The posterior of (k, z) is a mixture again: one Cholesky factor of R x R numbers for each component.
        """
        v, off = seen.basis.double(), read.double() - self.mean @ seen.basis.double()
        view, noise = v.T @ self.basis, seen.noise.double().square() + self.psi
        inverse = torch.cholesky_inverse(self.factors)
        factor = torch.linalg.cholesky(inverse + (view.T / noise) @ view)
        pull = (inverse @ self.means[..., None])[..., 0]
        toward = ((off / noise) @ view)[:, None] + pull
        middle = torch.cholesky_solve(toward[..., None], factor)[..., 0]
        size = [f.diagonal(dim1=-2, dim2=-1).log().sum(-1) for f in (self.factors, factor)]
        log = self.log_weights - size[0] - size[1] - 0.5 * (self.means * pull).sum(-1)
        share = (log + 0.5 * (toward * middle).sum(-1)).softmax(1)
        k = (share.cumsum(1) < u.double()[:, None]).sum(1).clamp(max=len(self.means) - 1)
        move = torch.linalg.solve_triangular(factor[k].mT, z.double()[..., None], upper=True)[..., 0]
        return (self.mean + (middle[torch.arange(len(k)), k] + move) @ self.basis.T).to(read.dtype)


def evenly(x: Float[Tensor, "n *d"]) -> Float[Tensor, "m *d"]:
    """As many rows as are fitted to, from all of x."""
    most = max(2, min(len(x), ROWS, NUMBERS // max(1, x[0].numel())))
    return x if most >= len(x) else x[torch.linspace(0, len(x) - 1, most).long()]


def _mixture(z: Tensor, count: int, ridge: float, seed: int) -> GaussianMixture:
    model = GaussianMixture(
        count, reg_covar=ridge, max_iter=ROUNDS, tol=1e-2, random_state=seed % 2**32, init_params="k-means++"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(z.numpy())
