"""Choosing among candidates: permutations, counts, copies, bad input, files, and the command line."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import thalweg
from thalweg.apps.rerank import selection
from thalweg.apps.rerank.candidates import as_candidates, generate, read_candidates
from thalweg.apps.rerank.reranker import EnergyReranker
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.rng import generator

VARIETIES = ("maximal_marginal_relevance", "none")
QUICK = RatioSettings(ensemble=2, steps=30, hidden=8, channels=(4, 8), batch=32)


def brightness(x):
    return x.flatten(1).sum(1)


def images(n=60, side=8, stream="images"):
    return torch.rand(n, 1, side, side, generator=generator(0, stream))


def toned(n, darkest, stream, side=8):
    """Images each times a number of its own from `darkest` to 1."""
    tone = torch.rand(n, 1, 1, 1, generator=generator(0, f"{stream}-tone"))
    return images(n, side, stream) * (darkest + (1 - darkest) * tone)


@pytest.fixture(scope="module")
def fitted():
    """Bright images are real; of the generated some are bright and some dark, so that choosing helps."""
    return EnergyReranker(settings=QUICK).fit(toned(80, 0.8, "real"), toned(80, 0.0, "made"))


@pytest.mark.parametrize("variety", VARIETIES)
def test_ranks_are_a_permutation(variety):
    x = images()
    reranker = EnergyReranker(brightness, variety=variety)
    order = reranker.rank(x)
    assert order.sort().values.tolist() == list(range(60))
    assert torch.equal(order, brightness(x).argsort())
    for keep in (1, 7, 59, 60):
        kept = reranker.rank(x, keep)
        assert len(set(kept.tolist())) == keep
        assert bool((brightness(x)[kept].diff() >= 0).all()), "best first"
        assert torch.equal(kept, reranker.rank(x, keep)), "deterministic"
    assert order[0] in reranker.rank(x, 7)


@pytest.mark.parametrize("variety", VARIETIES)
def test_copies_do_not_fill_the_kept_set(variety):
    """40 copies of the best beside 40 others: one is kept, whatever the way."""
    x = torch.cat([images(1).expand(40, -1, -1, -1) * 0.5, images(40, stream="others")])
    kept = EnergyReranker(brightness, variety=variety).rank(x, 20)
    assert int((kept < 40).sum()) == 1
    for keep in (41, 42, 50, 80):  # of which 41 differ: those first, best first, then copies to fill up
        kept = EnergyReranker(brightness, variety=variety).rank(x, keep)
        assert kept[:41].tolist() == [i for i in brightness(x).sort(stable=True).indices.tolist() if not 0 < i < 40]
        assert kept[41:].tolist() == list(range(1, keep - 40))


def test_the_test_of_copies_rejects_a_mutant(monkeypatch):
    """Mutant: copies count as candidates of their own."""
    monkeypatch.setattr(selection, "distinct", lambda x: torch.arange(len(x)))
    x = torch.cat([images(1).expand(40, -1, -1, -1) * 0.5, images(40, stream="others")])
    assert int((EnergyReranker(brightness).rank(x, 20) < 40).sum()) > 2


def test_best_of_groups():
    u = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])
    assert selection.best_of_groups(u, 2).tolist() == [1, 2, 4]
    assert selection.best_of_groups(u, 9).tolist() == [1]
    x = u.view(-1, 1)
    assert EnergyReranker(brightness).best_of(x, 3).tolist() == [1, 4]
    with pytest.raises(UserError) as error:
        EnergyReranker(brightness).best_of(x, 0)
    assert error.value.argument == "size"


def test_none_or_one_candidate(fitted):
    for reranker in (fitted, EnergyReranker(brightness)):
        assert reranker.rank(np.zeros((0, 1, 8, 8))).tolist() == []
        assert reranker.rank([]).tolist() == []
        assert reranker.best_of([], 4).tolist() == []
        assert reranker.rank(images(1)).tolist() == [0]
        assert reranker.rank(images(1), 1).tolist() == [0]
    with pytest.raises(UserError) as error:
        fitted.rank([], 1)
    assert error.value.argument == "keep"


@pytest.mark.parametrize("keep", [0, -1, 61, 2.5, True])
def test_keep_that_cannot_be(keep):
    with pytest.raises(UserError) as error:
        EnergyReranker(brightness).rank(images(), keep)
    assert (error.value.argument, error.value.value) == ("keep", keep)


def test_bad_candidates_are_named(fitted):
    x = images(5)
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"1 of 5 rows are not.* row 3"):
        fitted.rank(x)
    with pytest.raises(UserError, match=r"must have the shape \(N, 1, 8, 8\); it has \(5, 1, 9, 9\)"):
        fitted.rank(images(5, 9))
    mixed = [np.zeros((8, 8), np.uint8)] * 3 + [np.zeros((8, 9), np.uint8)]
    with pytest.raises(UserError, match=r"number 3 has \(8, 9\), most have \(8, 8\)"):
        fitted.rank(mixed)
    with pytest.raises(UserError, match="must be an array of numbers"):
        fitted.rank("a folder")
    with pytest.raises(UserError, match=r"^energy: must not give NaN, as for 2 of 4"):
        EnergyReranker(lambda x: torch.tensor([1.0, torch.nan, torch.nan, 2.0])).rank(images(4))
    with pytest.raises(UserError, match=r"^energy: must give one number .* not shape \(4, 1\)"):
        EnergyReranker(lambda x: brightness(x)[:, None]).rank(images(4))
    with pytest.raises(UserError, match=r"^energy: must be a bundle.* not an int"):
        EnergyReranker(7).rank(images(4))
    with pytest.raises(UserError, match="must be given or fitted"):
        EnergyReranker().rank(images(4))
    with pytest.raises(UserError, match=r"^variety='most'"):
        EnergyReranker(brightness, variety="most").rank(images(4), 2)


def test_infinite_energies_come_last():
    u = torch.tensor([2.0, torch.inf, -torch.inf, 1.0])
    for variety in VARIETIES:
        reranker = EnergyReranker(lambda x: u, variety=variety)
        assert reranker.rank(images(4)).tolist() == [2, 3, 0, 1]
        assert 1 not in reranker.rank(images(4), 3)


def test_pictures_in_any_form(fitted):
    x = (255 * images(6)).byte()
    want = fitted.rank(x)
    pictures = [Image.fromarray(a) for a in x[:, 0].numpy()]
    for form in (x.numpy(), x[:, 0], x.permute(0, 2, 3, 1), pictures, x.float() / 255):
        assert torch.equal(fitted.rank(form), want)
    assert as_candidates(pictures).shape == (6, 1, 8, 8)


def test_a_bundle_and_features_of_ones_own(digits):
    x = images(12)
    reranker = EnergyReranker(digits)
    assert torch.equal(reranker.rank(x), digits.energy(x).argsort(stable=True))
    assert len(reranker.rank(x, 4)) == 4
    seen = []
    EnergyReranker(brightness, features=lambda x: seen.append(len(x)) or x.mean((2, 3))).rank(x, 4)
    assert seen == [12]


def test_a_fitted_one_survives_its_folder(fitted, tmp_path):
    fitted.save_pretrained(tmp_path / "judge")
    again = thalweg.load(tmp_path / "judge")
    x = images(30, stream="again")
    assert torch.equal(again.energies(x), fitted.energies(x))
    assert torch.equal(again.rank(x, 5), fitted.rank(x, 5))
    assert again.check_ == fitted.check_
    chosen = fitted.energy.settings
    assert "auto" not in (chosen.view, chosen.noise)
    assert (again.settings.view, again.settings.noise) == (chosen.view, chosen.noise) == fitted.check_[4:6]
    fitted.save_pretrained(tmp_path / "judge")  # over itself
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="must be empty or hold a re-ranker"):
        fitted.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"must hold a config\.json"):
        EnergyReranker.from_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="must be a fitted likelihood ratio"):
        EnergyReranker(brightness).save_pretrained(tmp_path / "b")
    weights = tmp_path / "judge" / "model.safetensors"
    held = weights.read_bytes()
    weights.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with pytest.raises(DamagedFile, match=r"model\.safetensors"):
        thalweg.load(tmp_path / "judge")


def test_candidates_of_a_diffusers_pipeline():
    """A DDPM pipeline with random weights, built in memory; the first n do not depend on how many follow."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(4, 4),
            norm_num_groups=2,
            attention_head_dim=2,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )
    pipeline = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(num_train_timesteps=10))
    pipeline.set_progress_bar_config(disable=True)
    x = generate(pipeline, 5, batch=4, num_inference_steps=2, seed=1)
    assert x.shape == (5, 1, 8, 8)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert torch.equal(x[:3], generate(pipeline, 3, batch=4, num_inference_steps=2, seed=1))
    assert len(EnergyReranker(brightness).rank(x, 2)) == 2
    for argument, n, given in (("n", 0, {}), ("n", 2.5, {}), ("steps", 2, {"steps": 3})):
        with pytest.raises(UserError) as error:
            generate(pipeline, n, **given)
        assert error.value.argument == argument
    assert "num_inference_steps" in error.value.message
    with pytest.raises(UserError, match="must take output_type"):
        generate(lambda: None, 3)


def test_a_pipeline_with_a_prompt_is_asked_for_images_per_prompt():
    class Texts:
        def __call__(self, prompt, num_images_per_prompt=1, generator=None, output_type="pil"):
            assert (prompt, output_type) == ("a seven", "np")
            draws = torch.rand(num_images_per_prompt, 8, 8, 3, generator=generator).numpy()
            return type("Output", (), {"images": draws})()

    assert generate(Texts(), 5, batch=2, prompt="a seven").shape == (5, 3, 8, 8)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "made"
    place.mkdir()
    for i, picture in enumerate((255 * images(12)).byte()[:, 0].numpy()):
        Image.fromarray(picture).save(place / f"c{i:02}.png")
    return place


def test_a_corrupt_image_is_named(folder):
    (folder / "broken.png").write_bytes((folder / "c00.png").read_bytes()[:40])
    Image.new("L", (9, 8)).save(folder / "wide.png")
    with pytest.raises(UserError, match=r"broken\.png|wide\.png"):
        read_candidates(folder)
    found = read_candidates(folder, skip_bad=True)
    assert found.names == [f"c{i:02}.png" for i in range(12)]
    assert [name for name, _ in found.skipped] == ["broken.png", "wide.png"]
    assert "9 x 8" in found.skipped[1][1]
    for path in folder.glob("c*.png"):
        path.unlink()
    (folder / "wide.png").unlink()
    with pytest.raises(UserError, match=r"must hold .*broken\.png"):
        read_candidates(folder, skip_bad=True)


def test_rows_of_an_array_that_are_not_finite(tmp_path):
    x = images(4).numpy()
    x[2] = np.inf
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(UserError, match="row 2"):
        read_candidates(tmp_path / "x.npy")
    found = read_candidates(tmp_path / "x.npy", skip_bad=True)
    assert found.names == ["0", "1", "3"]
    assert found.skipped == [("row 2 (counted from 0)", "holds NaN or infinity")]
    np.save(tmp_path / "x.npy", x[2:3])
    with pytest.raises(UserError, match="must hold a row that is finite"):
        read_candidates(tmp_path / "x.npy", skip_bad=True)


def test_the_command_line(call, folder, fitted, tmp_path):
    fitted.save_pretrained(tmp_path / "judge")
    (folder / "broken.png").write_bytes(b"no picture")
    code, _, err = call("rerank", "judge", folder, "--keep", 3)
    assert (code, len(err)) == (2, 1)
    assert "broken.png" in err[0]
    assert "--skip-bad" in err[0]
    code, told, err = call("rerank", "judge", folder, "--keep", 3, "--skip-bad", "-o", "best", "--json")
    assert code == 0
    assert any("skipped broken.png" in line for line in err)
    assert told["skipped"][0][0] == "broken.png"
    assert len(told["kept"]) == 3
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == [f"{i}-{n}" for i, n in enumerate(told["kept"], 1)]
    assert (tmp_path / "best" / f"1-{told['kept'][0]}").read_bytes() == (folder / told["kept"][0]).read_bytes()
    with (tmp_path / "ranked.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == list(range(1, 13))
    assert {row["name"] for row in rows if row["kept"] == "True"} == set(told["kept"])
    ranking = fitted.ranked(read_candidates(folder, skip_bad=True).x, 3)
    assert [row["name"] for row in rows] == [f"c{i:02}.png" for i in ranking.order.tolist()]
    energies = [float(row["energy"]) for row in rows]
    assert energies == pytest.approx(ranking.energies[ranking.order].tolist())


def test_the_command_line_on_arrays(call, fitted, tmp_path):
    fitted.save_pretrained(tmp_path / "judge")
    x = (255 * images(9)).byte().numpy()
    np.save(tmp_path / "x.npy", x)
    code, told, _ = call("rerank", "judge", "x.npy", "--keep", 4, "-o", "best.npy", "--json")
    assert code == 0
    assert np.allclose(np.load(tmp_path / "best.npy"), x[told["indices"]] / 255)
    assert call("rerank", "judge", "x.npy", "--keep", 4, "-o", "pictures")[0] == 0
    first = tmp_path / "pictures" / f"1-{told['indices'][0]}.png"
    assert np.array_equal(np.asarray(Image.open(first)), x[told["indices"][0], 0])
    for words, message in (
        (("judge", "x.npy", "--keep", 10), "keep=10"),
        (("judge", "nowhere"), "nowhere: no such file"),
        (("nowhere", "x.npy"), "nowhere: no such folder"),
        (("judge", "x.npy", "-o", "pictures"), "a folder that is empty or does not exist"),
        (("judge", "x.npy", "--variety", "most"), "variety='most'"),
        (("judge", "x.npy", "--table", "t.txt"), "t.txt: must end in"),
    ):
        code, _, err = call("rerank", *words)
        assert (code, len(err)) == (2, 1), err
        assert message in err[0]


def test_fitting_from_the_command_line(call, tmp_path):
    np.save(tmp_path / "real.npy", toned(40, 0.8, "real").numpy())
    np.save(tmp_path / "made.npy", toned(40, 0.0, "made").numpy())
    code, told, err = call(
        "rerank", "fit", "real.npy", "made.npy", "-o", "judge", "--steps", 60, "--ensemble", 2, "--json"
    )
    assert code == 0
    assert told["beats_chance"]
    assert told["choice_helps"]
    halves = told["choices"]["maximal_marginal_relevance"][0]
    assert halves["share"] == 0.5
    assert halves["nearer"] > 2 * halves["standard_error"]
    assert any("1 of 2 unseen draws kept: nearer to unseen data by " in line for line in err)
    assert told["auc"] > 0.7
    assert [trial[:2] for trial in told["trials"]] == [
        ["pixels", 0.3],
        ["pixels", [0.3, 3.0]],
        ["quantile_match", [0.3, 3.0]],
    ]
    assert [told["view"], told["noise"]] in [trial[:2] for trial in told["trials"]]
    assert f"view {told['view']}, noise " in err[-1]
    assert "each way separates good draws from bad: pixels 0.3 " in err[-1]
    bright_and_dark = torch.cat([images(5), 0.3 * images(5, stream="new")])
    dark_last = thalweg.load(tmp_path / "judge").rank(bright_and_dark, force=True)
    assert set(dark_last[:5].tolist()) == set(range(5))
    words = ("rerank", "fit", "real.npy", "made.npy", "-o", "judge", "--steps", 5)
    code, told, err = call(*words, "--noise", "0.2:2", "--view", "quantile_match", "--json")
    assert (code, told["view"], told["noise"], told["trials"]) == (0, "quantile_match", [0.2, 2.0], [])
    assert err[-1].endswith("view quantile_match, noise 0.2:2")
    for bad, message in (("much", "--noise='much': "), ("3:0.2", "noise=(3.0, 0.2): ")):
        code, _, err = call(*words, "--noise", bad)
        assert (code, len(err)) == (2, 1)
        assert message in err[0]
    np.save(tmp_path / "few.npy", images(3).numpy())
    code, _, err = call("rerank", "fit", "real.npy", "few.npy", "-o", "judge")
    assert (code, len(err)) == (2, 1)
    assert err[0].endswith("few.npy: must hold 20 rows or more, and holds 3")
    np.save(tmp_path / "other.npy", images(40, 9).numpy())
    code, _, err = call("rerank", "fit", "real.npy", "other.npy", "-o", "judge")
    assert (code, len(err)) == (2, 1)
    assert "other.npy: must hold images of 8 x 8 pixels, as real.npy, not of 9 x 9; --size 8 resizes" in err[0]


def test_a_bundle_says_what_its_energy_is_worth(call, digits, tmp_path):
    digits.save_pretrained(tmp_path / "run")
    np.save(tmp_path / "x.npy", images(6).numpy())
    code, _, err = call("rerank", "run", "x.npy", "--keep", 2)
    assert code == 0
    assert "a poor judge" in err[0]
