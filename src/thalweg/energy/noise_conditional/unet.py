"""A U-Net inside an anchored energy: U(y, t) of images, whose gradient is a denoiser and whose value is -log p_t(y).

The network works on 2 x 2-unshuffled pixels, adds its skips instead of concatenating them and has no normalisation
layer: all three save most in the double backward that score matching needs. `thalweg.energy.noise_conditional.anchored`
has the energy.
"""

import itertools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from thalweg.core.device import in_autocast
from thalweg.core.errors import UserError
from thalweg.energy.engine.double_backward.convolutions import Downsample, Upsample, convolution
from thalweg.energy.engine.double_backward.fft import LARGEST
from thalweg.energy.engine.double_backward.passes import Modulate, Node, Residual, Sequential, SiLU, forward_and_vjp
from thalweg.energy.engine.fused import hooked
from thalweg.energy.engine.silu import silu
from thalweg.energy.noise_conditional.anchored import AnchoredEnergy, NetworkInputs
from thalweg.energy.shape import check_rows, check_shape

FLOATS = (torch.float32, torch.float64)
SEVERAL = 4  # images: of fewer, oneDNN's kernels for channels_last are no faster, or slower


class Block(nn.Module):
    """h + conv(silu(modulated(conv(silu(h))))): the noise level scales and shifts the inner channels."""

    def __init__(self, width: int, embed: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.modulate = nn.Linear(embed, 2 * width)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.modulate(level)[:, :, None, None].chunk(2, dim=1)
        return h + self.conv2(silu(torch.addcmul(shift, self.conv1(silu(h)), 1 + scale)))


class UNet(nn.Module):
    """F: (B, K, H, W) and a level's embedding to (B, K', H, W); H and W divide by 2^(len(widths) - 1)."""

    def __init__(self, width_in: int, width_out: int, widths: Sequence[int], num_blocks: Sequence[int], embed: int):
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.stem = nn.Conv2d(width_in, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_stage(w, n, embed) for w, n in zip(widths, num_blocks, strict=True))
        self.pool = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2, bias=False) for a, b in pairs)
        self.lift = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2, bias=False) for a, b in reversed(pairs))
        self.up = nn.ModuleList(_stage(widths[i], num_blocks[i], embed) for i in reversed(range(len(pairs))))
        self.head = nn.Conv2d(widths[0], width_out, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        h = self.stem(h)
        kept: list[Tensor] = []
        for i, blocks in enumerate(self.down):
            if i > 0:
                kept.append(h)
                h = self.pool[i - 1](h)
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, level)
        for lift, blocks in zip(self.lift, self.up, strict=True):
            h = lift(h) + kept.pop()
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, level)
        return self.head(silu(h))


PLAIN = {UNet, Block, nn.ModuleList, nn.Conv2d, nn.ConvTranspose2d, nn.Linear}  # not what parametrisations make of them
THREE = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")  # kernel, stride, padding, dilation, groups, padding's mode
TWO = ((2, 2), (2, 2), (0, 0), (1, 1), 1, "zeros")


def as_built(net: "UNet") -> bool:
    """Whether all modules are of the kinds that `UNet` makes, each in one place, its convolutions of their shapes."""
    modules = [m for _, m in net.named_modules(remove_duplicate=False)]
    if len({id(m) for m in modules if isinstance(m, Block)}) < sum(isinstance(m, Block) for m in modules):
        return False  # a block has one level a call
    halves = {id(m) for m in (*net.pool, *net.lift)}
    return all(type(m) in PLAIN for m in modules) and all(
        (m.kernel_size, m.stride, m.padding, m.dilation, m.groups, m.padding_mode)
        == (TWO if id(m) in halves else THREE)
        for m in modules
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    )


def _faster_in_channels_last(image: Tensor) -> bool:
    """With constant weights: in autocast, and of several images on a CPU. A compiler chooses layouts by itself."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return in_autocast(image.device)
    return in_autocast(image.device) or (image.device.type == "cpu" and len(image) >= SEVERAL)


def _stage(width: int, num_blocks: int, embed: int) -> nn.ModuleList:
    return nn.ModuleList(Block(width, embed) for _ in range(num_blocks))


class UNetEnergy(AnchoredEnergy):
    """U(y, t): noisy images (B, C, H, W), pixels of the clean ones in [0, 1], to energies in nats (B,).

    Images are padded inside to a multiple of 2^len(widths). The anchor keeps D² numbers, D =
    C H W, up to D = 1,536, and some 10^6 above (`energy.density.stationary`).

    Args:
        shape: (C, H, W).
        widths: Channels of each stage.
        num_blocks: Residual blocks of each stage, as many as widths.
        embed: Dimension of the level's embedding.
        sigma_min: Lowest noise deviation, in units of the pixels.
        sigma_max: Highest noise deviation.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        widths: Sequence[int] = (48, 96),
        num_blocks: Sequence[int] = (1, 2),
        embed: int = 64,
        sigma_min: float = 0.02,
        sigma_max: float = 5.0,
    ):
        super().__init__(shape=check_shape(shape, "CHW"), embed=embed, sigma_min=sigma_min, sigma_max=sigma_max)
        if len(widths) != len(num_blocks):
            condition = f"must have one number for each of the {len(widths)} widths"
            raise UserError(condition, argument="num_blocks", value=list(num_blocks))
        self.multiple = 2 ** len(widths)
        self.net = UNet(4 * len(NetworkInputs._fields) * shape[0], 4 * shape[0], widths, num_blocks, embed)

    @classmethod
    def example(cls) -> "UNetEnergy":
        """A small instance for tests and documentation."""
        return cls(shape=(1, 8, 8), widths=(8, 16), num_blocks=(1, 1), embed=16)

    def network(self, points: NetworkInputs, level: Tensor) -> Tensor:
        """F(y~, w, v, t), flat as the input."""
        image = self._image(torch.cat(points, dim=1))
        if not self.net.head.weight.requires_grad and _faster_in_channels_last(image):  # slower where it is trained
            image = image.contiguous(memory_format=torch.channels_last)
        return self._flat(self.net(image, level))

    def features(self, y: Tensor, t: Tensor) -> Tensor:
        """What the network knows after its first stage and first halving, (B, C, H', W'): for readouts beside U."""
        check_rows(y, self.shape)
        terms = self._terms(y, t)
        level = self.embedding(terms.level)
        h = self.net.stem(self._image(torch.cat(terms.points, dim=1)))
        for block in self.net.down[0]:  # pyright: ignore[reportGeneralTypeIssues]
            h = block(h, level)
        return self.net.pool[0](h) if len(self.net.pool) else h

    def has_network_vjp(self, y: Tensor) -> bool:
        """Whether the network is as it was built, and small, and this is the CPU and plain autograd."""
        special = (
            torch.compiler.is_compiling()
            or in_autocast(y.device)
            or torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0
        )
        small = max(self.shape[1:]) <= 2 * LARGEST
        own = type(self).forward is AnchoredEnergy.forward and type(self).network is UNetEnergy.network
        plain = as_built(self.net) and not any("forward" in m.__dict__ or hooked(m) for m in self.modules())
        return y.device.type == "cpu" and y.dtype in FLOATS and small and own and plain and not special

    def network_vjp(
        self, points: NetworkInputs, levels: tuple[Tensor, ...], cotangent: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """By `energy.engine.double_backward.passes`."""
        image = self._image(torch.cat(points, dim=1)).permute(2, 3, 0, 1)
        c = self._image(cotangent).permute(2, 3, 0, 1)
        blocks = [m for m in self.net.modules() if isinstance(m, Block)]
        moved, *inputs = ([block.modulate(level) for block in blocks] for level in levels)
        f, *cotangents = forward_and_vjp(tree(self.net, moved), image, c, once_more=bool(inputs))
        return self._flat(f.permute(2, 3, 0, 1)), (image, *inputs[0]) if inputs else (image,), tuple(cotangents)

    def _image(self, flat: Tensor) -> Tensor:
        """(B, K C H W) to (B, 4 K C, H', W'), padded and unshuffled."""
        image = flat.reshape(len(flat), -1, *self.shape[1:])
        height, width = self.shape[1:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        return F.pixel_unshuffle(F.pad(image, padding) if any(padding) else image, 2)

    def _flat(self, f: Tensor) -> Tensor:
        height, width = self.shape[1:]
        return F.pixel_shuffle(f, 2)[..., :height, :width].flatten(1)


def tree(net: UNet, levels: Sequence[Tensor]) -> Sequential:
    """The network in nodes of `double_backward.passes`; `levels`: of the blocks, in the order of modules."""
    blocks = [m for m in net.modules() if isinstance(m, Block)]
    level_of = {id(block): level for block, level in zip(blocks, levels, strict=True)}

    def stage(modules: nn.Module) -> list[Node]:
        return [
            Residual([SiLU(), convolution(m.conv1), Modulate(level_of[id(m)]), SiLU(), convolution(m.conv2)])
            for m in modules.children()
            if isinstance(m, Block)
        ]

    inner: list[Node] = []
    for i in reversed(range(len(net.down))):
        if i + 1 < len(net.down):
            j = len(net.pool) - 1 - i
            pool, lift = cast(nn.Conv2d, net.pool[i]), cast(nn.ConvTranspose2d, net.lift[j])
            inner = [Residual([Downsample(pool), *inner, Upsample(lift)]), *stage(net.up[j])]
        inner = [*stage(net.down[i]), *inner]
    return Sequential([convolution(net.stem), *inner, SiLU(), convolution(net.head)])
