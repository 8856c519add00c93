"""3 x 3 convolutions of small images as products of their spectra: four times fewer multiplications.

An image of H x W pixels and a rim of zeros is cyclic with periods H + 1 and W + 1, since one zero serves both ends.
With the discrete Fourier transforms X of the image and C of the kernel,

    y(p) = 1 / ((H + 1)(W + 1)) sum_k X(k) C(k) exp(2 pi i k . p),

and a product of two complex numbers a + ib, c + id takes three real ones (Karatsuba; Gauss):

    k1 = c (a + b),  k2 = a (d - c),  k3 = b (c + d),    real part k1 - k3,  imaginary part k1 + k2.

So y = S [ (G w) * (T x) ] with real matrices of about 1.5 (H + 1)(W + 1) rows, T and S in two steps, an axis each.
Images are (H, W, B, C), pixels first: then all of it is matrix products, one for each frequency with B x C numbers.
Measured, 64 images, one thread, forward and back to the input and to the weights, ms: 96 channels of 7 x 7, 6.6 and 3.0
for the transforms, oneDNN in channels_last 20; 48 of 14 x 14, 7.6 and 7.0, oneDNN 21. Discrete Fourier matrices are
unitary but for scale, so rounding does not grow as it does in Winograd's schemes on large tiles.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 64  # pixels a side; beyond, a transform costs more than it saves (docs/experiments/large_images.md)


class Steps(NamedTuple):
    """A linear map from planes (H, W) to products (R,), one axis after the other.

    `first` (n, H) gives the rows with a real spectrum, then two rows (real, imaginary) for each other frequency of the
    first axis; `single` (r, W) takes each of the former, `pair` (m, 2 W) each two of the latter. R = reals r + pairs m.
    """

    first: Tensor
    single: Tensor
    pair: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """The map: (H, W, B, C) to (R, B, C)."""
        height, width, rows, channels = x.shape
        reals, pairs = self._counts()
        inner, outer = rows * channels, self.single.shape[0]
        z = (self.first @ x.reshape(height, -1)).view(-1, width, inner)
        y = z.new_empty(reals * outer + pairs * self.pair.shape[0], inner)
        for i in range(reals):
            torch.mm(self.single, z[i], out=y[i * outer : (i + 1) * outer])
        twos = z[reals:].view(pairs, 2 * width, inner)
        torch.bmm(self.pair.expand(pairs, -1, -1), twos, out=y[reals * outer :].view(pairs, len(self.pair), inner))
        return y.view(-1, rows, channels)

    def transpose(self, y: Tensor) -> Tensor:
        """Its transpose: (R, B, C) to (H, W, B, C)."""
        _, rows, channels = y.shape
        reals, pairs = self._counts()
        inner, (outer, width) = rows * channels, self.single.shape
        y = y.view(-1, inner)
        z = y.new_empty(self.first.shape[0], width, inner)
        for i in range(reals):
            torch.mm(self.single.t(), y[i * outer : (i + 1) * outer], out=z[i])
        twos = y[reals * outer :].view(pairs, len(self.pair), inner)
        torch.bmm(self.pair.t().expand(pairs, -1, -1), twos, out=z[reals:].view(pairs, 2 * width, inner))
        return (self.first.t() @ z.view(len(z), -1)).view(-1, width, rows, channels)

    def _counts(self) -> tuple[int, int]:
        """Rows with a real spectrum, and pairs of rows."""
        reals = 2 - self.first.shape[0] % 2
        return reals, (self.first.shape[0] - reals) // 2


class Plane(NamedTuple):
    """y = S [(G w) * (T x)] for one size of image: T and S' as steps, G (R, 9) for kernels as they lie in memory."""

    into: Steps
    out: Steps
    kernel: Tensor

    def weights(self, w: Tensor) -> Tensor:
        """G w: (O, I, 3, 3) to (R, I, O)."""
        outputs, inputs = w.shape[:2]
        return (self.kernel @ w.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, inputs, outputs)

    def weights_back(self, g: Tensor) -> Tensor:
        """The transpose of `weights`: (R, I, O) to (O, I, 3, 3)."""
        _, inputs, outputs = g.shape
        return (self.kernel.t() @ g.view(len(g), -1)).view(3, 3, inputs, outputs).permute(3, 2, 0, 1)


@functools.lru_cache(maxsize=64)
def plane(height: int, width: int, dtype: torch.dtype) -> Plane:
    """The matrices for images of height x width, computed once, on the CPU."""
    (c1, s1), (c2, s2) = _waves(height), _waves(width)
    (reals1, pairs1), (reals2, pairs2) = _kinds(height + 1), _kinds(width + 1)
    twos = torch.arange(width + 1)
    scale = 1.0 / ((height + 1) * (width + 1))
    rows, forms = _interleave([c1[pairs1], -s1[pairs1]]), [c2[pairs2], -s2[pairs2]]
    pair = _thirds(torch.cat([c2[twos], s2[twos]], 1), torch.cat([-s2[twos], c2[twos]], 1))
    into = Steps(torch.cat([c1[reals1], rows]), torch.cat([c2[reals2], _thirds(*forms)]), pair)
    back = _inverse(torch.cat([c2[twos], s2[twos]], 1), torch.cat([-s2[twos], c2[twos]], 1))
    single = torch.cat([c2[reals2], 2 * _inverse(c2[pairs2], -s2[pairs2])])
    out = Steps(scale * torch.cat([c1[reals1], 2 * rows]), single, back)
    kernel = _kernel(height, width)
    kept = [[m.to(dtype).contiguous() for m in matrices] for matrices in (into, out, [kernel])]
    return Plane(Steps(*kept[0]), Steps(*kept[1]), *kept[2])


def _waves(size: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi k p / n, n = size + 1, frequencies k = 0 … n - 1 by pixels p = 0 … size - 1."""
    n = size + 1
    phase = 2 * math.pi / n * (torch.arange(n)[:, None] * torch.arange(size) % n).double()
    return phase.cos(), phase.sin()


def _kinds(n: int) -> tuple[Tensor, Tensor]:
    """The frequencies of a real signal whose coefficient is real, and one of each two that are conjugates."""
    reals = torch.tensor([0] if n % 2 else [0, n // 2])
    return reals, torch.arange(1, (n + 1) // 2)


def _interleave(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts, 1).flatten(0, 1)


def _thirds(real: Tensor, imaginary: Tensor) -> Tensor:
    """The forms a + b, a, b of each coefficient a + ib."""
    return _interleave([real + imaginary, real, imaginary])


def _inverse(real: Tensor, imaginary: Tensor) -> Tensor:
    """The factors of k1, k2, k3 of each coefficient, from those of its real and its imaginary part."""
    return _interleave([real + imaginary, imaginary, -real])


def _kernel(height: int, width: int) -> Tensor:
    """G: c, d - c, c + d of each coefficient c + id of a kernel about its middle; c alone where it is real."""
    (reals1, pairs1), (reals2, pairs2) = _kinds(height + 1), _kinds(width + 1)
    offset = torch.arange(3).double() - 1

    def phase(k: Tensor, n: int) -> Tensor:
        return 2 * math.pi / n * k.double()[:, None] * offset

    def forms(k: Tensor, frequencies: Tensor, real: bool) -> Tensor:
        angle = phase(k, height + 1)[:, None, :, None] + phase(frequencies, width + 1)[None, :, None, :]
        c, d = (f(angle).reshape(len(k), len(frequencies), 9) for f in (torch.cos, torch.sin))
        return c if real else torch.stack([c, d - c, c + d], 2).flatten(1, 2)

    ends = torch.cat([forms(reals1, reals2, True), forms(reals1, pairs2, False)], 1).flatten(0, 1)
    return torch.cat([ends, forms(pairs1, torch.arange(width + 1), False).flatten(0, 1)])
