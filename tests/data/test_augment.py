"""Augmentation alters the share it names, fades, is addressed, and leaves the rest bit for bit."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.augment import ByKind, Flip, Warp
from thalweg.data.image_kind import mirroring


def digits(n=400):
    x = torch.zeros(n, 1, 28, 28)
    x[:, :, 8:20, 12:16] = 1
    return x


@pytest.mark.parametrize(
    ("until", "progress", "share"),
    [(None, 0.0, 0.6), (None, 0.9, 0.6), (0.8, 0.0, 0.6), (0.8, 0.4, 0.3), (0.8, 0.8, 0.0), (0.8, 0.99, 0.0)],
)
def test_the_named_share_is_warped_and_the_rest_keeps_its_bits(until, progress, share):
    x = digits(4000)
    y = Warp(share=0.6, until=until)(x, generator(0, "a"), progress)
    changed = (y != x).flatten(1).any(1).float().mean().item()
    assert changed == pytest.approx(share, abs=5 * (0.25 / 4000) ** 0.5 if share else 0)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1 + 1e-6


def test_nothing_moves_without_stretch_and_shift_and_a_shift_moves_by_its_deviation():
    x = digits()
    assert torch.allclose(Warp(share=1, stretch=0, shift=0)(x, generator(0, "a"), 0.0), x, atol=1e-5)
    y = Warp(share=1, stretch=0, shift=0.1)(x, generator(0, "a"), 0.0)
    rows = torch.arange(28.0)
    centre = (y.sum((1, 3)) * rows).sum(1) / y.sum((1, 2, 3))
    assert centre.std().item() == pytest.approx(0.1 * 14, rel=0.15)  # half the side is one unit


def test_the_generator_decides_alone():
    x = digits(20)
    one, two, other = (Warp()(x, generator(0, "a", step), 0.0) for step in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("change", [{"share": 1.5}, {"until": 0}, {"stretch": -1}, {"shift": float("nan")}])
def test_senseless_values_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        Warp(**change)


def test_vectors_are_refused():
    with pytest.raises(UserError, match="data: must be images"):
        Warp()(torch.zeros(3, 2), generator(0, "a"), 0.0)


def strokes(n=200, seed=0):
    """Bars that lean to the right, on even ground."""
    g = torch.Generator().manual_seed(seed)
    x = torch.zeros(n, 1, 20, 20)
    for image, (row, column) in zip(x, torch.randint(3, 8, (n, 2), generator=g).tolist(), strict=True):
        for k in range(9):
            image[0, row + 8 - k, column + k : column + k + 2] = 1
    return x


def scenes(n=300, seed=0, light=0.0, channels=3):
    """Smooth random fields, brighter to the right by `light`: photographs as far as two moments tell."""
    g = torch.Generator().manual_seed(seed)
    field = F.interpolate(torch.rand(n, channels, 6, 6, generator=g), size=20, mode="bilinear")
    return (0.8 * field + light * torch.linspace(0, 1, 20)).clamp(0, 1)


class TestByKind:
    @pytest.mark.parametrize(
        ("images", "wanted"),
        [
            (strokes(), "strokes"),
            (1 - strokes(20), "strokes"),  # black on white, and few
            (scenes(), "mirrored"),
            (scenes(60, channels=1), "mirrored"),
            (scenes(light=0.2), None),
            (scenes(60, light=0.5, channels=1), None),
            (torch.cat([strokes()] * 3, 1), None),  # of colours, and leaning
            (torch.zeros(30, 3, 8, 8), None),
        ],
    )
    def test_the_choice(self, images, wanted):
        """Rejects the mutants that mirror whatever is no stroke, and that take any grey images for strokes."""
        assert ByKind().choose(images)[0] == wanted

    def test_large_images_are_averaged(self):
        small = scenes(40)
        assert mirroring(small.repeat_interleave(4, 2).repeat_interleave(4, 3)).allowed
        assert ByKind().choose(F.interpolate(scenes(40, light=0.3), size=100))[0] is None

    def test_a_mirrored_image_is_mirrored(self):
        x = scenes(100)
        y = Flip(share=0.5)(x, generator(0, "a"), 0.9)
        flipped = (y == x.flip(3)).flatten(1).all(1)
        assert torch.equal(flipped, (y != x).flatten(1).any(1))
        assert 30 < int(flipped.sum()) < 70

    def test_only_a_run_resolves_it(self):
        with pytest.raises(UserError, match="must be resolved"):
            ByKind()(strokes(2), generator(0, "a"), 0.0)

    @pytest.mark.parametrize(("images", "name"), [(strokes, "Warp"), (scenes, "Flip")])
    def test_a_run_keeps_the_choice_and_says_it(self, images, name, call, tmp_path):
        np.save(tmp_path / "x.npy", (255 * images(60)).to(torch.uint8).numpy())
        tiny = ["energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16", "train.precision=fp32"]
        words = ["train", "x.npy", "--steps", 2, "--no-report", "train.batch_size=8", *tiny]
        code, _, err = call(*words, "-o", "run")
        assert code == 0, err
        line = next(line for line in err if line.startswith("augmentation"))
        assert line.startswith(f"augmentation: {name}, as the images are")
        stored = json.loads((tmp_path / "run" / "config.json").read_text())
        wanted = {"share": 0.5, **({"stretch": 0.04, "shift": 0.03} if name == "Warp" else {})}
        assert stored["run"]["augment"] == {"type": f"thalweg.data.augment:{name}", **wanted}
        assert line[0].upper() + line[1:] in (tmp_path / "run" / "card.md").read_text()
        assert call(*words, "-o", "run", "--resume")[0] == 0
        if name == "Warp":  # the same bits as of a run that names it
            named = 'augment={type: "thalweg.data.augment:Warp", share: 0.5, stretch: 0.04, shift: 0.03}'
            assert call(*words, named, "-o", "named")[0] == 0
            model = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("run", "named")]
            assert model[0] == model[1]
