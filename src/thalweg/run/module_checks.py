"""Checks of a network from outside the package, in a dry run on two rows: what a training silently needs of it.

Each fault is one line. The module is left as it was: the checks run on a copy, whose weights are moved a little, since
a layer that begins at zero hides what lies behind it.
"""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.parameter import is_lazy

from thalweg.core.errors import UserError, kind_of
from thalweg.core.rng import generator
from thalweg.energy.noise_conditional.anchored_network import AnchoredNetworkEnergy
from thalweg.energy.noise_conditional.gaussian_prior import GaussianPriorEnergy
from thalweg.energy.with_constant import WithConstantEnergy
from thalweg.objective.base import Batch, Objective
from thalweg.objective.score.derivatives import differentiate, has_second_derivatives, untold

SHIFT = 1e-3  # of the weights of the copy
FAULTS = (Exception,)  # a stranger's forward may raise anything
HINT = 'take thalweg.objective.score.score:SlicedScoreMatching, or another loss whose gradient is "auto"'
AUTO = 'set its gradient to "auto", which takes finite differences here'
OURS = "thalweg."
WRAPPERS = (AnchoredNetworkEnergy, GaussianPriorEnergy, WithConstantEnergy)


def is_foreign(energy: nn.Module) -> bool:
    """Whether it, or a module of it beside torch's, is defined outside this package."""
    ours = type(energy).__module__.startswith(OURS)
    return not ours or any(not type(part).__module__.startswith((OURS, "torch.")) for part in energy.modules())


def check_module(energy: nn.Module, x: Tensor, *, noisy: bool) -> None:
    """UserError, with what is wrong, unless an energy can be trained on rows like x (2, *) in model units.

    It must have parameters, give one floating number a row, treat rows on their own, and depend on the position (and
    the noise variance) and on every parameter that requires a gradient. A gradient that is zero is fine.
    """
    parameters = [name for name, p in energy.named_parameters() if p.requires_grad]
    if not parameters:
        raise _fault(energy, "must have parameters that require a gradient, as there is nothing to train")
    shifted = _shifted(energy)
    x = x.detach().clone().requires_grad_(True)
    t = torch.ones(2, dtype=x.dtype, device=x.device, requires_grad=True)
    inputs = (x, t) if noisy else (x,)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        u = _value(energy, shifted, inputs)
        _check_connected(energy, shifted, u, inputs)
        _check_rows_apart(energy, shifted, u, x)


def check_tensors(energy: nn.Module) -> None:
    """UserError unless a run can train, copy and store all parameters and buffers."""
    tensors = {**dict(energy.named_parameters()), **dict(energy.named_buffers())}
    for name, value in tensors.items():
        if is_lazy(value):
            raise _fault(energy, f"must have all its tensors; {name!r} has no shape yet", "call it once on a batch")
        if isinstance(value, nn.Parameter) and value.is_complex():
            raise _fault(energy, f"must have real parameters; {name!r} is {value.dtype}", "keep two real ones")
        if not isinstance(value, nn.Parameter) and (value.requires_grad or _overlaps(value)):
            what = "requires a gradient" if value.requires_grad else "is expanded"
            raise _fault(energy, f"must have plain buffers; {name!r} {what}", "store its .detach().clone()")
    for name, value in energy.state_dict().items():
        if not isinstance(value, Tensor):
            raise _fault(energy, f"must keep tensors only in its state_dict; {name!r} is {kind_of(value)}")
        if not bool(value.isfinite().all()):
            hint = "register a mask with persistent=False" if name not in dict(energy.named_parameters()) else None
            raise _fault(energy, f"must have finite tensors; {name!r} is not", hint)


def _overlaps(x: Tensor) -> bool:
    """Whether elements share memory, as of an expanded tensor."""
    return any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True))


def check_second_derivatives(energy: nn.Module, objective: Objective[Any], batch: Batch) -> None:
    """UserError unless the objective's loss has a gradient in the parameters; it says what would do without a second.

    Most losses are differentiated by finite differences where there is no second derivative. One that is not either has
    no such form, or was told to take a second derivative.
    """
    draws, shifted = generator(0, "dry-run"), _shifted(energy)
    try:
        with torch.random.fork_rng(devices=[]), untold():
            state = objective.init(shifted, batch.x, draws)
            loss, *_ = objective.loss(shifted, state, batch, objective.draw(state, batch, draws, 0.0))
        differentiate(loss)
    except FAULTS as error:
        x = batch.x
        inputs = (x, torch.ones_like(x[:, :1].flatten(1)[:, 0])) if objective.noisy else (x,)
        if has_second_derivatives(shifted, inputs):
            return  # another fault, which the dry run tells
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        name = type(objective).__name__
        text = f"must have a loss that can be differentiated, and {_name(energy)} has no second derivatives"
        hint = AUTO if _could_take_differences(objective) else HINT
        raise UserError(f"{text} ({reason})", argument=f"objective {name}", hint=hint) from error


def _could_take_differences(objective: object) -> bool:
    """Whether it, or an objective in it, was told to take a second derivative and has a form without."""
    if not dataclasses.is_dataclass(objective) or isinstance(objective, type):
        return False
    if getattr(objective, "gradient", None) == "double_backward":
        try:
            dataclasses.replace(objective, gradient="finite_differences")  # pyright: ignore[reportCallIssue]
        except UserError:  # it has no such form
            return False
        return True
    return any(_could_take_differences(getattr(objective, field.name)) for field in dataclasses.fields(objective))


def _value(energy: nn.Module, shifted: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    size = " x ".join(map(str, inputs[0].shape[1:]))
    try:
        u: Any = shifted(*inputs)
    except UserError as error:
        raise error.within(_name(energy)) from error
    except FAULTS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        text = f"must take rows of {size} ({reason})"
        raise _fault(energy, text, "change its input, or the data") from error
    if not isinstance(u, Tensor):
        raise _fault(energy, f"must give a tensor (B,), not {kind_of(u)}")
    if u.shape != (2,):
        hint = "add .squeeze(1)" if u.shape == (2, 1) else "sum over all but the first axis"
        if len(inputs) == 2 and u.shape == inputs[0].shape:
            hint = "wrap it by thalweg.anchored(network, shape=…), which makes an energy of it"
        raise _fault(energy, f"must give one number a row, (B,): for 2 rows it gives {tuple(u.shape)}", hint)
    if u.dtype not in (torch.float32, torch.float64):
        raise _fault(energy, f"must give floating numbers, not {u.dtype}", "compute the energy in float32")
    if not bool(u.detach().isfinite().all()):
        raise _fault(energy, f"must be finite at rows of the data; it is {u.detach().tolist()}")
    return u


def _check_connected(energy: nn.Module, shifted: nn.Module, u: Tensor, inputs: tuple[Tensor, ...]) -> None:
    if not u.requires_grad:
        raise _fault(energy, "must have a gradient", "compute it by torch, without detach, item, numpy or no_grad")
    named = [(name, p) for name, p in shifted.named_parameters() if p.requires_grad]
    wanted = (*inputs, *(p for _, p in named))
    found = torch.autograd.grad(u.sum(), wanted, allow_unused=True, retain_graph=True)
    names = [*("the position", "the noise variance")[: len(inputs)], *(name for name, _ in named)]
    for name, grad in zip(names, found, strict=True):
        if grad is None and name.startswith("the "):
            raise _fault(energy, f"must depend on {name}; its output is not connected to it")
        if grad is None:
            hint = "use it in forward, or remove it, or set requires_grad to False"
            raise _fault(energy, f"must use the parameter {name!r}; its output is not connected to it", hint)


def _check_rows_apart(energy: nn.Module, shifted: nn.Module, u: Tensor, x: Tensor) -> None:
    (grad,) = torch.autograd.grad(u[0], x, retain_graph=True)
    normed = next(
        (name for name, part in shifted.named_modules() if isinstance(part, _BatchNorm) and part.training), ""
    )
    if not bool(grad[1].any()) and not normed:
        return
    where = f" ({normed} is a batch normalisation in train mode)" if normed else ""
    text = f"must treat each row on its own; the energy of one row depends on another{where}"
    raise _fault(energy, text, "take GroupNorm or LayerNorm, or put that layer in eval mode")


def _shifted(energy: nn.Module) -> nn.Module:
    """A copy with weights moved by a little, so that no layer is exactly zero."""
    try:
        shifted = copy.deepcopy(energy)
    except FAULTS as error:
        text = f"must be a module that can be copied ({(str(error).splitlines() or [''])[0]})"
        raise _fault(energy, text, "keep parameters as nn.Parameter, and nothing of a graph") from error
    if shifted is energy or isinstance(energy, torch.jit.ScriptModule):
        raise _fault(energy, "must be a module whose copy has weights of its own", "give the module before scripting")
    draws = generator(0, "dry-run")
    with torch.no_grad():
        for p in shifted.parameters():
            if p.is_floating_point():
                p.add_(SHIFT * torch.randn(p.shape, generator=draws).to(p))
    return shifted


def _fault(energy: nn.Module, text: str, hint: str | None = None) -> UserError:
    return UserError(text, argument=_name(energy), hint=hint)


def _name(energy: nn.Module) -> str:
    """The energy as a message calls it: by the class of the network that the user gave."""
    inner = energy.inner if isinstance(energy, WRAPPERS) else energy
    return f"energy {type(inner).__name__}"
