"""The device of a computation: named by the user, by THALWEG_DEVICE, or the GPU where there is one.

And what depends on it: how tensors get there, autocast, the optimiser. Where a device lacks one there is a plain form.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from thalweg.core.errors import UserError

VARIABLE = "THALWEG_DEVICE"
FORMS = "auto, cpu, cuda or cuda:N"
CPU = torch.device("cpu")
FUSED = ("cpu", "cuda")  # devices whose AdamW has a fused kernel, of those that `find_device` knows
M = TypeVar("M", bound=nn.Module)


def find_device(name: str | torch.device | None = "auto") -> torch.device:
    """The device of that name; "auto" and None: that in THALWEG_DEVICE, else a GPU where there is one, else the CPU.

    UserError: a name of another form, or a device that this machine does not have.
    """
    asked = "auto" if name is None else str(name)
    argument = "device"
    if asked == "auto":
        asked, argument = os.environ.get(VARIABLE) or "auto", VARIABLE
    if asked == "auto":
        return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UserError(f"must be {FORMS}", argument=argument, value=asked) from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UserError(f"must be {FORMS}", argument=argument, value=asked)
    if device.type == "cuda":
        _require_gpu(device, argument)
    return device


def _require_gpu(device: torch.device, argument: str) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        text = "must be a device of this machine, on which torch finds no GPU"
        raise UserError(text, argument=argument, value=str(device), hint="use cpu, or a build of torch with CUDA")
    if device.index is not None and device.index >= count:
        text = f"must be below cuda:{count}, as torch finds {count} GPU{'s' if count > 1 else ''}"
        raise UserError(text, argument=argument, value=str(device))


def of_process(device: torch.device) -> torch.device:
    """The device of this process: of several that torchrun has started on a machine, each takes the GPU of its number.

    UserError: fewer GPUs than processes, or one GPU named for all of them.
    """
    if device.type != "cuda":
        return device
    number = os.environ.get("LOCAL_RANK", "")
    if device.index is None and number.isdecimal():
        device = torch.device("cuda", int(number))
        _require_gpu(device, "LOCAL_RANK")
    elif device.index is not None and os.environ.get("LOCAL_WORLD_SIZE", "1") not in ("", "1"):
        text = "must be cuda without a number, as there are several processes"
        raise UserError(text, argument="device", value=str(device), hint="each takes the GPU of its own number")
    torch.cuda.set_device(device)
    return device


def place(module: M, device: torch.device) -> M:
    """The module, moved to the device; on a GPU the weights of convolutions are in channels_last, as its kernels."""
    module.to(device)
    if device.type == "cuda":
        for m in module.modules():
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
                m.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - its stub lacks it
    return module


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """The tensor in the memory layout of another of its shape, which fused kernels want."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def send(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. To a GPU it goes through pinned memory, and the host does not wait for it."""
    if x.device == device:
        return x
    pinned = x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x
    return pinned.to(device, non_blocking=True)


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    """bfloat16 autocast on the device, on or off in the block; nothing where the device has no autocast."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled) if available else nullcontext()


def in_autocast(device: torch.device) -> bool:
    """Whether autocast is on for the device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, before its time is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def tf32(allowed: bool | None) -> Iterator[None]:
    """Whether float32 products and convolutions on a GPU may round their input to the 10 bits of TF32.

    None: as torch is set. Torch's own setting is that convolutions may and matrix products may not.
    """
    if allowed is None:
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class MaskableAdamW(torch.optim.AdamW):
    """AdamW, fused where the device has that; `masked_step` is a step that a flag on the device can undo."""

    def __init__(self, parameters: Iterable[nn.Parameter], **options: Any):
        parameters = list(parameters)
        self.has_fused = all(p.device.type in FUSED for p in parameters)
        super().__init__(parameters, fused=True if self.has_fused else None, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The stored state, its moments in the layout of the weights, which a file does not keep."""
        super().load_state_dict(state_dict)
        for p, own in self.state.items():
            own.update({name: laid_out(value, p) for name, value in own.items() if name.startswith("exp_avg")})

    def masked_step(self, bad: Tensor) -> None:
        """The update, or none where `bad` (), 0 or 1 in float32 on the parameters' device, is 1. Nothing is read back.

        By the fused kernel, as gradient scalers do; elsewhere what was changed is put back, but each step counts.
        """
        if self.has_fused:
            self.found_inf = bad
            self.step()
            del self.found_inf
            return
        kept = [(p, p.detach().clone(), self._moments(p)) for group in self.param_groups for p in group["params"]]
        self.step()
        for p, before, moments in kept:
            p.data = torch.where(bad > 0, before, p.data)
            for name, new in self._moments(p).items():
                self.state[p][name] = torch.where(bad > 0, moments.get(name, torch.zeros_like(new)), new)

    def _moments(self, p: Tensor) -> dict[str, Tensor]:
        return {name: v.clone() for name, v in self.state.get(p, {}).items() if name.startswith("exp_avg")}
