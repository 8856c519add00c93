"""Addressed randomness: a generator for each address (seed, stream, step, rank), so that no generator state is saved.

A generator at an address always gives the same numbers. So resuming a run needs the step number only, streams are
independent, and another draw in one stream changes no other stream.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def global_draws(generator: torch.Generator) -> Iterator[None]:
    """A block in which draws from torch's global generators, as of dropout, follow from an addressed generator's seed.

    Afterwards the global generators are as they were.
    """
    seed, device = generator.initial_seed(), generator.device
    devices = [device] if device.type == "cuda" and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


def global_state(device: torch.device) -> list[torch.Tensor]:
    """The states of the global generators from which a module on that device draws. Nothing is waited for."""
    found = [torch.get_rng_state()]
    return [*found, torch.cuda.get_rng_state(device)] if _has_own(device) else found


def set_global_state(state: list[torch.Tensor], device: torch.device) -> None:
    """Set the global generators back to a `global_state` of that device: for draws that must be the same twice."""
    torch.set_rng_state(state[0])
    if _has_own(device):
        torch.cuda.set_rng_state(state[1], device)


def _has_own(device: torch.device) -> bool:
    """Whether the device has a global generator of its own."""
    return device.type == "cuda" and torch.cuda.is_initialized()


class _OfNoNumbers(torch.Generator):
    """A generator for tensors on the meta device, which have a shape and no numbers; torch has none."""

    device = torch.device("meta")  # pyright: ignore[reportAssignmentType]


def generator(
    seed: int, stream: str, step: int = 0, rank: int = 0, *, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator of that device at the address (seed, stream, step, rank).

    The address is hashed with SHA-256 to a 63-bit seed, so neighbouring addresses give unrelated numbers. Generators of
    two kinds of device give other numbers at one address.
    """
    digest = hashlib.sha256(f"{seed}/{stream}/{step}/{rank}".encode()).digest()
    made = _OfNoNumbers() if torch.device(device).type == "meta" else torch.Generator(device=device)
    return made.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
