"""The linear layers of `double_backward.passes`: convolutions of images (H, W, B, C) in all four passes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.energy.engine.double_backward.fft import plane

FEW_CHANNELS = 8


class LinearNode(ABC):
    """Abstract: y = out(into(x) W) + bias, W (R, I, O) for `into`'s (R, B, I).

    `parameters` are the module's own, from which W and the bias come; after `backward`, `grads` are the gradients in
    them.
    """

    weight: Tensor

    def __init__(self, m: nn.Conv2d | nn.ConvTranspose2d):
        self.parameters = (m.weight,) if m.bias is None else (m.weight, m.bias)
        self.bias = None if m.bias is None else m.bias.detach()

    @abstractmethod
    def into(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def into_back(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def out(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def out_back(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def weight_back(self, g: Tensor) -> Tensor: ...

    def forward(self, h: Tensor) -> Tensor:
        self.x = self.into(h)
        y = self.out(torch.bmm(self.x, self.weight))
        return y if self.bias is None else y.add_(self.bias)

    def vjp(self, c: Tensor) -> Tensor:
        self.c = self.out_back(c)
        return self.into_back(torch.bmm(self.c, self.weight.mT))

    def jvp(self, v: Tensor) -> Tensor:
        self.v = self.into(v)
        return self.out(torch.bmm(self.v, self.weight))

    def backward(self, m: Tensor) -> Tensor:
        return self.into_back(torch.bmm(self.set_grads(m), self.weight.mT))

    def set_grads(self, m: Tensor) -> Tensor:
        """Set `grads`; m in the space of products, where `backward` goes on."""
        of_bias = () if self.bias is None else (m.sum((0, 1, 2)),)
        m = self.out_back(m)
        of_weight = torch.baddbmm(torch.bmm(self.x.mT, m), self.v.mT, self.c)
        self.grads = (self.weight_back(of_weight), *of_bias)
        return m

    def parts(self) -> Iterator["LinearNode"]:
        """Itself: there are no nodes inside."""
        yield self


def _col2im_3x3(p: Tensor, size: Sequence[int]) -> Tensor:
    height, width, rows = size
    p = p.view(height, width, rows, 3, 3, -1)
    sums = p.new_zeros(height + 2, width + 2, rows, p.shape[-1])
    for i in range(3):
        for j in range(3):
            sums[i : i + height, j : j + width] += p[:, :, :, i, j]
    return sums[1:-1, 1:-1].contiguous()


def _im2col_3x3(h: Tensor) -> Tensor:
    height, width = h.shape[:2]
    p = F.pad(h, (0, 0, 0, 0, 1, 1, 1, 1)).unfold(0, 3, 1).unfold(1, 3, 1)
    return p.permute(0, 1, 2, 4, 5, 3).reshape(1, height * width * h.shape[2], -1)


def _col2im_2x2(p: Tensor, size: Sequence[int]) -> Tensor:
    height, width, rows = size
    p = p.view(height, width, rows, 2, 2, -1).permute(0, 3, 1, 4, 2, 5)
    return p.reshape(2 * height, 2 * width, rows, -1)


def _im2col_2x2(h: Tensor) -> Tensor:
    height, width, rows, channels = h.shape
    h = h.view(height // 2, 2, width // 2, 2, rows, channels).permute(0, 2, 4, 1, 3, 5)
    return h.reshape(1, -1, 4 * channels)


def _flat(y: Tensor) -> Tensor:
    return y.reshape(1, -1, y.shape[-1])


class FFTConv(LinearNode):
    """A 3 x 3 convolution with padding 1, by spectra."""

    def __init__(self, m: nn.Conv2d):
        super().__init__(m)
        self.kernel = m.weight.detach()

    def forward(self, h: Tensor) -> Tensor:
        self.plane = plane(h.shape[0], h.shape[1], h.dtype)
        self.weight = self.plane.weights(self.kernel)
        return super().forward(h)

    def into(self, x: Tensor) -> Tensor:
        return self.plane.into.apply(x)

    def into_back(self, x: Tensor) -> Tensor:
        return self.plane.into.transpose(x)

    def out(self, x: Tensor) -> Tensor:
        return self.plane.out.transpose(x)

    def out_back(self, x: Tensor) -> Tensor:
        return self.plane.out.apply(x)

    def weight_back(self, g: Tensor) -> Tensor:
        return self.plane.weights_back(g)


class Gather(LinearNode):
    """Abstract: a pixel of the output reads a patch of the input, which has `step` times as many pixels a side.

    `im2col` makes patches (1, R, K) of an image; `col2im`, its transpose, adds them to an image, given the output's
    height, width and rows.
    """

    im2col: Callable[[Tensor], Tensor]
    col2im: Callable[[Tensor, Sequence[int]], Tensor]
    step = 1

    def __init__(self, m: nn.Conv2d):
        super().__init__(m)
        self.kernel_size = m.kernel_size
        self.weight = m.weight.detach().permute(2, 3, 1, 0).reshape(1, -1, m.out_channels)

    def weight_back(self, g: Tensor) -> Tensor:
        return g.view(*self.kernel_size, -1, g.shape[-1]).permute(3, 2, 0, 1)

    def into(self, x: Tensor) -> Tensor:
        self.size = (x.shape[0] // self.step, x.shape[1] // self.step, x.shape[2])
        return self.im2col(x)

    def into_back(self, x: Tensor) -> Tensor:
        return self.col2im(x, self.size)

    def out(self, x: Tensor) -> Tensor:
        return x.view(*self.size, -1)

    def out_back(self, x: Tensor) -> Tensor:
        return _flat(x)


class Scatter(LinearNode):
    """Abstract: a pixel of the input writes a patch of the output, the transpose of `Gather`."""

    im2col: Callable[[Tensor], Tensor]
    col2im: Callable[[Tensor, Sequence[int]], Tensor]

    def into(self, x: Tensor) -> Tensor:
        self.size = x.shape[:3]
        return _flat(x)

    def into_back(self, x: Tensor) -> Tensor:
        return x.view(*self.size, -1)

    def out(self, x: Tensor) -> Tensor:
        return self.col2im(x, self.size)

    def out_back(self, x: Tensor) -> Tensor:
        return self.im2col(x)


class Im2colConv(Gather):
    """A 3 x 3 convolution with padding 1 of few channels: a product over their patches."""

    im2col, col2im = staticmethod(_im2col_3x3), staticmethod(_col2im_3x3)


class Col2imConv(Scatter):
    """A 3 x 3 convolution with padding 1 to few channels: what a pixel gives its neighbours, the kernel turned."""

    im2col, col2im = staticmethod(_im2col_3x3), staticmethod(_col2im_3x3)

    def __init__(self, m: nn.Conv2d):
        super().__init__(m)
        self.weight = m.weight.detach().flip(2, 3).permute(1, 2, 3, 0).reshape(1, m.in_channels, -1)

    def weight_back(self, g: Tensor) -> Tensor:
        return g.view(g.shape[1], 3, 3, -1).flip(1, 2).permute(3, 0, 1, 2)


def convolution(m: nn.Conv2d) -> LinearNode:
    """The node for a 3 x 3 convolution: by patches where one side has few channels, else by spectra."""
    if min(m.in_channels, m.out_channels) > FEW_CHANNELS:
        return FFTConv(m)
    return Im2colConv(m) if m.in_channels < m.out_channels else Col2imConv(m)


class Downsample(Gather):
    """A 2 x 2 convolution with stride 2, weight (O, I, 2, 2)."""

    im2col, col2im = staticmethod(_im2col_2x2), staticmethod(_col2im_2x2)
    step = 2


class Upsample(Scatter):
    """A transposed 2 x 2 convolution with stride 2, weight (I, O, 2, 2): the transpose of `Downsample` with it."""

    im2col, col2im = staticmethod(_im2col_2x2), staticmethod(_col2im_2x2)

    def __init__(self, m: nn.ConvTranspose2d):
        super().__init__(m)
        self.weight = m.weight.detach().permute(0, 2, 3, 1).reshape(1, m.in_channels, -1)

    def weight_back(self, g: Tensor) -> Tensor:
        return g.view(g.shape[1], 2, 2, -1).permute(0, 3, 1, 2)
