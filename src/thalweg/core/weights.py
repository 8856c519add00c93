"""Checks that a stored config describes a module of the stored tensors, before memory is allocated.

A config from a stranger may ask for any width. So the module is first made on torch's meta device, where tensors have a
shape and no memory, and its parameters and buffers are compared with the header of the file of weights. A constructor
of another package may read values, which the meta device does not have. It is then made on the CPU, under limits.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thalweg.core.errors import DamagedFile

LEAST_BYTES = 64 * 2**20  # that a constructor may allocate at once, however little is stored
CALLS, CALLS_PER_TENSOR = 20_000, 400  # of torch in a constructor: initial values, spectral norms
_SAME_SHAPE = {"normal_", "uniform_", "zero_", "fill_", "copy_", "add_", "sub_", "mul_", "div_", "clamp_", "normalize"}
# Of these, in constructors of ours or of spectral norm, only the shape is made: torch's own versions for the meta
# device import its compiler, which takes seconds.
_SHAPES: dict[Any, Callable[..., Tensor]] = {
    torch.eye: lambda n, m=None, **options: torch.empty(n, n if m is None else m, **options),
    torch.randn: lambda *size, generator=None, **options: torch.empty(*size, **options),
    torch.mv: lambda a, v: a.new_empty(len(a)),
    torch.vdot: lambda u, v: u.new_empty(()),
    Tensor.div: lambda a, b: _scaled(torch.div, a, b),
    Tensor.mul: lambda a, b: _scaled(torch.mul, a, b),
}
# What makes tensors of any size out of numbers.
_NEW = {
    torch.empty,
    torch.zeros,
    torch.ones,
    torch.full,
    torch.rand,
    torch.randn,
    torch.eye,
    torch.arange,
    torch.linspace,
}


class Stored(NamedTuple):
    """A tensor in a file's header: its type in safetensors' terms, such as F32, and its shape."""

    dtype: str
    shape: tuple[int, ...]


class Unfit(DamagedFile):
    """Stored tensors are not those of the module; `argument` names the first that differs, if it is one."""


def require_fit(make: Callable[[], nn.Module], stored: Mapping[str, Stored], *, foreign: bool = False) -> None:
    """`Unfit` unless the module from `make` has the stored tensors, by name and shape, and allocates no large ones.

    `make` is called on the meta device. Its own `UserError` is raised unchanged. `foreign`: whether its constructor may
    read the values of a tensor; where it fails on the meta device it is called on the CPU.
    """
    most = max(LEAST_BYTES, 16 * sum(math.prod(part.shape) for part in stored.values()))
    calls = CALLS + CALLS_PER_TENSOR * len(stored)
    try:
        with _Bounded(most, calls), torch.device("meta"):
            module = make()
    except Unfit:
        raise
    except Exception as error:
        if foreign:
            module = _made_on_cpu(make, _OnCPU(most, calls))
        elif isinstance(error, RuntimeError):  # how torch refuses a size
            raise _unmade(error, "the meta device") from error
        else:
            raise
    _require_same(module, stored)


def _require_same(module: nn.Module, stored: Mapping[str, Stored]) -> None:
    """`Unfit`, which names the first that differs, unless a module has the stored tensors by name and shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name, shape in wanted.items():
        if name not in stored:
            raise Unfit("is not among the stored weights", argument=name)
        if stored[name].shape != shape:
            condition = f"must be {_size(shape)}, as the energy has it; it is stored as {_size(stored[name].shape)}"
            raise Unfit(condition, argument=name)
    unknown = sorted(stored.keys() - wanted.keys())
    if unknown:
        raise Unfit("is stored, but the energy has no such weight", argument=unknown[0])


def _made_on_cpu(make: Callable[[], nn.Module], limits: "_OnCPU") -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]), limits:
            return make()
    except RuntimeError as error:
        raise _unmade(error, "the CPU") from error


def _unmade(error: RuntimeError, device: str) -> Unfit:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return Unfit(f"cannot be made on {device} ({reason})")


class _Bounded(TorchFunctionMode):
    """Refuses a tensor much larger than all stored ones, and a constructor with too many calls of torch.

    Calls that change a tensor's values but not its shape are skipped on the meta device.
    """

    def __init__(self, most: int, calls: int):
        super().__init__()
        self.most, self.calls = most, calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls -= 1
        if self.calls < 0:
            raise Unfit("has more layers than are stored")
        if getattr(func, "__module__", None) == "torch.nn.init" or getattr(func, "__name__", "") in _SAME_SHAPE:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        function: Any = _SHAPES.get(func, func)
        return self.limited(function(*args, **kwargs))

    def limited(self, made: Any) -> Any:
        """The same; `Unfit` for a tensor of the meta device that is too large."""
        if isinstance(made, Tensor) and made.is_meta and made.numel() * made.element_size() > self.most:
            raise Unfit(f"asks for a tensor of {_size(tuple(made.shape))}, larger than all that is stored")
        return made


class _OnCPU(_Bounded):
    """The same limits where values are wanted: a new tensor is first asked of the meta device, for its size."""

    def __init__(self, most: int, calls: int):
        super().__init__(most, calls)
        self.left = 4 * most  # bytes, in all

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls -= 1
        if self.calls < 0:
            raise Unfit("has more layers than are stored")
        if func in _NEW:
            options = {name: kwargs[name] for name in kwargs.keys() - {"generator", "pin_memory", "out"}}
            function: Any = _SHAPES.get(func, func)
            sized = self.limited(function(*args, **{**options, "device": "meta"}))
            self.left -= sized.numel() * sized.element_size()
            if self.left < 0:
                raise Unfit("asks for more memory than all that is stored")
        return func(*args, **kwargs)


def _scaled(function: Callable[..., Tensor], a: Tensor, b: Any) -> Tensor:
    """Only the shape of a product or a quotient where b is a number."""
    number = not isinstance(b, Tensor) or b.ndim == 0
    return a.new_empty(a.shape) if a.is_meta and number else function(a, b)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
