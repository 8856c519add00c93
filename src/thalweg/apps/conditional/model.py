"""A trained p(y | x) by the names of its targets: probabilities, the most probable y, draws and log-likelihoods."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from thalweg.bundle.bundle import Bundle
from thalweg.bundle.inputs import as_rows, checked_rows
from thalweg.core.errors import UserError
from thalweg.data.columns.layout import Layout
from thalweg.data.validate import check_input
from thalweg.energy.outcomes import Binary, Classes, Conditional, Outcomes
from thalweg.normaliser.conditional import (
    ConditionalLogProb,
    conditional_log_prob_interval,
    conditional_probs,
    sample_conditional,
)

if TYPE_CHECKING:
    import pandas as pd


class ConditionalModel:
    """p(y | x) of a bundle whose energy is one of y given x, such as of a run by --recipe conditional-labels.

    x is a frame (pandas, polars, Arrow), whose columns are matched by name, or an array (B, C). A frame may hold the
    targets too, which are not looked at. UserError for a bundle of another kind.
    """

    def __init__(self, bundle: Bundle):
        if not isinstance(bundle.model, Conditional):
            hint = "train with --recipe conditional-labels or conditional-continuous"
            raise UserError("must be a law of y given x", argument=str(bundle.path), hint=hint)
        self.bundle, self.model = bundle, bundle.model

    @property
    def outcomes(self) -> Outcomes:
        """What y may be."""
        return self.model.outcomes

    @cached_property
    def targets(self) -> list[str]:
        """The names of the targets; y_1, y_2, … where the rows had none."""
        columns = self.outcomes.columns
        return (self.bundle.layout.names or [f"y_{i + 1}" for i in range(columns)])[-columns:]

    def log_prob(self, rows: Any, *, seed: int = 0, **options: Any) -> Tensor | ConditionalLogProb:
        """log p(y | x) of rows with their targets, (B,) nats, y in data units.

        Exact where y can be counted. Else with an interval; `options` are those of `conditional_log_prob_interval`.
        """
        if self.outcomes.enumerable:
            log_p = self.bundle.log_prob(rows)
            assert isinstance(log_p, Tensor)  # no constant of a conditional law is estimated
            return log_p
        x, y = self.model.split(self.bundle.encode(checked_rows(self.bundle, rows)))
        return conditional_log_prob_interval(self.model, x, y, seed=seed, **options)

    def probabilities(self, x: Any) -> "pd.DataFrame":
        """p(label = 1 | x), one column a label; of a class one column each, named by its number.

        Shares of 200 draws where y cannot be counted. UserError for a continuous y.
        """
        found = conditional_probs(self.model, self._covariates(x))
        names = list(range(self.outcomes.num)) if isinstance(self.outcomes, Classes) else self.targets
        return _frame(found.probs, names, x)

    def most_probable(self, x: Any) -> "pd.DataFrame":
        """The most probable y, all its labels together, whole numbers; UserError for a continuous y."""
        found = conditional_probs(self.model, self._covariates(x))
        return _frame(found.mode.long().reshape(len(found.mode), -1), self.targets, x)

    def sample(self, x: Any, n: int, *, seed: int = 0) -> list["pd.DataFrame"]:
        """n draws of y for each x, a frame each; as `sample_conditional` draws them."""
        draws = sample_conditional(self.model, self._covariates(x), n, seed=seed)
        whole = draws.long() if isinstance(self.outcomes, Classes | Binary) else draws
        return [_frame(y.reshape(len(y), -1), self.targets, x) for y in whole]

    def _covariates(self, x: Any) -> Tensor:
        """x (B, C), checked, on the bundle's device."""
        layout, columns = self.bundle.layout, self.outcomes.columns
        if layout.columns is not None and layout.names is not None:
            known = replace(layout.columns, columns=layout.columns.columns[:-columns])
            layout = Layout(known, ignored=(*layout.ignored, *self.targets))
        rows = check_input(as_rows(layout, x), (self.bundle.shape[0] - columns,), "vector", where="x")
        return rows.to(self.bundle.device, torch.float32)


def _frame(values: Tensor, names: list[Any], x: Any) -> "pd.DataFrame":
    """A frame of (B, K) numbers; it keeps the index of a pandas x."""
    import pandas as pd

    index = x.index if isinstance(x, pd.DataFrame) else None
    return pd.DataFrame(np.asarray(values.cpu()), columns=pd.Index(names), index=index)
