"""A trained energy, its gradient and a step of its sampler as modules of tensor operations, for an export."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from thalweg.bundle import conformal
from thalweg.bundle import constant as constants
from thalweg.bundle.exportable import Arrays, Plan, Program
from thalweg.bundle.servable import NUMPY, Datatype, TensorSpec
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.base import Classifier, HasExactDraws, NoiseConditional
from thalweg.energy.outcomes import Conditional

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.served import ServedBundle

MOVED = 1e-3  # by which the uniform number of a Metropolis test is moved, where rounding may turn the test
OF_ENERGY = 1e-6  # of the energy, by which it is moved beside that: what float32 may put a difference of two off by
LATE = 3  # the step number of a check, so that what a state remembers counts


class EnergyGraph(nn.Module):
    """Rows in data units, (B, *) or a column (B,) each, to the outputs of the servable, in their order."""

    ranked: Tensor

    def __init__(self, bundle: "Bundle", outputs: Sequence[TensorSpec], rate: float | None):
        super().__init__()
        self.bundle, self.model = bundle, bundle.model
        self.names, self.rate = [spec.name for spec in outputs], rate
        held_out = bundle.held_out_energies
        ranked = np.empty(0, np.float32) if held_out is None else conformal.raised(held_out.cpu().numpy())
        self.register_buffer("ranked", torch.from_numpy(ranked))

    def rows(self, inputs: Sequence[Tensor]) -> Tensor:
        """(B, *)."""
        return inputs[0] if self.bundle.layout.names is None else torch.stack(tuple(inputs), dim=1)

    def energy(self, x: Tensor) -> Tensor:
        """E(x), (B,) nats."""
        return self.bundle.lowest(self.bundle.transform.forward(x)) - self.bundle.transform.log_abs_det(x)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(B,) each, and probabilities (B, K)."""
        x = self.rows(inputs)
        u = self.energy(x)
        found = {"energy": u}
        if "log_prob" in self.names:
            found["log_prob"] = self._log_prob(x, u)
        if self.rate is not None:
            at_least = (self.ranked >= u[:, None]).sum(1)  # none where u is no number
            found["p_value"] = ((1 + at_least).double() / (1 + len(self.ranked))).to(torch.float32)
            found["flag"] = found["p_value"] <= self.rate
        if "probabilities" in self.names:
            assert isinstance(self.model, Classifier)
            found["probabilities"] = self.model.logits(self.bundle.transform.forward(x)).softmax(1)
        return tuple(found[name] for name in self.names)

    def _log_prob(self, x: Tensor, u: Tensor) -> Tensor:
        if self.bundle.normalised:
            return -u
        found = constants.log_prob(self.bundle, x, u)
        assert found is not None
        return found.estimate


class GradientGraph(nn.Module):
    """dE/dx of rows in data units, (B, *), nats a unit of x."""

    def __init__(self, energy: EnergyGraph):
        super().__init__()
        self.inner = energy

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """By autograd, which a trace writes out."""
        with torch.enable_grad():
            x = self.inner.rows(inputs).detach().requires_grad_(True)
            (g,) = torch.autograd.grad(self.inner.energy(x).sum(), x)
        return (g,)


class StepGraph(nn.Module):
    """A step of the sampler in model units: the fields of its state, then its noise, to the fields of the next one."""

    def __init__(self, bundle: "Bundle", state: Any):
        super().__init__()
        self.bundle, self.model, self.kind, self.fields = bundle, bundle.model, type(state), len(state)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Deterministic: all randomness is in the noise."""
        state = self.kind(*inputs[: self.fields])
        found, _ = self.bundle.sampler.step(_chain_energy(self.bundle), state, inputs[self.fields :])
        return tuple(found)


def _chain_energy(bundle: "Bundle") -> Any:
    return bundle.model if isinstance(bundle.model, NoiseConditional) else bundle.lowest


def plan_of(served: "ServedBundle") -> Plan:
    """Energy, gradient and step. UserError, before any work, for a model of texts and for p(y | x)."""
    bundle = served.bundle
    if bundle.alphabet is not None:
        text = "must be a model of numbers or images, as a graph has no alphabet for texts"
        raise UserError(text, argument="run", hint="`thalweg score` takes texts")
    bundle.layout.require_numbers("run", "`thalweg serve` and `thalweg score` take categories, which a graph does not")
    if isinstance(bundle.model, Conditional):
        text = "must be a law of whole rows, and this one is p(y | x)"
        raise UserError(text, argument="run", hint="use thalweg.apps.conditional.model:ConditionalModel")
    names = {spec.name for spec in served.outputs} | {"energy_gradient"}
    twice = next((spec.name for spec in served.inputs if spec.name in names), None)
    if twice is not None:
        text = "must not be the name of a column, as an output of the graph has it"
        raise UserError(text, argument=twice, hint="rename the column and train again")
    module = EnergyGraph(bundle, served.outputs, served.flag_rate).eval()
    units = {"energy": "nats", "log_prob": "nats", "p_value": "share of held-out rows"}
    energy = Program(
        name="energy",
        module=module,
        inputs=served.inputs,
        outputs=served.outputs,
        reference=served.score,
        units={**units, **{spec.name: "data units" for spec in served.inputs}},
    )
    kind: Datatype = "FP64" if bundle.dtype == torch.float64 else "FP32"
    gradient = Program(
        name="gradient",
        module=GradientGraph(module).eval(),
        inputs=served.inputs,
        outputs=[TensorSpec("energy_gradient", kind, (-1, *bundle.shape))],
        reference=lambda rows: {"energy_gradient": _gradient(bundle, served.rows(rows))},
        units={"energy_gradient": "nats a data unit", **{spec.name: "data units" for spec in served.inputs}},
    )
    if isinstance(bundle.model, HasExactDraws):
        return Plan([energy, gradient], {"step": "the energy is drawn exactly, without a chain"})
    step = _step(served)
    if step is None:
        name = type(bundle.sampler).__name__
        return Plan([energy, gradient], {"step": f"the state of {name} holds more than tensors"})
    return Plan([energy, gradient, step], {})


def _gradient(bundle: "Bundle", x: Any) -> np.ndarray:
    given = torch.from_numpy(np.array(x)).requires_grad_(True)
    (g,) = torch.autograd.grad(bundle.energy(given).sum(), given)
    return g.numpy()


def _step(served: "ServedBundle") -> Program | None:
    """A step of the sampler; None where its state holds more than tensors, as that of replicas does."""
    bundle = served.bundle
    sampler, energy = bundle.sampler, _chain_energy(bundle)
    x = bundle.encode(torch.from_numpy(np.array(served.rows(typical_rows(served, 2, 0)))))
    state = sampler.init(energy, x)
    if not all(isinstance(part, Tensor) for part in state):
        return None
    noise = sampler.draw(state, torch.Generator().manual_seed(0))
    parts = {**state._asdict(), **{f"noise_{i}" if i else "noise": z for i, z in enumerate(noise)}}
    inputs = [_spec(name, part) for name, part in parts.items()]
    module = StepGraph(bundle, state).eval()

    def of_rows(rows: Arrays, draws: Generator) -> dict[str, np.ndarray]:
        at = sampler.init(energy, bundle.encode(torch.from_numpy(np.array(served.rows(rows)))))
        at = at._replace(i=torch.full_like(at.i, LATE)) if "i" in at._fields else at
        values = (*at, *sampler.draw(at, draws))
        return {spec.name: value.numpy() for spec, value in zip(inputs, values, strict=True)}

    def reference(rows: Arrays) -> dict[str, np.ndarray]:
        given = [torch.from_numpy(np.array(rows[spec.name])) for spec in inputs]
        return {s.name: v.detach().numpy() for s, v in zip(inputs, module(*given), strict=False)}

    def spans(rows: Arrays) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        tests = [spec.name for spec in inputs[len(state) :] if spec.shape == (-1,)]
        room = np.float32(MOVED) + np.float32(OF_ENERGY) * np.abs(rows.get("u", np.float32(0)))
        ends = [reference({**rows, **{n: rows[n] + sign * room for n in tests}}) for sign in (-1, 1)]
        return {
            name: (np.minimum(ends[0][name], ends[1][name]), np.maximum(*(e[name] for e in ends))) for name in ends[0]
        }

    return Program(
        name="step",
        module=module,
        inputs=inputs,
        outputs=[spec._replace(name=f"next_{spec.name}") for spec in inputs[: len(state)]],
        reference=lambda rows: {f"next_{name}": value for name, value in reference(rows).items()},
        of_rows=of_rows,
        units=dict.fromkeys(("x", "next_x"), "model units"),
        spans=lambda rows: {f"next_{name}": ends for name, ends in spans(rows).items()},
    )


def _spec(name: str, x: Tensor) -> TensorSpec:
    kind: Datatype = next(kind for kind, dtype in NUMPY.items() if np.dtype(dtype) == x.numpy().dtype)
    return TensorSpec(name, kind, (-1, *x.shape[1:]) if x.ndim else ())


def typical_rows(served: "ServedBundle", n: int, seed: int) -> dict[str, np.ndarray]:
    """n rows in data units, by the names of the inputs: standard normal in model units, images smoothed to [0, 1]."""
    bundle, draws = served.bundle, generator(seed, "export")
    if bundle.kind == "image":
        coarse = torch.rand(n, bundle.shape[0], 4, 4, generator=draws)
        x = nn.functional.interpolate(coarse, size=bundle.shape[1:], mode="bilinear")
        x = (3 * (x - 0.5) + 0.1 * torch.randn(x.shape, generator=draws)).clamp(0, 1)
    else:
        x = bundle.transform.inverse(torch.randn(n, *bundle.energy_shape, generator=draws))
    if bundle.layout.names is not None:
        texts = bundle.layout.categories
        found = bundle.layout.decode(x)
        return {name: np.array(values, object if name in texts else float) for name, values in found.items()}
    return {"x": x.to(bundle.dtype).numpy()}
