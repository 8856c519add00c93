"""The digit network: a small LeNet for 28 x 28 digits whose features and confidences measure samples.

It was trained on the 60,000 official MNIST training images by `scripts/train_digit_network.py`; its weights ship with
the package, the images do not. On the 10,000 official test images it is right on 99.45 %, with a confidence above 0.9
on 98.7 % (`digit_network_facts()`): no sampler needs to score higher. It knows digits only, and it has seen the
embedded 5,000 digits, which belong to the training images: figures for publication take their reference from the
official test part.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import store
from thalweg.core.errors import DamagedFile, UserError

WEIGHTS = Path(__file__).with_name("digit_network.safetensors")
DIGIT_SHAPE = (1, 28, 28)


class DigitNetwork(nn.Module):
    """LeNet-5's layout (LeCun et al. 1998) with ReLU and max-pooling: 120,382 parameters, 84 features, 10 logits."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(800, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        self.head = nn.Linear(84, 10)

    def features(self, x: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b 84"]:
        """The penultimate layer, after its ReLU; x in [0, 1], white ink on black."""
        return self.body(2 * x - 1)

    def forward(self, x: Float[Tensor, "b 1 28 28"]) -> Float[Tensor, "b 10"]:
        """Logits of the ten digits."""
        return self.head(self.features(x))


@torch.no_grad()
def features_and_classes(
    network: DigitNetwork, x: Tensor, *, block: int = 1000
) -> tuple[Float[Tensor, "n 84"], Float[Tensor, "n 10"]]:
    """(features, class probabilities) of x (n, 1, 28, 28), on the network's device, in blocks that bound the memory."""
    x = x.to(network.head.weight.device)
    features = torch.cat([network.features(part) for part in x.float().split(block)])
    return features, network.head(features).softmax(dim=1)


def load_digit_network(path: Path = WEIGHTS) -> DigitNetwork:
    """The trained network, frozen, in eval mode; `DamagedFile` where the weights are missing or altered."""
    network = DigitNetwork().to(torch.float32)
    try:
        network.load_state_dict(store.read_tensors(path))
    except (UserError, RuntimeError) as error:  # the second is torch's word for other tensors than these
        reason = str(error).splitlines()[0]
        what = f"must hold the digit network's weights ({reason})"
        raise DamagedFile(what, argument=str(path), hint="reinstall thalweg") from error
    return network.eval().requires_grad_(False)


@cache
def digit_network_facts(path: Path = WEIGHTS) -> dict[str, float]:
    """What the training script measured on the official test images: accuracy, share confident, and so on."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["thalweg"])


def digit_network_for(real: Tensor, labels: Tensor | None) -> tuple[DigitNetwork | None, dict[str, Any], str]:
    """(network, what it makes of the real data, a sentence about it); None where the data are no digits to it.

    The rule: rows of 28 x 28 pixels, and a confidence above 0.9 on 85 % of them or more.
    """
    if tuple(real.shape[1:]) != DIGIT_SHAPE:
        return None, {}, "The data are not 28 x 28 digits, so the digit network is left out; features are plain values."
    network = load_digit_network()
    p = features_and_classes(network, real)[1]
    facts: dict[str, Any] = {"on_real_confident": (p.amax(1) > 0.9).double().mean().item(), **digit_network_facts()}
    if labels is not None:
        facts["on_real_accuracy"] = (p.argmax(1) == labels).double().mean().item()
    if facts["on_real_confident"] < 0.85:
        note = (
            f"The digit network is sure of {facts['on_real_confident']:.0%} of the real pictures only, so they are not "
            "digits as it knows them; it is left out and features are plain values."
        )
        return None, {}, note
    right = f"{facts['test_accuracy']:.2%}"
    return network, facts, f"Digits are read by a small LeNet that is right on {right} of MNIST's official test images."
