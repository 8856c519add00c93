"""The energy of a re-ranker as a module of tensor operations, for an export."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.bundle.exportable import Arrays, Plan, Program
from thalweg.core.errors import UserError
from thalweg.core.rng import generator

if TYPE_CHECKING:
    from thalweg.apps.rerank.served import ServedReranker

WHY = "the choice among candidates looks at all of them, and candidates are not moved by their energy"


class RerankGraph(nn.Module):
    """Candidates (B, *), or a column (B,) each, to energies (B,), nats, low = good."""

    def __init__(self, energy: nn.Module, named: bool):
        super().__init__()
        self.energy, self.named = energy, named

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """In float32, as the re-ranker computes."""
        x = torch.stack(inputs, dim=1) if self.named else inputs[0]
        return (self.energy(x.to(torch.float32)).to(torch.float32),)


def plan_of(served: "ServedReranker") -> Plan:
    """The energy alone. UserError, before any work, for an energy that is no module."""
    energy = served.reranker.energy
    served.reranker.layout.require_numbers("run", "serve it: a graph does not take categories")
    if not isinstance(energy, nn.Module):
        text = "must have an energy that is a network, fitted by `thalweg rerank fit` or a module"
        raise UserError(text, argument="run", hint="export the bundle itself")
    graph = RerankGraph(energy, served.content == "table").eval()

    @torch.no_grad()
    def reference(rows: Arrays) -> dict[str, np.ndarray]:
        """The energy itself: `served.score` refuses NaN, and puts infinite energies a nat beyond the batch's others."""
        return {"energy": graph(*(torch.from_numpy(rows[spec.name]) for spec in served.inputs))[0].numpy()}

    program = Program(
        name="energy",
        module=graph,
        inputs=served.inputs,
        outputs=served.outputs,
        reference=reference,
        units={"energy": "nats"},
    )
    return Plan([program], {"gradient": WHY, "step": WHY})


def typical_rows(served: "ServedReranker", n: int, seed: int) -> dict[str, np.ndarray]:
    """n candidates: rows of standard normal numbers in the ratio's own units, images of blots in [0, 1]."""
    draws = generator(seed, "export")
    if served.content == "image":
        (channels, *sides), coarse = served.inputs[0].shape[1:], 4
        x = torch.rand(n, channels, coarse, coarse, generator=draws)
        x = (3 * (nn.functional.interpolate(x, size=sides, mode="bilinear") - 0.5)).clamp(0, 1)
        return {"x": x.numpy()}
    size = len(served.inputs) if served.content == "table" else served.inputs[0].shape[1]
    x = torch.randn(n, size, generator=draws)
    stored = dict(served.reranker.energy.named_buffers()) if isinstance(served.reranker.energy, nn.Module) else {}
    if {"mean", "deviation"} <= stored.keys():
        x = stored["mean"].cpu() + stored["deviation"].cpu() * x
    if served.content == "table":
        return {spec.name: x[:, i].double().numpy() for i, spec in enumerate(served.inputs)}
    return {"x": x.numpy()}
