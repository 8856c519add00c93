"""The device of a computation: named by the user, by THALWEG_DEVICE, or the GPU where there is one."""

import os

import torch

from thalweg.core.errors import UserError

VARIABLE = "THALWEG_DEVICE"
FORMS = "auto, cpu, cuda or cuda:N"


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
