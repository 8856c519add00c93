"""Attention, and which of torch's kernels computes it.

    attention(q, k, v) = softmax(q k' / sqrt(d)) v

A fused kernel never stores the L x L weights, so that its memory grows with the length L and not with L²; it has a
first derivative only (pytorch 116350, 181177). The kernel is chosen by what is differentiated:

| phase | kernel |
|---|---|
| sampling, scoring, contrastive training, finite differences: one derivative | fused wherever torch has one |
| a true double backward, inside `double_backward()` | math: products and a softmax, with all derivatives |

On the CPU the fused kernel is torch's own FlashAttention for it. On a GPU the first that takes the arguments of this
order: cuDNN, FlashAttention, memory-efficient attention, and math last (cuDNN and FlashAttention want half precision,
FlashAttention takes no mask). From Hopper on FlashAttention 3 or 4 is put first where its package is installed and
torch knows how to call it, which is logged once. Kernels that the caller has switched off, by
`torch.nn.attention.sdpa_kernel`, stay off.
"""

import functools
import importlib.util
import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.attention
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.core.device import autocast, in_autocast

logger = logging.getLogger("thalweg")
CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
NAMES = {CUDNN: "cudnn", FLASH: "flash", EFFICIENT: "efficient", MATH: "math"}
SHORT = 256  # keys: where the CPU's kernel in bfloat16 becomes as fast as in float32, its backward included
NEWER_FLASH = {"FA4": "flash_attn.cute", "FA3": "flash_attn_interface"}  # torch's name, and the module that it imports
PREFERRED = {9: ("FA3", "FA4"), 10: ("FA4",)}  # by the major number of the GPU's compute capability; 9 is Hopper


def attention(
    q: Float[Tensor, "b h l d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m e"],
    mask: Bool[Tensor, "#b #h #l m"] | None = None,
) -> Float[Tensor, "b h l e"]:
    """softmax(q k' / sqrt(d)) v, each query over the keys where the mask is true; by the kernel of the phase."""
    if _blocks.count:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if _better_in_float32(q, v):
        with autocast(q.device, False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(v.dtype)
    with _ordered(q.device):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def kernel_of(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> str:
    """The kernel that `attention` takes for these arguments here: "flash", "cudnn", "efficient" or "math"."""
    if in_autocast(q.device) and not _better_in_float32(q, v):
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    with nullcontext() if _blocks.count else _ordered(q.device):
        return NAMES[SDPBackend(torch._fused_sdp_choice(q, k, v, mask))]  # pyright: ignore[reportPrivateUsage]


def double_backward() -> AbstractContextManager[Any]:
    """A block in which attention, of any network, can be differentiated twice: torch's math kernel alone serves it.

    Any true double backward runs inside, its forward included. Blocks may be nested, also by several threads: torch's
    choice of kernels is one for the process, and is restored when the last block ends.
    """
    return _traced_block() if torch.compiler.is_compiling() else _block()


class _Blocks:
    """The blocks of `double_backward` that are open, in all threads, and what restores torch's choice."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.Lock()
        self.restore = ExitStack()


_blocks = _Blocks()


@contextmanager
def _block() -> Iterator[None]:
    with _blocks.lock:
        if _blocks.count == 0:
            _blocks.restore.enter_context(sdpa_kernel(MATH))
        _blocks.count += 1
    try:
        yield
    finally:
        with _blocks.lock:
            _blocks.count -= 1
            if _blocks.count == 0:
                _blocks.restore.close()


@contextmanager
def _traced_block() -> Iterator[None]:
    """The same while torch.compile traces, which takes no locks."""
    _blocks.count += 1
    try:
        with sdpa_kernel(MATH):
            yield
    finally:
        _blocks.count -= 1


class _Again(AbstractContextManager[None]):
    """A block of `double_backward` that can be entered again and again."""

    def __enter__(self) -> None:
        self.block = double_backward()
        self.block.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.block.__exit__(*error)


def of_checkpoint() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """`context_fn` of torch's checkpoints: a block is computed again by the kernels of the first time.

    The backward pass of a loss comes after `double_backward`, and would find other tensors than were kept.
    """
    return nullcontext(), _Again() if _blocks.count else nullcontext()


def _better_in_float32(q: Tensor, v: Tensor) -> bool:
    """Whether the CPU's fused kernel is faster in float32: at short lengths its backward in bfloat16 takes 3 to 9 times
    as long (49 to 128 keys; from 256 on about as long)."""
    low = v.dtype in (torch.bfloat16, torch.float16)
    return q.device.type == "cpu" and low and v.shape[2] < SHORT and torch.is_grad_enabled() and q.requires_grad


def _ordered(device: torch.device) -> AbstractContextManager[Any]:
    """A block in which a GPU's kernels have our order, without those that are switched off."""
    if device.type != "cuda":
        return nullcontext()
    if torch.compiler.is_compiling():  # which cannot read what is switched off
        return sdpa_kernel([CUDNN, FLASH, EFFICIENT, MATH], set_priority=True)
    enabled = {
        CUDNN: torch.backends.cuda.cudnn_sdp_enabled(),
        FLASH: torch.backends.cuda.flash_sdp_enabled(),
        EFFICIENT: torch.backends.cuda.mem_efficient_sdp_enabled(),
        MATH: torch.backends.cuda.math_sdp_enabled(),
    }
    return sdpa_kernel([kernel for kernel in _order(device) if enabled[kernel]], set_priority=True)


@functools.cache
def _order(device: torch.device) -> tuple[SDPBackend, ...]:
    """The kernels of a GPU, best first; activates a newer FlashAttention where there is one, and logs the order."""
    newer = newer_flash(torch.cuda.get_device_capability(device)[0])
    order = (FLASH, CUDNN, EFFICIENT, MATH) if newer else (CUDNN, FLASH, EFFICIENT, MATH)
    names = ", ".join(f"flash ({newer})" if newer and kernel is FLASH else NAMES[kernel] for kernel in order)
    logger.info("attention on %s: the first of %s that takes the call", torch.cuda.get_device_name(device), names)
    return order


def newer_flash(major: int) -> str | None:
    """FA3 or FA4, now active, for a GPU of that compute capability; None where torch or the package lacks it.

    One that is active already stays. Torch 2.6 has no such choice; later ones list the names that they can call.
    """
    names = getattr(torch.nn.attention, "list_flash_attention_impls", list)()
    if not names:
        return None
    if (active := torch.nn.attention.current_flash_attention_impl()) is not None:
        return active
    for name in PREFERRED.get(major, ()):
        if name in names and _installed(NEWER_FLASH[name]):
            try:
                torch.nn.attention.activate_flash_attention_impl(name)
            except (ImportError, RuntimeError, OSError) as error:  # built for another torch or another CUDA
                logger.info("attention: %s is installed, and cannot be used (%s)", name, error)
                continue
            return name
    return None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
