"""How well p(y | x) predicts held-out rows, beside simple models of the same rows: for the end of a run.

Numbers are means of log p(y | x) in nats a row, of all targets together, y in data units.
"""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.data.catalog import Dataset, as_float
from thalweg.data.stored_rows import some_rows
from thalweg.energy.networks.conditional import RegressionEnergy
from thalweg.energy.outcomes import Classes, Conditional, Continuous
from thalweg.normaliser.conditional import MOST_WEIGHED, conditional_log_prob_interval

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

MOST_ROWS, MOST_HELD_OUT = 10_000, 256  # that baselines are fitted to; of a continuous y whose Z(x) is estimated
FOLDS, NUM_STRENGTHS = 3, 10  # of the cross-validation of logistic regressions; from 1e-4 to 1e4
PSEUDO = 0.5  # count added to each value of a label, so that no probability is 0


def held_out_figures(bundle: "Bundle", data: Dataset) -> dict[str, Any]:
    """`log_prob` of the model on held-out rows, with `low` and `high` where it is estimated, and the `baselines`'.

    It is None for long vectors, whose constant is annealed at a second or more a row.
    """
    model = bundle.model
    assert isinstance(model, Conditional)  # asked for by whoever calls
    train, held_out = as_float(some_rows(data.train, MOST_ROWS)), as_float(data.held_out)
    found: dict[str, Any] = {"targets": _target_names(bundle, model), "held_out_rows": len(held_out), "log_prob": None}
    k = train.shape[1] - model.outcomes.columns
    if isinstance(model.outcomes, Continuous):
        found["baselines"] = _gaussians(train, held_out, model.outcomes.num)
        if model.outcomes.num <= MOST_WEIGHED:
            some = bundle.encode(held_out[:MOST_HELD_OUT])
            rows = conditional_log_prob_interval(model, *model.split(some), anneal=False)
            found |= {"estimated_rows": len(some), "log_prob": float(rows.estimate.mean())}
            found |= {"low": float(rows.low.mean()), "high": float(rows.high.mean())}
        return found
    found["baselines"] = label_baselines(train[:, :k], train[:, k:], held_out[:, :k], held_out[:, k:], model.outcomes)
    if model.outcomes.enumerable:
        found["log_prob"] = -float(bundle.energy(held_out).mean())
    return found


def label_baselines(x: Tensor, y: Tensor, x_new: Tensor, y_new: Tensor, outcomes: Any) -> dict[str, float]:
    """Mean log-likelihood of new labels (B, K) under the frequencies, and under a logistic regression a column.

    Its strength of regularisation is chosen by cross-validation. A column whose rarest value has fewer training rows
    than there are folds keeps its frequencies.
    """
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values = outcomes.num if isinstance(outcomes, Classes) else 2
    totals = {"frequencies": 0.0, "logistic_regression": 0.0}
    for column, new in zip(y.long().T.numpy(), y_new.long().T.numpy(), strict=True):
        counts = np.bincount(column, minlength=values)
        own = float(np.log((counts + PSEUDO) / (counts.sum() + PSEUDO * values))[new].mean())
        totals["frequencies"] += own
        if counts.min() < FOLDS:
            totals["logistic_regression"] += own
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its solver and its coming defaults: it is a baseline
            fitted = make_pipeline(
                StandardScaler(),
                LogisticRegressionCV(Cs=NUM_STRENGTHS, cv=FOLDS, scoring="neg_log_loss", max_iter=1000),
            ).fit(x.numpy(), column)
        totals["logistic_regression"] += float(fitted.predict_log_proba(x_new.numpy())[np.arange(len(new)), new].mean())
    return totals


def _gaussians(train: Tensor, held_out: Tensor, num: int) -> dict[str, float]:
    """Mean log-likelihood of y under its Gaussian, and under a linear regression with Gaussian residuals."""
    regression = RegressionEnergy(shape=(train.shape[1],), num_targets=num, width=1, depth=1).double()
    x, y = regression.fit(train.double()).split(held_out.double())
    law = regression.gaussian(x)
    own = train[:, -num:].double()
    marginal = torch.linalg.cholesky(torch.atleast_2d(own.T.cov()))
    return {
        "gaussian": float(_log_normal(y - own.mean(0), marginal).mean()),
        "linear_regression": float(_log_normal(y - law.mean, law.scale).mean()),
    }


def _log_normal(d: Float[Tensor, "b k"], scale: Float[Tensor, "k k"]) -> Float[Tensor, " b"]:
    zeros = torch.zeros(d.shape[1], dtype=d.dtype)
    return torch.distributions.MultivariateNormal(zeros, scale_tril=scale).log_prob(d)


def _target_names(bundle: "Bundle", model: Conditional) -> list[str] | None:
    return None if bundle.layout.names is None else bundle.layout.names[-model.outcomes.columns :]
