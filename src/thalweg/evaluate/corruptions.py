"""Corruptions: inputs that are surely not data, for asking whether an energy notices.

Each takes a batch and a seed and gives a batch of the same shape in the same range; the draws are addressed by (seed,
name), so a corruption is the same whenever it is made. Images are (n, C, H, W) in [0, 1]; tables are (n, d).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from thalweg.core.rng import generator

Images = Float[Tensor, "n c h w"]
Corruption = Callable[[Tensor, int], Tensor]


def uniform_noise(x: Tensor, seed: int = 0) -> Tensor:
    """Independent uniform pixels in [0, 1]; for tables, uniform over each column's range."""
    u = torch.rand(x.shape, generator=generator(seed, "uniform-noise"), dtype=torch.float32).to(x.device)
    if x.ndim == 4:
        return u
    low, high = x.amin(0), x.amax(0)
    return low + (high - low) * u


def constants(x: Images, seed: int = 0) -> Images:
    """Flat pictures, grey levels spread evenly over [0, 1], in a shuffled order."""
    order = torch.randperm(len(x), generator=generator(seed, "constants"))
    greys = torch.linspace(0, 1, len(x), dtype=torch.float32)[order].to(x.device)
    return greys.view(-1, 1, 1, 1).expand(x.shape).contiguous()


def blurred(x: Images, seed: int = 0, *, width: float = 2.0) -> Images:
    """`gaussian_blur`; the seed has no part in it."""
    return gaussian_blur(x, width)


def gaussian_blur(x: Images, width: float) -> Images:
    """Each pixel replaced by a Gaussian average of its surroundings, of standard deviation `width` pixels.

    The kernel is cut at three widths and the border is reflected, so a constant image stays what it is.
    """
    reach = min(int(3 * width + 0.5), min(x.shape[-2:]) - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0, dtype=x.dtype, device=x.device) / width) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    across = F.conv2d(padded, kernel, groups=x.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), groups=x.shape[1])


def shuffled_patches(x: Images, seed: int = 0, *, patch: int = 7) -> Images:
    """Patches of 7 x 7 pixels in a random order, another for each picture (8 x 8 or 4 x 4 where 7 does not divide)."""
    n, _, h, w = x.shape
    p = next((p for p in (patch, 8, 4, 2, 1) if h % p == 0 and w % p == 0), 1)
    pieces = F.unfold(x, p, stride=p)  # (n, c p p, patches)
    lots = torch.rand(n, pieces.shape[2], generator=generator(seed, "shuffled-patches"), dtype=torch.float32)
    order = lots.argsort(1).to(x.device)
    pieces = pieces.gather(2, order.unsqueeze(1).expand_as(pieces))
    return F.fold(pieces, (h, w), p, stride=p)


def inverted(x: Images, seed: int = 0) -> Images:
    """1 - x: black ink on white; the seed has no part in it."""
    return 1 - x


def permuted_pixels(x: Images, seed: int = 0) -> Images:
    """All pixels in one random order, the same for every picture: each pixel's law is kept, its neighbours are not."""
    h, w = x.shape[-2:]
    order = torch.randperm(h * w, generator=generator(seed, "permuted-pixels"))
    return x.flatten(2)[..., order].view(x.shape)


def shuffled_columns(x: Float[Tensor, "n d"], seed: int = 0) -> Float[Tensor, "n d"]:
    """Each column in its own random order of rows: the marginals are kept, every dependence is gone."""
    order = torch.rand(x.shape, generator=generator(seed, "shuffled-columns"), dtype=torch.float32).argsort(0)
    return x.gather(0, order.to(x.device))


IMAGE_CORRUPTIONS: dict[str, Corruption] = {
    "uniform noise": uniform_noise,
    "constants": constants,
    "blurred": blurred,
    "shuffled patches": shuffled_patches,
    "inverted": inverted,
    "permuted pixels": permuted_pixels,
}
TABLE_CORRUPTIONS: dict[str, Corruption] = {"uniform noise": uniform_noise, "shuffled columns": shuffled_columns}


def corrupted(x: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """Every corruption that fits x: six of images (n, C, H, W), two of tables (n, d)."""
    if x.ndim not in (2, 4):
        raise ValueError(f"x has shape {tuple(x.shape)}: corruptions want images (n, C, H, W) or a table (n, d)")
    table = IMAGE_CORRUPTIONS if x.ndim == 4 else TABLE_CORRUPTIONS
    return {name: corrupt(x, seed) for name, corrupt in table.items()}
