"""Addressed randomness: a generator for each address (seed, stream, step, rank), so that no generator state is saved.

A generator at an address always gives the same numbers. So resuming a run needs the step number only, streams are
independent, and another draw in one stream changes no other stream.
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
