"""A device on which each value that the host would wait for is an error, and the device under test.

`THALWEG_TEST_DEVICE=cuda` runs these tests on a GPU, where torch itself tells when the host waits. Without it they run
on the meta device: tensors there have no numbers, so whatever reads one fails.
"""

import os
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device(os.environ.get("THALWEG_TEST_DEVICE", "meta"))
COPIES = ("aten::_to_copy", "aten::copy_")
FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)


class Waits(AssertionError):
    """An operator for which the host waits, or whose tensors are on two devices."""


class OneDevice(TorchDispatchMode):
    """All tensors of an operator are on one device. Numbers, 0-d on the CPU, may go along: kernels take them as such.

    A copy from the CPU must be one that the host does not wait for, and there is none to the CPU.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        copies = func.name().rpartition(".")[0] in COPIES or func.name() in COPIES
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and (t.ndim or copies)]
        places = {t.device.type for t in tensors}
        out = func(*args, **kwargs)
        if copies:
            sent = kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)
            places |= {out.device.type}
            if len(places) > 1 and (out.device.type == "cpu" or not sent):
                raise Waits(f"{func}: a copy from {tensors[-1].device.type} to {out.device.type}")
        elif len(places) > 1:
            raise Waits(f"{func}: tensors on {' and '.join(sorted(places))}")
        return out


class NoNumbers(TorchFunctionMode):
    """No tensor on the device is made of numbers of Python, as `torch.tensor` does: that is a copy, hidden inside."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (
            func in FROM_NUMBERS
            and out.device.type != "cpu"
            and not isinstance(args[0 if len(args) == 1 else 1], Tensor)
        ):
            raise Waits(f"{func.__name__} on {out.device}: take torch.full")
        return out


@contextmanager
def no_waiting():
    """In the block the host never waits for the device."""
    with ExitStack() as stack:
        if DEVICE.type == "cuda":
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            stack.callback(torch.cuda.set_sync_debug_mode, before)
        stack.enter_context(NoNumbers())
        stack.enter_context(OneDevice())
        yield


def on_device(module):
    return module.to(DEVICE)
