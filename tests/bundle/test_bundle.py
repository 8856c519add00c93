"""The bundle: what every later command relies on, checked on runs of a few seconds."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

import thalweg
from thalweg.bundle import conformal
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.files import FILES, load
from thalweg.core import store
from thalweg.core.errors import DamagedFile, NotNormalised, UserError
from thalweg.core.rng import generator
from thalweg.data.toy import TOYS
from thalweg.data.transform import Standardize
from thalweg.energy.engine.fused import keep_memory
from thalweg.run.fit import Request, fit
from thalweg.training.trainer import Interrupted

SMALL = ["train.batch_size=64", "energy.width=48", "energy.num_blocks=2", "data.limit=6000"]
TINY_IMAGE = ["energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16", "train.batch_size=16"]


def run(folder, data, recipe="dual", steps=20, overrides=(), **keywords):
    request = Request(data=data, recipe=recipe, steps=steps, overrides=["train.precision=fp32", *overrides])
    return fit(request, folder, tensorboard=False, **keywords)


def points(n=50):
    return TOYS["eight-gaussians"].sample(n, generator(7, "points"))


def pixels(n=7):
    return torch.rand(n, 1, 8, 8, generator=generator(7, "pixels"))


@pytest.mark.parametrize("which", ["plane", "digits"])
def test_shapes_and_the_sign_of_log_p(which, request):
    bundle = request.getfixturevalue(which)
    x = points() if which == "plane" else pixels()
    u = bundle.energy(x)
    assert u.shape == (len(x),)
    assert u.dtype == torch.float32
    assert torch.equal(bundle.log_prob(x), -u)
    scores = bundle.score(x)
    assert {name: value.shape for name, value in scores.items()} == {
        name: (len(x),) for name in ("energy", "log_prob", "p_value", "flag")
    }
    assert torch.equal(scores["flag"], scores["p_value"] <= 0.01)
    assert bundle.sample(3).shape == (3, *x.shape[1:])
    assert bundle.sample(0).shape == (0, *x.shape[1:])
    assert not any(p.requires_grad for p in bundle.model.parameters())
    if which == "digits":
        assert 0 <= float(bundle.sample(3).min()) <= float(bundle.sample(3).max()) <= 1


def test_memory_stays_with_the_process_while_energies_are_computed(chains):
    """Otherwise page faults take 40 % of the time of convolutions in a process that has run no chain."""
    keep_memory.cache_clear()
    chains.energy(points())
    assert keep_memory.cache_info().currsize == 1


def test_rows_do_not_depend_on_their_company(plane):
    x = points(600)  # more than one block of evaluation
    u = plane.energy(x)
    assert torch.allclose(u[300:310], plane.energy(x[300:310]), atol=1e-4)


def test_numpy_uint8_and_double_are_taken(digits):
    x = (pixels() * 255).round().to(torch.uint8)
    u = digits.energy(x)
    assert torch.equal(u, digits.energy(x.numpy()))
    assert torch.allclose(u, digits.energy(x.double() / 255), atol=1e-2)


@pytest.mark.parametrize("which", ["plane", "digits", "chains"])
def test_samples_follow_from_the_seed_and_blocks_from_their_place(which, request):
    bundle = request.getfixturevalue(which)
    long = bundle.sample(150, seed=4, num_steps=3)
    assert torch.equal(long[:100], bundle.sample(100, seed=4, num_steps=3))
    assert torch.equal(long, bundle.sample(150, seed=4, num_steps=3))
    assert not torch.equal(long, bundle.sample(150, seed=5, num_steps=3))
    assert len(long.unique(dim=0)) == 150


def test_chains_of_one_seed_share_no_noise_with_those_of_the_next(chains, monkeypatch):
    seeds = []
    real = thalweg.bundle.draws.run_chain
    monkeypatch.setattr(
        thalweg.bundle.draws, "run_chain", lambda *args, **kw: seeds.append(kw["seed"]) or real(*args, **kw)
    )
    for seed in range(3):
        chains.sample(201, seed=seed, num_steps=1)
    assert len(set(seeds)) == 9


def test_an_unnormalised_model_says_so(chains):
    x = TOYS["two-moons"].sample(5, generator(0, "x"))
    with pytest.raises(NotNormalised, match=r"ContrastiveDivergence leaves.*bundle\.log_z.*use \.energy\(x\)"):
        chains.log_prob(x)
    assert "log_prob" not in chains.score(x)
    assert chains.score(x)["p_value"].shape == (5,)
    assert issubclass(NotNormalised, UserError)


def _integral(log_prob, half=2.2, n=220):
    edge = torch.linspace(-half, half, n + 1)
    middle = (edge[1:] + edge[:-1]) / 2
    x = torch.cartesian_prod(middle, middle)
    return float(log_prob(x).double().exp().sum()) * (2 * half / n) ** 2


@pytest.fixture(scope="module")
def anchor(tmp_path_factory):
    """A model whose network has not moved: the anchor alone, whose constant is exact."""
    still = ["train.learning_rate=1e-12", "train.weight_decay=0"]
    return run(tmp_path_factory.mktemp("anchor") / "run", "eight-gaussians", steps=1, overrides=[*SMALL, *still])


def test_log_p_integrates_to_one_in_data_units(anchor):
    """Rejected mutants: the unit change dropped, and a constant off by 0.2 nats either way."""
    tolerance = 0.005
    total = _integral(anchor.log_prob, half=8.0)
    assert abs(total - 1) < tolerance
    assert abs(total * math.exp(0.2) - 1) > tolerance
    assert abs(total * math.exp(-0.2) - 1) > tolerance

    def without_units(x):
        return anchor.log_prob(x) - anchor.transform.log_abs_det(x)

    assert abs(_integral(without_units, half=8.0) - 1) > tolerance


def test_chains_are_those_of_an_energy_without_noise_levels(plane):
    assert plane.chains(4) is None


def test_after_a_short_training_log_p_still_integrates_to_about_one(plane):
    """Within 0.5 nats after 500 updates; the energy without its constant (mutant) is off by more."""
    assert abs(math.log(_integral(plane.log_prob))) < 0.5
    flat = plane.log_prob(torch.zeros(1, 2))
    assert abs(math.log(_integral(lambda x: plane.log_prob(x) - flat))) > 0.5


def test_log_p_comes_near_the_known_density(plane):
    """Held-out mean log p lies below the truth (Gibbs), and far above the Gaussian fit's."""
    toy = TOYS["eight-gaussians"]
    x = toy.sample(4000, generator(11, "fresh"))
    mean = float(plane.log_prob(x).mean())
    normal = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    truth, gaussian = float(toy.log_prob(x).mean()), float(normal.log_prob(x).mean())
    assert gaussian + 0.3 * (truth - gaussian) < mean < truth + 0.05


def test_p_values_are_uniform_on_normal_data_and_small_on_junk(plane):
    fresh = TOYS["eight-gaussians"].sample(3000, generator(12, "fresh"))
    p = plane.score(fresh)["p_value"].sort().values
    distance = (p - (torch.arange(3000) + 0.5) / 3000).abs().max()
    assert float(distance) < 2.4 * math.sqrt(1 / 3000 + 1 / 4000)  # two-sample Kolmogorov-Smirnov, alpha about 1e-5
    junk = torch.full((9, 2), 5.0) + torch.arange(9)[:, None]
    assert float(plane.score(junk)["p_value"].max()) == pytest.approx(1 / 4001)
    assert bool(plane.score(junk)["flag"].all())
    assert not bool(plane.score(fresh, alpha=0.0)["flag"].any())


def test_room_for_float32_makes_no_p_value_smaller():
    """Energies of either sign, tiny and huge; what lies further apart is told apart as before."""
    sizes = 10 ** np.linspace(-3, 6, 250)  # the smallest are 4e-5 apart
    energies = np.random.default_rng(0).permutation(np.r_[sizes, -sizes]).astype(np.float32)
    ranked, plain = conformal.raised(energies), np.sort(energies)
    assert (np.diff(ranked) >= 0).all()
    near = (energies.astype(float) + 2e-6 * np.maximum(np.abs(energies), 1)).astype(np.float32)
    for u in (energies, near):
        np.testing.assert_array_equal(conformal.p_values(ranked, u), conformal.p_values(ranked, energies))
        assert (conformal.p_values(ranked, u) >= conformal.p_values(plain, u)).all()
    above = (energies.astype(float) + 3e-5 * np.maximum(np.abs(energies), 1)).astype(np.float32)
    alone = conformal.raised(energies[:1])
    assert conformal.p_values(alone, above[:1]) == conformal.p_values(energies[:1], above[:1]) == 0.5


def test_p_value_counts_ties_as_at_least_as_odd(plane):
    held = plane.held_out_energies
    try:
        plane.held_out_energies = torch.tensor([3.0, 1.0, 2.0])
        plane.energy, x = lambda x: torch.tensor([0.0, 2.0, 3.5]), None
        assert plane.score(x)["p_value"].tolist() == [1.0, 0.75, 0.25]
    finally:
        plane.held_out_energies = held
        del plane.energy


BAD_IMAGES = {
    "shape": (torch.zeros(2, 1, 9, 8), r"^x: must have the shape \(N, 1, 8, 8\); it has \(2, 1, 9, 8\)"),
    "no batch": (torch.zeros(1, 8, 8), r"add the batch axis"),
    "channels last": (torch.zeros(2, 8, 8, 1), r"channels come first"),
    "colours": (torch.zeros(2, 3, 8, 8), r"3 channels where 1 are expected"),
    "NaN": (torch.full((2, 1, 8, 8), float("nan")), r"2 of 2 rows are not"),
    "range": (torch.full((2, 1, 8, 8), 7.0), r"float in \[0, 1\].*divide by 255"),
    "whole numbers": (torch.zeros(2, 1, 8, 8, dtype=torch.int64), r"pixels are torch.int64"),
    "empty": (torch.zeros(0, 1, 8, 8), r"one row or more"),
    "text": ("digit", r"^x: must be an array of numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], r"^x: must be an array of numbers"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("method", ["energy", "log_prob", "score"])
def test_bad_input_is_one_clear_line(digits, name, method):
    x, message = BAD_IMAGES[name]
    with pytest.raises(UserError, match=message) as caught:
        getattr(digits, method)(x)
    assert "\n" not in str(caught.value)


def test_bad_requests_for_samples(digits):
    with pytest.raises(UserError, match="is for models with classes, and this one has none"):
        digits.sample(2, labels=[1, 2])


def test_a_finished_run_has_all_its_parts(digits):
    names = {path.name for path in digits.path.iterdir()}
    assert {*FILES, "manifest.json"} <= names
    assert {"card.md", "metrics.jsonl", "plan.json", "preview.png", "checkpoints"} <= names
    store.verify(digits.path)
    assert "Command:" in (digits.path / "card.md").read_text()
    assert len(digits.held_out_energies) == digits.config["data"]["num_held_out"]


@pytest.mark.parametrize("data", ["two-moons", "digits"])
def test_an_unfinished_run_is_read_from_its_checkpoint(tmp_path, data, monkeypatch, caplog):
    def stop(self, *args):
        if self.state.step == 4:
            self.state.save(self.folder, 2)
            raise Interrupted("stopped", 15)

    monkeypatch.setattr("thalweg.training.trainer.Trainer._report", stop)
    overrides = TINY_IMAGE if data == "digits" else SMALL
    with pytest.raises(Interrupted):
        run(tmp_path / "run", data, overrides=overrides)
    bundle = load(tmp_path / "run")
    assert "has not ended; reading its checkpoint step-00000004, without calibration" in caplog.text
    x = pixels() if data == "digits" else points()
    assert bundle.log_prob(x).shape == (len(x),)
    assert set(bundle.score(x)) == {"energy", "log_prob"}
    assert bundle.sample(2, num_steps=2).shape == (2, *x.shape[1:])


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "model.safetensors"])
def test_nothing_of_another_kind_is_overwritten(digits, tmp_path, name):
    (tmp_path / name).write_text('{"type": "thalweg.apps.anomaly.saved:DetectorBundle"}')
    with pytest.raises(UserError) as caught:
        digits.save_pretrained(tmp_path)
    assert caught.value.argument == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    for no_path in ("", 3):
        with pytest.raises(UserError) as caught:
            digits.save_pretrained(no_path)
        assert caught.value.argument == "folder"


@pytest.mark.parametrize("change", [{"mean": [None, 0.0]}, {"mean": ["a", 3]}, {"scale": [10**400, 1.0]}])
def test_odd_numbers_of_a_transform_are_one_line(change):
    made = Standardize(**{"mean": [0.0, 0.0], "scale": [1.0, 1.0], **change})
    with pytest.raises(UserError) as caught:
        made.forward(torch.zeros(2, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("x", [torch.eye(2).to_sparse(), torch.zeros(2, 2, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_values_are_refused(chains, x):
    with pytest.raises(UserError, match="dense"):
        chains.energy(x)


def test_what_a_masked_array_hides_is_missing(chains):
    x = np.ma.masked_array(np.zeros((2, 2)), mask=[[False, False], [False, True]])
    with pytest.raises(UserError, match=r"finite|missing|NaN"):
        chains.energy(x)
    assert torch.equal(chains.energy(np.ma.masked_array(np.zeros((2, 2)))), chains.energy(np.zeros((2, 2))))


@pytest.mark.parametrize("observed", ["right-half", None])
def test_a_mask_that_is_no_array_is_refused(digits, observed):
    with pytest.raises(UserError) as caught:
        digits.inpaint(torch.zeros(1, *digits.shape), observed)
    assert caught.value.argument == "observed"


def test_save_and_from_pretrained_keep_every_bit(digits, tmp_path):
    digits.save_pretrained(tmp_path / "copy" / "deep")
    again = Bundle.from_pretrained(tmp_path / "copy" / "deep")
    x = pixels()
    assert torch.equal(again.energy(x), digits.energy(x))
    assert torch.equal(again.score(x)["p_value"], digits.score(x)["p_value"])
    assert again.config == digits.config
    store.verify(tmp_path / "copy" / "deep")
    assert {path.name for path in (tmp_path / "copy" / "deep").iterdir()} == {*FILES, "manifest.json", "card.md"}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        digits.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_r5_a_damaged_file_is_refused_by_name(copy, name, damage):
    data = bytearray((copy / name).read_bytes())
    if damage == "cut":
        del data[-1]
    else:
        data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        load(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)
    if name != "manifest.json":
        assert isinstance(caught.value, DamagedFile)
        assert name in str(caught.value)


def test_a_file_that_is_not_sealed_is_not_read(copy):
    files = store.read_json(copy / "manifest.json")
    del files["files"]["calibration.safetensors"]
    store.write_json(copy / "manifest.json", files)
    with pytest.raises(DamagedFile, match=r"calibration\.safetensors: not listed"):
        load(copy)


def _edit(folder, **changes):
    config = store.read_json(folder / "config.json")
    config |= changes
    store.write_json(folder / "config.json", {k: v for k, v in config.items() if v is not None})
    store.seal(folder, FILES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99, "thalweg": "7.0"}, r"must be of format 2, and was written by thalweg 7\.0 in format 99"),
        ({"format": None}, r"config\.json: must be a configuration that thalweg wrote"),
        ({"type": None}, r"of format 2, and was written .* in format 2 without a type"),
        ({"type": "thalweg.bundle.files:Path"}, r"type=.*no class 'Path'|is refused"),
        (
            {"type": "thalweg.apps.rerank.settings:RatioSettings"},
            r"must name a class whose objects",
        ),
        ({"run": None}, r"config\.json: must hold run"),
        ({"run": {}}, r"config\.json: must be the configuration of a run"),
        ({"data": 3}, r"config\.json: must be the configuration of a run"),
        ({"normalised": 1}, r"config\.json: must be the configuration of a run"),
    ],
)
def test_another_format_or_config_is_refused(copy, changes, message):
    _edit(copy, **changes)
    with pytest.raises(UserError, match=message):
        load(copy)


def test_r15_a_config_builds_only_this_package(copy):
    config = store.read_json(copy / "config.json")
    _edit(copy, run={**config["run"], "energy": {"type": "os:system", "command": "true"}})
    with pytest.raises(UserError, match=r"os:system.*only classes of thalweg\.energy"):
        load(copy)


def test_weights_of_another_energy_are_refused(copy):
    config = store.read_json(copy / "config.json")
    energy = {**config["run"]["energy"], "embed": 8}
    _edit(copy, run={**config["run"], "energy": energy})
    with pytest.raises(DamagedFile, match=r"must hold the weights that config\.json describes"):
        load(copy)


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"must hold a config\.json"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must be the folder of a run, and is a file"):
        load(tmp_path / "file")
    for what in (None, 3, b"run"):
        with pytest.raises(UserError, match=r"^path_or_id=.*: must be the folder of a run, or its id .*$"):
            load(what)


def test_a_run_before_its_first_checkpoint_says_so(digits, tmp_path):
    shutil.copy(digits.path / "config.json", tmp_path)
    with pytest.raises(UserError, match="must hold a checkpoint"):
        load(tmp_path)
    shutil.copy(digits.path / "model.safetensors", tmp_path)  # of a run that has ended, then
    with pytest.raises(DamagedFile, match=r"manifest\.json: must be there.*restore it"):
        load(tmp_path)


def test_the_remedy_is_one_that_there_is(copy):
    (copy / "prior.safetensors").write_bytes(b"")
    with pytest.raises(DamagedFile, match=r"prior\.safetensors.*restore it from a copy, or train or fit again"):
        load(copy)
    (copy / "checkpoints").mkdir()  # of which none has been kept
    with pytest.raises(DamagedFile, match=r"prior\.safetensors.*restore it from a copy, or train or fit again"):
        load(copy)
    (copy / "checkpoints" / "step-1").mkdir()
    with pytest.raises(DamagedFile, match=r"prior\.safetensors.*older checkpoint"):
        load(copy)


def test_a_file_that_was_never_sealed_is_to_be_moved_away(copy):
    listed = json.loads((copy / "manifest.json").read_text())
    del listed["files"]["prior.safetensors"]
    (copy / "manifest.json").write_text(json.dumps(listed))
    with pytest.raises(DamagedFile, match=r"prior\.safetensors: .*; move it away, or restore manifest\.json$"):
        load(copy)


def test_the_same_command_twice_gives_the_same_bundle(digits, tmp_path):
    again = run(tmp_path / "run", "digits", steps=25, overrides=TINY_IMAGE)
    x = np.asarray(pixels())
    assert torch.equal(again.energy(x), digits.energy(x))
    assert torch.equal(again.held_out_energies, digits.held_out_energies)


def test_only_rows_make_a_frame(digits):
    with pytest.raises(UserError, match="must be a model of rows"):
        digits.frame(torch.zeros(1, *digits.shape))
