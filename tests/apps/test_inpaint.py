"""In-painting: what was seen comes back, what is missing is drawn by seed and image; bad input is told in a line."""

import copy
import json
import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import thalweg
from thalweg.apps.inpaint.inpaint import _of_chain, inpaint, restore
from thalweg.apps.inpaint.masks import observed
from thalweg.apps.inpaint.operators import Blur, Downsample, Pixels, matrix
from thalweg.apps.inpaint.posterior import Schedule
from thalweg.apps.inpaint.ranking import smoothed_score
from thalweg.cli import main as cli
from thalweg.core import store
from thalweg.core.errors import DamagedFile, DiskFull, UserError
from thalweg.data.validate import as_float
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.linear_observation import LinearObservation
from thalweg.sampler.langevin import MALA, ULA
from thalweg.sampler.schedule import Linear

QUICK = Schedule(num_steps=4, resampling=1, chain_steps=5)
LATE = Linear(first=2.0, last=0.5, num_steps=5)  # a temperature that falls until the last step of QUICK
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def contrastive(train_bundle, tmp_path_factory):
    overrides = ["energy.channels=[8,8]", "energy.hidden=8", "train.batch_size=8", "objective.num_steps=2"]
    overrides += ["objective.buffer_size=32"]
    return train_bundle(tmp_path_factory.mktemp("pcd") / "run", "digits", "pcd", 4, overrides)


def half(x):
    return observed("right-half", SHAPE, len(x))


@pytest.mark.parametrize("which", ["digits", "contrastive"])
def test_observed_pixels_come_back_and_the_missing_differ(which, pixels, request):
    bundle = request.getfixturevalue(which)
    found = inpaint(bundle, pixels, half(pixels), n=3, schedule=QUICK)
    assert found.images.shape == (3, 5, *SHAPE)
    known = half(pixels).expand_as(found.images)
    assert torch.equal(found.images[known], pixels.expand_as(found.images)[known])  # to the last bit
    assert bool((found.images >= 0).all())
    assert bool((found.images <= 1).all())
    assert bool((found.uncertainty[half(pixels)] == 0).all())
    assert bool((found.uncertainty[~half(pixels)] > 0).any())
    assert bool((found.pairwise_distance > 0).all())
    pairs = (found.images[:, None] - found.images).square().flatten(3).sum(-1)
    assert torch.allclose(found.pairwise_distance, pairs.sum((0, 1)) / 6, rtol=1e-3)
    assert torch.equal(found.ranking, found.ranking.sort(dim=0).values)
    assert torch.allclose(found.energies, bundle.energy(found.images.flatten(0, 1)).reshape(3, 5), rtol=1e-3)


def test_completions_start_from_the_mixture_and_are_better_for_it(digits, pixels):
    """Right halves of 60 held-out digits by a network of a few steps: nearer to the truth than from one Gaussian."""
    from thalweg.bundle.dataset import data_of

    x = as_float(data_of(digits).held_out[:60])
    known = half(x)
    off = []
    for guess in (digits.mixture_prior, None):
        bundle = copy.copy(digits)
        bundle.mixture_prior = guess
        off.append(float((inpaint(bundle, x, known, n=4).images.mean(0) - x).square().sum()))
    assert off[0] < 0.9 * off[1]


def test_the_first_completion_is_nearest_to_the_truth(digits):
    """Over 60 held-out digits, by squared error: the first beats a random one; the mutant that takes the last does not.

    By energy, the order is that of `smoothed_score`.
    """
    from thalweg.bundle.dataset import data_of

    x = as_float(data_of(digits).held_out[:60])
    found = inpaint(digits, x, half(x), n=6, schedule=QUICK)
    off = (found.images - x).square().flatten(2).sum(2).mean(1)
    assert float(off[0]) < 0.9 * float(off.mean()) < float(off[-1])
    by_energy = inpaint(digits, x[:4], half(x[:4]), n=6, schedule=QUICK, rank_by="energy")
    torch.testing.assert_close(
        by_energy.ranking, smoothed_score(digits, by_energy.images.flatten(0, 1)).reshape(6, 4), rtol=1e-4, atol=1e-2
    )
    with pytest.raises(UserError, match="must be one of expected_error, energy"):
        inpaint(digits, x[:1], half(x[:1]), rank_by="worth")


def test_a_bundle_without_its_mixture_still_completes(digits, pixels, tmp_path):
    bundle = copy.copy(digits)
    bundle.mixture_prior = None
    bundle.save_pretrained(tmp_path / "old")
    again = thalweg.load(tmp_path / "old")
    assert again.mixture_prior is None
    assert not (tmp_path / "old" / "prior.safetensors").exists()
    assert inpaint(again, pixels[:1], half(pixels[:1])).images.shape == (1, 1, *SHAPE)


def test_a_mixture_of_other_data_is_refused(digits, tmp_path):
    other = copy.copy(digits)
    other.mixture_prior = MixtureOfFactorAnalyzers.example()
    other.save_pretrained(tmp_path / "odd")
    with pytest.raises(DamagedFile, match=r"prior.safetensors: must hold a mixture of these data"):
        thalweg.load(tmp_path / "odd")


def test_the_bundle_delegates(digits, pixels):
    images = digits.inpaint(pixels[:2], half(pixels[:2]), n=2, seed=4)
    assert torch.equal(images, inpaint(digits, pixels[:2], half(pixels[:2]), n=2, seed=4).images)


@pytest.mark.parametrize("which", ["digits", "contrastive"])
def test_the_seed_decides_and_no_image_sees_the_others(which, pixels, request):
    bundle = request.getfixturevalue(which)
    found = inpaint(bundle, pixels, half(pixels), n=2, seed=3, schedule=QUICK).images
    assert torch.equal(found, inpaint(bundle, pixels, half(pixels), n=2, seed=3, schedule=QUICK).images)
    assert not torch.equal(found, inpaint(bundle, pixels, half(pixels), n=2, seed=4, schedule=QUICK).images)
    alone = inpaint(bundle, pixels[:2], half(pixels[:2]), n=2, seed=3, schedule=QUICK).images
    assert torch.allclose(found[:, :2], alone, atol=1e-3)


def test_each_image_may_have_a_mask_of_its_own(digits, pixels):
    known = observed("random:0.5", SHAPE, 5, seed=1)
    assert len(torch.unique(known.flatten(1), dim=0)) == 5
    assert known.flatten(1).sum(1).tolist() == [32] * 5
    known[1], known[2] = True, False
    found = inpaint(digits, pixels, known, n=2, schedule=QUICK).images
    assert torch.equal(found[:, 1], pixels[1].expand(2, *SHAPE))  # nothing missing: as it is
    samples = digits.sample(2)  # nothing observed: a sample
    assert torch.allclose(found[:, 2].sort(dim=0).values, samples.sort(dim=0).values)
    alone = inpaint(digits, pixels[:1], known[:1], n=2, schedule=QUICK).images
    assert torch.allclose(found[:, :1], alone, atol=1e-3)


def test_missing_values_are_not_looked_at(digits, pixels):
    known = half(pixels)
    torn = torch.where(known, pixels, torch.nan)
    assert torch.equal(
        inpaint(digits, torn, known, schedule=QUICK).images, inpaint(digits, pixels, known, schedule=QUICK).images
    )
    torn[3, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"observed: must be finite in float32; 1 of 5 rows are not.* row 3"):
        inpaint(digits, torn, known)


def test_rows_of_numbers_are_completed_too(chains, plane):
    x = torch.tensor([[0.5, torch.nan], [-0.3, torch.nan]])
    for bundle in (chains, plane):
        found = inpaint(bundle, x, torch.tensor([True, False]), n=4, schedule=QUICK).images
        assert torch.equal(found[..., 0], x[:, 0].expand(4, 2))
        assert bool(found.isfinite().all())


def test_a_chain_of_schedules_completes_as_one_of_their_values(chains):
    """With T falling to that of the constant, and a step that stays, the noise on what was seen is the constant's."""
    x, bundle, ends = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)), copy.copy(chains), []
    flat = Linear(first=0.02, last=0.02, num_steps=3)
    for h, t in ((0.02, 0.5), (flat, 0.5), (0.02, Linear(first=0.5, last=0.5, num_steps=3)), (0.02, LATE), (0.05, 0.5)):
        bundle.sampler = ULA(step_size=h, temperature=t)
        ends.append(inpaint(bundle, x, torch.tensor([True, False]), n=2, noise=0.1, schedule=QUICK).images)
    assert torch.allclose(ends[0], ends[1], rtol=1e-6)
    assert torch.allclose(ends[0], ends[2], rtol=1e-6)
    assert all(bool(end.isfinite().all()) and not torch.allclose(ends[0], end) for end in ends[3:])


def test_a_completion_ends_at_the_last_temperature_and_follows_the_longest_step():
    rise = Linear(first=0.01, last=0.03, num_steps=3)
    assert _of_chain(ULA(step_size=rise, temperature=LATE), 5) == (0.5, 0.03)
    assert _of_chain(ULA(step_size=LATE, temperature=rise), 5) == (0.03, 2.0)
    assert _of_chain(MALA(step_size=0.1), 0) == (1.0, 0.1)


def test_noisy_observations_are_repaired_too(digits, pixels):
    found = inpaint(digits, pixels, half(pixels), noise=0.3, schedule=QUICK).images[0]
    off = (found - pixels)[half(pixels)]
    assert float(off.std()) > 0.05


@pytest.mark.parametrize("which", ["digits", "contrastive"])
@pytest.mark.parametrize("operator", [Blur(width=1.0), Downsample(factor=2)], ids=["blur", "downsample"])
def test_an_exact_linear_observation_holds(which, operator, pixels, request):
    """Before the cut to [0, 1] A x is what was seen, so smooth grey images, where nothing is cut, keep it."""
    bundle = request.getfixturevalue(which)
    seen = operator(0.4 + 0.2 * pixels)
    found = restore(bundle, seen, operator, n=2, schedule=QUICK).images
    inside = ((found > 0) & (found < 1)).flatten(2).float().mean()
    error = (operator(found[0]) - seen).abs().mean()
    assert float(error) < 0.05 + 0.2 * float(1 - inside)


def test_directions_say_what_the_operator_says(pixels):
    for operator in (Blur(width=0.8), Downsample(factor=4), Pixels(half(pixels)[0])):
        a = matrix(operator, SHAPE)
        assert torch.allclose(operator(pixels), pixels.flatten(1) @ a.T, atol=1e-5)
        d = LinearObservation.from_matrix(a, 0.1)
        basis = d.spread(torch.eye(len(d.noise)))
        assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-4)
        assert torch.allclose(d.project(operator(pixels)), d.projections_of(pixels.flatten(1)), atol=2e-2)
    with pytest.raises(UserError, match="must be a linear map"):
        matrix(lambda x: x.flatten(1).square(), SHAPE)


def test_constant_images_survive_a_blur():
    assert torch.allclose(Blur(width=2.0)(torch.full((1, *SHAPE), 0.7)), torch.tensor(0.7))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda b, x: inpaint(b, x, torch.ones(4, 4, dtype=torch.bool)),
            r"observed: must broadcast to x, .*\(4, 4\)",
        ),
        (lambda b, x: inpaint(b, x, torch.ones(8, 8)), "observed: must be bool"),
        (lambda b, x: inpaint(b, x.tolist(), half(x)), "x: must be a tensor or an array, not a list"),
        (lambda b, x: inpaint(b, x, half(x), n=0), "n=0: must be a whole number of 1"),
        (lambda b, x: inpaint(b, x, half(x), seed=-1), "seed=-1"),
        (lambda b, x: inpaint(b, x, half(x), noise=-0.1), "noise=-0.1"),
        (lambda b, x: inpaint(b, x[..., :5], half(x)[..., :5]), "must have the shape"),
        (lambda b, x: inpaint(b, 3 * x, half(x)), "must be uint8 in 0"),
        (lambda b, x: restore(b, x.flatten(1)[:, :9], Downsample(factor=2)), "16 numbers a row"),
        (lambda b, x: restore(b, x.flatten(1), Downsample(factor=3)), "must divide 8 x 8 pixels"),
        (lambda b, x: restore(b, torch.full((1, 16), torch.nan), Downsample(factor=2)), "finite"),
        (lambda b, x: Blur(width=0.0), "width=0.0"),
        (lambda b, x: Downsample(factor=0), "factor=0"),
        (lambda b, x: observed("box:1,2,3", SHAPE, 1), "four whole numbers"),
        (lambda b, x: observed("box:5,2,3,4", SHAPE, 1), "left < right"),
        (lambda b, x: observed("box:0,0,9,4", SHAPE, 1), "right <= 8 and"),
        (lambda b, x: observed("random:1.5", SHAPE, 1), r"a number in \[0, 1\]"),
        (lambda b, x: observed("left-hlaf", SHAPE, 1), "must be one of right-half"),
        (lambda b, x: observed("right-half", (7,), 1), "rows of 7 numbers"),
    ],
)
def test_bad_input_is_refused(digits, pixels, call, message):
    with pytest.raises(UserError, match=message) as caught:
        call(digits, pixels)
    assert "\n" not in str(caught.value)


def test_words_and_files_mean_the_same(tmp_path):
    box = observed("box:1,2,4,8", SHAPE, 2)
    missing = np.zeros((8, 8), bool)
    missing[2:8, 1:4] = True
    assert torch.equal(box, torch.from_numpy(~missing).expand(2, *SHAPE))
    np.save(tmp_path / "mask.npy", missing)
    Image.fromarray(missing.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    for name in ("mask.npy", "mask.png"):
        assert torch.equal(observed(tmp_path / name, SHAPE, 2), box)
    np.save(tmp_path / "each.npy", np.stack([missing, ~missing]))
    assert torch.equal(observed(tmp_path / "each.npy", SHAPE, 2)[1, 0], torch.from_numpy(missing))
    for word, kept in {"left-half": (0, 1), "right-half": (1, 0)}.items():
        assert observed(word, SHAPE, 1)[0, 0, 0, [0, -1]].tolist() == [bool(k) for k in kept]
    for word, kept in {"top-half": (0, 1), "bottom-half": (1, 0)}.items():
        assert observed(word, SHAPE, 1)[0, 0, [0, -1], 0].tolist() == [bool(k) for k in kept]


@pytest.fixture
def command(capfd, monkeypatch, tmp_path, digits):
    """`thalweg inpaint` on a small run: (exit code, standard output, lines of standard error)."""

    def call(*words):
        root = logging.getLogger()
        handlers, root.handlers = root.handlers, []
        monkeypatch.setattr(sys, "argv", ["thalweg", "inpaint", str(digits.path), *map(str, words)])
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as stop:
                cli.main()
        finally:
            root.handlers = handlers
        out, err = capfd.readouterr()
        return stop.value.code, out, err.splitlines()

    return call


@pytest.fixture
def folder(tmp_path, pixels):
    (tmp_path / "in").mkdir()
    for i, x in enumerate(pixels[:3]):
        Image.fromarray((x[0] * 255).byte().numpy()).save(tmp_path / "in" / f"{i}.png")
    return tmp_path / "in"


def test_a_folder_becomes_a_folder(command, folder, tmp_path, pixels):
    code, out, err = command("--image", "in", "--mask", "right-half", "-n", 2, "-o", "out", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["images"] == ["0.png", "1.png", "2.png"]
    assert result["skipped"] == []
    assert result["missing"] == [0.5] * 3
    assert np.shape(result["energies"]) == (3, 2)
    lines = (tmp_path / "out" / "completions.csv").read_text().splitlines()
    assert len(lines) == 7
    for i in range(3):
        for k in (1, 2):
            kept = np.asarray(Image.open(tmp_path / "out" / f"{i}-{k}.png").convert("L"))[:, :4]
            assert np.array_equal(kept, (pixels[i, 0] * 255).byte().numpy()[:, :4])
        assert (tmp_path / "out" / f"{i}-uncertainty.png").exists()


def test_a_folder_is_whole_or_not_at_all(command, folder, tmp_path, monkeypatch):
    """Mutant: pictures straight into the folder, of which those of the first image stay where the disk is full."""
    write, before = store.write_bytes, sorted(tmp_path.rglob("*"))

    def failing(path, data):
        if path.name.startswith("1-"):
            raise DiskFull(f"no room to write to {path.name}")
        write(path, data)

    words = ("--image", "in", "--mask", "right-half", "-n", 1, "-o", "out")
    monkeypatch.setattr(store, "write_bytes", failing)
    assert command(*words)[::2] == (1, ["thalweg: no room to write to 1-1.png"])
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(store, "write_bytes", write)
    (tmp_path / "out").mkdir()
    assert command(*words)[0] == 0
    assert len([*(tmp_path / "out").iterdir()]) == 4
    code, _, err = command(*words)
    assert (code, len(err)) == (2, 1)
    assert err[0].endswith("out: must be a .png, an .npy, or a folder that is empty or does not exist yet")


def test_a_picture_and_an_array(command, folder, tmp_path):
    code, _, err = command("--image", "in/0.png", "--mask", "box:2,2,6,6", "-o", "x.png")
    assert code == 0, err
    picture = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    assert picture.std() > 10
    code, _, err = command("--image", "in", "--mask", "random:0.5", "-n", 3, "-o", "x.npy")
    assert code == 0, err
    assert np.load(tmp_path / "x.npy").shape == (3, 3, *SHAPE)
    small = np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32)
    np.save(tmp_path / "small.npy", small)
    code, _, err = command("--image", "small.npy", "--operator", "downsample:2", "-o", "y.png")
    assert code == 0, err


def test_what_cannot_be_the_operator_s_view_is_told(command, folder, tmp_path, digits):
    """8 bits are taken for rounded; noise called blurred fits no image, and blurred digits fit."""
    from thalweg.bundle.dataset import data_of

    code, _, err = command("--image", "in", "--operator", "blur:1.5", "-n", 1, "-o", "x.png")
    assert (code, len(err)) == (0, 3), err
    assert "8 bits are rounded by 0.0011" in err[0]
    assert "3 images: up to" in err[1]
    assert err[2] == "1 completion of 3 images in x.png; with -n 2 or more, also where they differ"
    np.save(tmp_path / "flat.npy", Blur(width=1.5)(as_float(data_of(digits).held_out[:5])))
    code, _, err = command("--image", "flat.npy", "--operator", "blur:1.5", "-n", 1, "-o", "x.npy")
    assert (code, err) == (0, ["1 completion of 5 images in x.npy"])


def test_rows_with_nan_are_skipped_with_their_masks(command, tmp_path, pixels):
    x, missing = pixels.clone(), ~torch.eye(8, dtype=torch.bool)[:5, None, None].expand(5, 1, 8, 8)
    x[missing] = torch.nan  # column i alone is seen of image i
    x[1] = torch.nan
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "m.npy", missing)
    words = ("--image", "x.npz", "--mask", "m.npy", "-n", 1, "-o", "y.npy")
    code, _, err = command(*words)
    assert (code, len(err)) == (2, 1)
    assert "image 1: must be finite where it is observed" in err[0]
    code, _, err = command(*words, "--skip-bad")
    assert (code, err[0]) == (0, "left out image 1: must be finite where it is observed"), err
    found, kept = np.load(tmp_path / "y.npy")[0], [0, 2, 3, 4]
    for row, i in enumerate(kept):
        assert np.array_equal(found[row, 0, :, i], x[i, 0, :, i])


def test_bad_files_are_named_and_skipped_only_if_asked(command, folder):
    (folder / "1.png").write_bytes(b"not a picture")
    Image.fromarray(np.zeros((9, 5), np.uint8)).save(folder / "3.png")
    code, _, err = command("--image", "in", "--mask", "right-half", "-o", "x.npy")
    assert (code, len(err)) == (2, 1)
    assert "1.png" in err[0]
    assert "--skip-bad" in err[0]
    code, out, err = command("--image", "in", "--mask", "right-half", "-o", "x.npy", "--skip-bad", "--json")
    assert code == 0
    assert [s["file"] for s in json.loads(out)["skipped"]] == ["1.png", "3.png"]
    assert json.loads(out)["images"] == ["0.png", "2.png"]
    assert sum("left out" in line and name in line for line in err for name in ("1.png", "3.png")) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "in", "-o", "x.png"], "--mask and --operator: must be one of the two"),
        (
            ["--image", "in", "--mask", "none", "--operator", "blur:1", "-o", "x.png"],
            "--mask and --operator: must be one of the two",
        ),
        (["--image", "none.png", "--mask", "none", "-o", "x.png"], "none.png: no such file"),
        (["--image", "in", "--mask", "wide.png", "-o", "x.png"], "must be a mask of"),
        (["--image", "in", "--mask", "none", "-o", "x.jpg"], "must be a .png, an .npy, or a folder"),
        (["--image", "in", "--mask", "none", "-o", "nowhere/x.png"], "in a folder that exists"),
        (["--image", "in", "--mask", "none", "-o", "in"], "the folder that is read"),
        (["--image", "in/0.png", "--mask", "none", "-o", "in/0.png"], "the file that is read"),
        (["--image", "in", "--mask", "none", "-o", "in/0.png"], "a file of in, which is read"),
        (["--image", "in/0.png", "--mask", "none", "-o", "in"], "the folder that is read"),
        (["--image", "wide.png", "--mask", "in/0.png", "-o", "in"], "the folder that is read"),
        (["--image", "in/0.png", "--mask", "none", "-o", "link.png"], "the file that is read"),
        (["--image", "in", "--mask", "none", "-o", "twin.png"], "a file of in, which is read"),
        (["--image", "in", "--mask", "none", "-o", "nowhere/out"], "make the folder nowhere first"),
        (["--image", "in", "--mask", "wide.png", "-o", "wide.png"], "the file that is read"),
        (
            ["--image", "in", "--mask", "none", "-o", "x.png", "--rank-by", "worth"],
            "must be one of expected_error, energy",
        ),
        (["--image", "in", "--mask", "none", "-o", "."], "must be a .png, an .npy, or a folder that is empty"),
        (["--image", "in", "--mask", "none", "-o", "wide.png/out"], "in a folder that exists"),
        (["--image", "in", "--mask", "", "-o", "x.png"], "mask='': must be one of"),
        (["--image", "in", "--operator", "blur:x", "-o", "x.png"], "blur:WIDTH"),
        (["--image", "in", "--operator", "downsample:3", "-o", "x.png"], "must divide"),
    ],
)
def test_the_command_refuses_in_one_line(command, folder, words, message):
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(folder.parent / "wide.png")
    (folder.parent / "link.png").symlink_to(folder / "0.png")
    (folder.parent / "twin.png").hardlink_to(folder / "0.png")
    held = {path: path.read_bytes() for path in folder.iterdir()}
    code, out, err = command(*words)
    assert (code, out, len(err)) == (2, "", 1)
    assert message in err[0]
    assert {path: path.read_bytes() for path in folder.iterdir()} == held


def test_a_mask_of_columns_is_a_row(tmp_path):
    row = np.array([True, False, False, True])
    np.save(tmp_path / "row.npy", row)
    assert torch.equal(observed(tmp_path / "row.npy", (4,), 2), torch.from_numpy(~row).expand(2, 4))
    np.save(tmp_path / "short.npy", row[:3])
    with pytest.raises(UserError, match=r"short.npy.*\(N, 4\)"):
        observed(tmp_path / "short.npy", (4,), 2)
    for word in ("right-half", "none.npy"):
        with pytest.raises(UserError, match=r"must be a file of marks.*; give an .npy or a table; .* gaps means what"):
            observed(word, (4,), 2)
