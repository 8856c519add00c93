"""Permutations of many numbers that take no memory: each place is computed when it is asked for."""

import torch
from torch import Generator, Tensor

ROUNDS = 6
MIX = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9)  # odd, of 62 bits: products wrap around in int64


class Permutation:
    """A pseudo-random permutation of 0 … n - 1.

    A Feistel network of 6 rounds on 2 h bits, 4^h >= n (Luby and Rackoff, 1988), applied again while its value is n or
    more (cycle walking; Black and Rogaway, 2002). Its keys are its only memory, where `torch.randperm` takes 8 n bytes.

    Args:
        n: How many numbers.
        generator: Draws the keys.
    """

    def __init__(self, n: int, generator: Generator):
        self.n = n
        self.half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
        self.keys: list[int] = torch.randint(2**62, (ROUNDS,), generator=generator).tolist()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, places: slice | Tensor) -> Tensor:
        """The numbers at these places, int64 (B,)."""
        if isinstance(places, slice):
            places = torch.arange(*places.indices(self.n))
        found = self._encrypted(places)
        while bool((beyond := found >= self.n).any()):
            found[beyond] = self._encrypted(found[beyond])
        return found

    def _encrypted(self, x: Tensor) -> Tensor:
        mask = (1 << self.half) - 1
        left, right = x >> self.half, x & mask
        for key in self.keys:
            mixed = (right ^ key) * MIX[0]
            mixed = (mixed ^ (mixed >> 31)) * MIX[1]
            left, right = right, left ^ ((mixed ^ (mixed >> 29)) & mask)
        return (left << self.half) | right
