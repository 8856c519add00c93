"""What a Python caller gives a run as objects, in place of names: the energy, the objective, the sampler, the data.

config.json names their classes and lists them under `given`. A run with such parts is resumed, and its bundle loaded,
with the objects given again.
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn

from thalweg.core.errors import UserError
from thalweg.core.spec_of import spec_of
from thalweg.data.catalog import Dataset
from thalweg.data.transform import Transform
from thalweg.energy.base import HasBaseLaw, HasNoiseLevels, NoiseConditional
from thalweg.energy.building import from_object
from thalweg.energy.noise_conditional.anchored_network import AnchoredNetworkEnergy
from thalweg.energy.noise_conditional.gaussian_prior import GaussianPriorEnergy
from thalweg.energy.with_constant import WithConstantEnergy
from thalweg.objective.base import LearnsConstant, Objective
from thalweg.sampler.base import Sampler

SIGMAS = {"image": (0.03, 5.0), "vector": (0.05, 10.0)}  # of a network U(y, t) that states no noise levels


@dataclass(frozen=True, kw_only=True)
class Given:
    """The parts of a run that are objects; None: the recipe's.

    Args:
        energy: E(x) or U(y, t): a module, or before the data are read a class or `functools.partial` that builds one.
        objective: The loss.
        sampler: What samples are drawn by.
        transform: From data units to model units.
        data: The rows.
        spec: The energy's spec, where it was built from one.
    """

    energy: Any = None
    objective: Objective[Any] | None = None
    sampler: Sampler[Any] | None = None
    transform: Transform | None = None
    data: Dataset | None = None
    spec: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """The parts that are given, as config.json lists them."""
        return [name for name in ("energy", "objective", "sampler", "data") if getattr(self, name) is not None]

    def of_data(self, data: Dataset, seed: int) -> Self:
        """The same with the energy built for these data, with a law to start from where it has noise levels, and
        with a constant where the objective learns one."""
        if self.energy is None:
            return self
        shape = data.energy_shape
        module = built_energy(self.energy, shape, seed).cpu()  # where it is checked; a run moves it to its device
        energy = with_prior(module, data.kind, shape)
        learned = isinstance(self.objective, LearnsConstant) and self.objective.learns_constant
        if learned and not isinstance(energy, WithConstantEnergy | HasNoiseLevels | HasBaseLaw):
            energy = WithConstantEnergy(network=energy, shape=shape)
        built_here = module is not self.energy and energy is module
        return replace(self, energy=energy, spec=spec_of(self.energy) if built_here else None)

    def specs(self) -> dict[str, Any]:
        """The sections of a run that name these parts."""
        found: dict[str, Any] = {}
        if self.energy is not None:
            found["energy"] = self.spec or _energy_spec(self.energy)
        if self.objective is not None:
            found["objective"] = spec_of(self.objective)
        if self.sampler is not None:
            found["sampler"] = spec_of(self.sampler)
        if self.transform is not None:
            found["transform"] = spec_of(self.transform)
        return found


def built_energy(energy: Any, shape: tuple[int, ...], seed: int) -> nn.Module:
    """The module that is given, or that a class or `functools.partial` builds, its first weights drawn by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # constructors draw the first weights from it
        return from_object(energy, shape)


def with_prior(energy: nn.Module, kind: str, shape: tuple[int, ...]) -> nn.Module:
    """The energy as a run takes it: U(y, t) without a law to start from gets a Gaussian one; others stay."""
    if isinstance(energy, NoiseConditional) or not (isinstance(energy, HasNoiseLevels) or takes_noise(energy)):
        return energy
    if kind not in SIGMAS:
        text, hint = f"must be E(x) for {kind} data, and takes noise levels", "give a network of one argument"
        raise UserError(text, argument=f"energy {type(energy).__name__}", hint=hint)
    low, high = SIGMAS[kind]
    return GaussianPriorEnergy(network=energy, shape=shape, sigma_min=low, sigma_max=high)


def takes_noise(energy: nn.Module) -> bool:
    """Whether a module is U(y, t) by the signature of its `forward`: two arguments without a default."""
    kinds = inspect.Parameter
    parameters = inspect.signature(energy.forward).parameters.values()
    positional = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is kinds.empty for p in parameters) == 2


def _energy_spec(energy: nn.Module) -> dict[str, Any]:
    """The type; of a wrapper of ours around a user's network also that network's, and the noise levels."""
    spec = spec_of(energy)
    if isinstance(energy, WithConstantEnergy):
        spec |= {"network": spec_of(energy.inner)}
    if isinstance(energy, AnchoredNetworkEnergy | GaussianPriorEnergy):
        spec |= {"network": spec_of(energy.inner), "sigma_min": energy.sigma_min, "sigma_max": energy.sigma_max}
    return spec
