"""Numbers below the smallest normal one as zeros, where many terms are that small: they take twice the time or more."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SUBNORMAL = 1e-40  # in float32


@contextmanager
def subnormals_as_zeros(device: torch.device) -> Iterator[bool]:
    """Whether float32 numbers below 2^-126 are taken as zeros inside, on this thread alone.

    They are not on processors that cannot, and not where torch has several threads, whose others would not know of it.
    """
    if device.type != "cpu" or torch.get_num_threads() > 1:
        yield False
        return
    before = not torch.full((1,), SUBNORMAL).mul_(1.0).any()
    done = torch.set_flush_denormal(True)
    try:
        yield done
    finally:
        torch.set_flush_denormal(before)
