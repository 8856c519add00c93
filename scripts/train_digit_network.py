"""Train the digit network (`thalweg.evaluate.digit_network`) on MNIST's 60,000 training images and store its weights.

    python scripts/train_digit_network.py --data mnist.npz          # 80 seconds on one thread
    python scripts/train_digit_network.py --data fashion_mnist.npz --out clothes.safetensors  # the same net for clothes

The epoch is chosen on 5,000 images cut from the training part; the 10,000 test images are looked at once,
at the end.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Generator, Tensor

from thalweg.core.rng import generator
from thalweg.evaluate.digit_network import WEIGHTS, DigitNetwork, features_and_classes


def jitter(x: Tensor, g: Generator) -> Tensor:
    """Random rotation (12 degrees), scale (10 %), shear (0.1) and shift (2 pixels), one a picture."""
    angle, scale, shear, dx, dy = (2 * torch.rand(5, len(x), generator=g) - 1).unbind()
    angle, scale, shear = angle * math.radians(12), 1 + 0.1 * scale, 0.1 * shear
    dx, dy = dx * 2 / 14, dy * 2 / 14
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([cos, -sin + shear, dx, sin, cos, dy], dim=1).view(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def accuracy(network: DigitNetwork, x: Tensor, y: Tensor) -> tuple[float, float]:
    """(accuracy, share with confidence above 0.9)."""
    p = features_and_classes(network, x)[1]
    return (p.argmax(1) == y).double().mean().item(), (p.amax(1) > 0.9).double().mean().item()


def train(x: Tensor, y: Tensor, *, epochs: int, seed: int, batch: int = 100) -> DigitNetwork:
    """AdamW, one-cycle learning rate, augmented; the best epoch on the validation part wins."""
    torch.manual_seed(seed)  # the initial weights; every other draw has its own address
    # the names of the streams fix the draws, so with them the weights that ship
    order = torch.randperm(len(x), generator=generator(seed, "judge-split"))
    held, kept = order[:5000], order[5000:]
    network = DigitNetwork()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = epochs * (len(kept) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
    best, weights, start = 0.0, network.state_dict(), time.monotonic()
    for epoch in range(epochs):
        g = generator(seed, "judge-epoch", epoch)
        shuffled = kept[torch.randperm(len(kept), generator=g)]
        for rows in shuffled.split(batch):
            loss = F.cross_entropy(network(jitter(x[rows], g)), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        right, _ = accuracy(network, x[held], y[held])
        print(f"epoch {epoch + 1:2d}  validation {right:.4f}  {time.monotonic() - start:.0f} s", flush=True)
        if right >= best:
            best, weights = right, {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(weights)
    return network


def main() -> None:
    """Parse, train, measure on the test part, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="mnist.npz; default: $THALWEG_DATA/mnist.npz")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    path = args.data or Path(os.environ.get("THALWEG_DATA", ".")) / "mnist.npz"
    with np.load(path, allow_pickle=False) as file:
        x, x_test = (torch.from_numpy(file[k]).float().div(255).unsqueeze(1) for k in ("x_train", "x_test"))
        y, y_test = (torch.from_numpy(file[k]).long() for k in ("y_train", "y_test"))
    network = train(x, y, epochs=args.epochs, seed=args.seed)
    right, confident = accuracy(network.eval(), x_test, y_test)
    facts = {"test_accuracy": right, "test_confident": confident, "seed": args.seed, "epochs": args.epochs}
    save_file(network.state_dict(), args.out, metadata={"thalweg": json.dumps(facts)})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, {facts}")


if __name__ == "__main__":
    main()
