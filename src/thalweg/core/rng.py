"""Randomness by address: every draw is named by (seed, stream, step, rank), so that no generator state is ever saved.

A generator built at an address gives the same numbers whenever it is built. Resuming a run therefore needs the step
number only, two streams never share numbers, and adding a draw to one stream changes no other.
"""

import hashlib

import torch


def generator(
    seed: int, stream: str, step: int = 0, rank: int = 0, *, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator at the address (seed, stream, step, rank).

    The address is hashed with SHA-256 to a 63-bit seed, so neighbouring addresses give unrelated numbers.
    """
    digest = hashlib.sha256(f"{seed}/{stream}/{step}/{rank}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
