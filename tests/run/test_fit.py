"""What `fit` refuses before any work, what a resumed run may be asked, and where a stopped one leaves its folder."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import thalweg
from thalweg.bundle.prior import fit_mixture_prior
from thalweg.core import store
from thalweg.core.errors import DamagedFile, NotTrusted, UserError
from thalweg.data.stored.npy import NpyRows
from thalweg.run import finish as finish_module
from thalweg.run import fit as module
from thalweg.run.fit import NothingBegun, Request, fit, fit_with_data, settings
from thalweg.training.trainer import Interrupted, Trainer

TINY = ["train.batch_size=16", "train.precision=fp32", "energy.embed=8", "energy.width=16", "energy.num_blocks=1"]
TINY += ["data.limit=300"]


def run(folder, *, resume=False, **asked):
    asked = {"data": "two-moons", "steps": 4, "overrides": TINY, **asked}
    return fit(Request(**asked), folder, resume=resume, tensorboard=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with everything that can be asked: a recipe file, a seed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "mine.yaml").write_text((Path(thalweg.__file__).parent / "recipes/dual-vector.yaml").read_text())
    run(folder / "run", recipe=folder / "mine.yaml", seed=7)
    run(folder / "named", recipe="dual", seed=7)
    return folder


@pytest.fixture(params=["complete", "stopped"])
def place(request, whole, tmp_path):
    """A copy of the two runs, complete or as if they had been stopped after the last step."""
    folder = tmp_path / "place"
    shutil.copytree(whole, folder)
    if request.param == "stopped":
        for name in ("run", "named"):
            (folder / name / "manifest.json").unlink()
    return folder


def content(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def refused(act, argument, *said, kind=UserError):
    """It raises an error about this argument, whose one line says this, too."""
    with pytest.raises(kind) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.argument == (argument if argument is None else str(argument)), text
    assert all(word in text for word in said), text


# A resumed run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "argument", "said"),
    [
        ({"seed": 0}, "seed", "must be 7"),
        ({"recipe": "pcd"}, "recipe", "must be dual-vector"),
        ({"path": "elsewhere"}, "path", "must be left out"),
        ({"hub": True}, "hub", "must be left out"),
        ({"steps": 5}, "steps", "must be 4"),
        ({"steps": None, "minutes": 1}, "minutes", "must be left out"),
        ({"overrides": ["train.batch_size=8"]}, "overrides", "began with"),
        ({"data": "rings"}, None, "holds one on two-moons"),
    ],
)
def test_a_resumed_run_refuses_whatever_else_is_asked_of_it(place, asked, argument, said):
    before = content(place)
    refused(lambda: run(place / "named", resume=True, **asked), argument or place / "named", said)
    assert content(place) == before


def test_a_resumed_run_goes_on_whatever_it_was(place):
    expected = (place / "named" / "model.safetensors").read_bytes()
    for asked in ({"overrides": (), "steps": None}, {"seed": 7, "recipe": "dual"}, {"recipe": "dual-vector"}):
        bundle = run(place / "named", resume=True, **asked)
        assert bundle.config["run"]["seed"] == 7
        assert bundle.config["recipe"] == "dual-vector"
    assert (place / "named" / "model.safetensors").read_bytes() == expected


def test_a_recipe_file_is_known_by_its_content(place):
    moved = place / "moved.yaml"
    (place / "mine.yaml").rename(moved)
    run(place / "run", resume=True, recipe=moved)
    moved.write_text(moved.read_text().replace("2.0e-3", "3.0e-3"))
    refused(lambda: run(place / "run", resume=True, recipe=moved), "recipe", "mine.yaml", "must be")


def test_a_run_that_does_not_say_its_recipe_resumes_without_one(place):
    file = place / "named" / "config.json"
    config = store.read_json(file)
    del config["recipe"], config["recipe_sha256"], config["overrides"]
    (place / "named" / "manifest.json").unlink(missing_ok=True)
    store.write_json(file, config)
    refused(lambda: run(place / "named", resume=True, recipe="dual"), "recipe", "does not say which")
    run(place / "named", resume=True)


def test_the_overrides_a_run_began_with_are_taken_again(tmp_path):
    overrides = [*TINY, "transform={type: 'thalweg.data.transform:Standardize'}", "train.learning_rate='1e-3'"]
    run(tmp_path / "run", overrides=overrides)
    (tmp_path / "run" / "manifest.json").unlink()
    run(tmp_path / "run", overrides=overrides, resume=True)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("run", "train"), 5, "run.train=5: must be"),
        (("run", "train", "batch_size"), "many", "run.train.batch_size='many'"),
        (("run", "energy"), {"width": 16}, "run.energy: must have a type"),
        (("run", "energy", "width"), "wide", "energy.width='wide'"),
        (("run", "seed"), -1, "run.seed=-1"),
        (("run", "seed"), None, "run.seed: must be"),
        (("run", "data", "name"), 3, "run.data.name=3"),
        (("run",), [], "run=[]"),
        (("run",), {}, "missing"),
        (("data", "shape"), "x", "data.shape='x'"),
        (("data", "shape"), [2.5], "data.shape.0=2.5"),
        (("data", "kind"), "sound", "data.kind='sound'"),
        (("data",), {}, "missing"),
        (("normalised",), "yes", "normalised='yes'"),
        (("command",), 3, "command=3"),
        (("torch",), None, "torch: must be"),
    ],
)
def test_a_config_damaged_in_part_is_named_with_its_key(whole, tmp_path, keys, value, said):
    folder = tmp_path / "run"
    shutil.copytree(whole / "named", folder)
    (folder / "manifest.json").unlink()
    config = store.read_json(folder / "config.json")
    node = config
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    store.write_json(folder / "config.json", config)
    before = content(folder)
    refused(lambda: run(folder, resume=True), folder / "config.json", said, kind=DamagedFile)
    assert content(folder) == before


def test_a_config_that_names_a_class_of_a_stranger_is_refused_as_that(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole / "named", folder)
    (folder / "manifest.json").unlink()
    config = store.read_json(folder / "config.json")
    config["run"]["energy"]["type"] = "os:system"
    store.write_json(folder / "config.json", config)
    before = content(folder)
    with pytest.raises(NotTrusted) as caught:
        run(folder, resume=True)
    assert caught.value.argument == "run.energy.type"
    assert content(folder) == before


# What a run leaves ---------------------------------------------------------------------------------------------------


def test_what_fit_returns_is_what_load_reads(tmp_path):
    made = fit_with_data(Request(data="two-moons", steps=3, overrides=TINY), tmp_path / "run", tensorboard=False)
    bundle, read = made.bundle, thalweg.load(tmp_path / "run")
    assert bundle.config == read.config
    x = made.data.held_out[:50]
    for a, b in (
        (bundle.energy(x), read.energy(x)),
        (bundle.held_out_energies, read.held_out_energies),
        (bundle.sample(5, seed=1, num_steps=3), read.sample(5, seed=1, num_steps=3)),
        *zip(bundle.mixture_prior.state_dict().values(), read.mixture_prior.state_dict().values(), strict=True),
    ):
        assert torch.equal(a, b)
    assert not bundle.model.training
    assert not any(p.requires_grad for p in bundle.model.parameters())


@pytest.mark.parametrize("failing", [False, True])
def test_a_run_works_on_the_threads_of_its_plan_and_puts_back_those_of_before(whole, tmp_path, monkeypatch, failing):
    """Training and calibration, in a run that is resumed on another machine; no real threads are started."""
    folder, threads, seen = tmp_path / "run", [2], []
    shutil.copytree(whole / "named", folder)
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)

    def look(*args):
        seen.append(threads[-1])
        if failing and len(seen) == 5:
            raise UserError("no")
        return fit_mixture_prior(*args)

    fit_mixture_prior = finish_module.fit_mixture_prior
    monkeypatch.setattr(Trainer, "_report", lambda *args: seen.append(threads[-1]))
    monkeypatch.setattr(finish_module, "fit_mixture_prior", look)
    with pytest.raises(UserError) if failing else nullcontext():
        run(folder, resume=True)
    planned = store.read_json(folder / "plan.json")["threads"]
    assert planned != 2
    assert seen == [planned] * 5
    assert threads == [2, planned, 2, planned, 2]


# The request ----------------------------------------------------------------------------------------------------------


def test_paths_are_taken_as_paths(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert run(tmp_path / "run", data=tmp_path / "x.npy", overrides=TINY[:-1]).shape == (2,)
    assert store.read_json(tmp_path / "run" / "config.json")["run"]["data"]["name"] == str(tmp_path / "x.npy")
    np.savez(tmp_path / "mnist.npz", x=np.zeros((30, 28, 28), np.uint8))
    request = Request(data="mnist", path=tmp_path / "mnist.npz")
    assert request.path == str(tmp_path / "mnist.npz")


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "3"])
def test_a_seed_outside_64_bits_is_refused_at_once(seed):
    refused(lambda: Request(data="two-moons", seed=seed), "seed")


def test_the_largest_seed_trains(tmp_path):
    assert run(tmp_path / "run", seed=np.uint64(2**64 - 1)).config["run"]["seed"] == 2**64 - 1


def test_a_request_says_what_it_wants_instead():
    refused(lambda: Request(data=5), "data")
    refused(lambda: Request(data=None), "data")
    refused(lambda: Request(data="two-moons", overrides="train.batch_size=3"), "overrides")


def budget(tmp_path, text, **asked):
    """Steps and minutes of the run that a recipe with this section `train` and a request make."""
    recipe = (Path(thalweg.__file__).parent / "recipes/dual-vector.yaml").read_text().partition("train:")[0]
    (tmp_path / "mine.yaml").write_text(recipe + text)
    train = settings(Request(data="two-moons", recipe=tmp_path / "mine.yaml", **asked), "vector").train
    return train.steps, train.minutes


@pytest.mark.parametrize(
    ("text", "asked", "expected"),
    [
        ("", {}, (None, 10.0)),
        ("train: {batch_size: 8}", {}, (None, 10.0)),
        ("train: {minutes: 3}", {}, (None, 3.0)),
        ("train: {minutes: 3, steps: null}", {}, (None, 3.0)),
        ("train: {minutes: 3}", {"steps": 9}, (9, None)),
        ("train: {minutes: 3}", {"overrides": ["train.steps=9"]}, (9, None)),
        ("train: {minutes: 3}", {"overrides": ["train.steps=9", "train.minutes=null"]}, (9, None)),
        ("train: {minutes: 3}", {"steps": 9, "overrides": ["train.minutes=null"]}, (9, None)),
        ("train: {steps: null}", {"steps": 9}, (9, None)),
    ],
)
def test_a_run_has_exactly_one_budget(tmp_path, text, asked, expected):
    assert budget(tmp_path, text, **asked) == expected


@pytest.mark.parametrize(
    ("text", "asked", "argument"),
    [
        ("train: {minutes: 3, steps: 3}", {}, "mine.yaml"),
        ("train: {minutes: 3, steps: 3}", {"steps": 4}, "mine.yaml"),
        ("train: {minutes: null}", {}, "mine.yaml"),
        ("train: {minutes: 3}", {"overrides": ["train.steps=null"]}, "train.steps"),
        ("train: {minutes: 3}", {"overrides": ["train.minutes=null"]}, "train.minutes"),
        ("train: {minutes: 3}", {"overrides": ["train.minutes=2", "train.steps=5"]}, "train.steps and train.minutes"),
        ("train: {minutes: 3}", {"minutes": 2, "overrides": ["train.steps=5"]}, "--minutes and train.steps"),
        ("train: {minutes: 3}", {"steps": 2, "overrides": ["train.steps=5"]}, "--steps and train.steps"),
        ("train: {minutes: 3}", {"overrides": ["train={steps: 3}"]}, "train"),
        ("train: {minutes: 3}", {"overrides": ["data={name: rings}"]}, "data"),
        ("train: {minutes: 3}", {"overrides": ["energy.shape=[3]"]}, "energy.shape"),
        ("train: {minutes: 3}\nseed: 4", {}, "mine.yaml"),
        ("train: {minutes: 3}", {"overrides": ["seed=4"]}, "seed"),
    ],
)
def test_what_a_run_cannot_be_is_refused(tmp_path, text, asked, argument):
    argument = tmp_path / argument if argument == "mine.yaml" else argument
    refused(lambda: budget(tmp_path, text, **asked), argument)


# Infinity -------------------------------------------------------------------------------------------------------------


def test_infinity_is_kept_by_the_run_that_was_given_it(tmp_path, monkeypatch):
    given = {"overrides": [*TINY, "objective.scale=.inf"]}
    whole = run(tmp_path / "a", **given)
    assert store.read_json(tmp_path / "a" / "config.json")["run"]["objective"]["scale"] == ".inf"
    assert thalweg.load(tmp_path / "a").sample(2, num_steps=2).shape == (2, 2)
    (tmp_path / "a" / "manifest.json").unlink()
    found = []
    original = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, **parts: (found.append(parts["objective"].scale), original(self, **parts))[1]
    )
    again = run(tmp_path / "a", resume=True, **given)
    run(tmp_path / "a", resume=True, overrides=["objective.scale=.inf"])
    assert found == [math.inf]
    x = torch.zeros(3, 2)
    assert torch.equal(again.energy(x), whole.energy(x))
    with pytest.raises(UserError, match=r"objective\.scale=nan"):
        run(tmp_path / "b", overrides=[*TINY, "objective.scale=.nan"])
    assert not (tmp_path / "b").exists()


# The folder -----------------------------------------------------------------------------------------------------------

WRONG = {
    "checkpoints": "file",
    "tensorboard": "file",
    "metrics.jsonl": "folder",
    "plan.json": "folder",
    "config.json": "folder",
    "model.safetensors": "folder",
    "manifest.json": "folder",
    "preview.png": "folder",
}


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setattr(module, "read_dataset", lambda *args, **keywords: pytest.fail("the data were read first"))


@pytest.mark.parametrize("name", WRONG)
def test_things_of_the_wrong_kind_are_met_before_the_data_are_read(tmp_path, no_data, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).mkdir() if WRONG[name] == "folder" else (folder / name).touch()
    before = content(tmp_path)
    refused(lambda: run(folder), folder / name, "move it away")
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["file/run", "file/deep/run", "x" * 300, "nul\0"])
def test_a_place_that_cannot_be_made_is_met_before_the_data_are_read(tmp_path, no_data, name):
    (tmp_path / "file").touch()
    refused(lambda: run(tmp_path / name), tmp_path / name)
    assert content(tmp_path).keys() == {Path("file")}


def test_a_place_that_cannot_be_written_is_met_before_the_data_are_read(tmp_path, no_data, monkeypatch):
    def refuse(**keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("thalweg.run.run_folder.tempfile.TemporaryFile", refuse)
    refused(lambda: run(tmp_path / "deep" / "run"), tmp_path / "deep" / "run", "Permission denied")
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    "name",
    ["plan.json", "manifest.json", "checkpoints/step-00000004/manifest.json", "model.safetensors", "metrics.jsonl"],
)
def test_what_lies_there_under_a_runs_names_is_not_overwritten(tmp_path, no_data, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).touch()
    refused(lambda: run(tmp_path / "run"), tmp_path / "run" / name.split("/")[0], "must not be there yet")


def test_a_folder_of_other_files_is_no_place_for_a_run(tmp_path, no_data):
    """Mutant: what a killed start leaves refused too; here the data are asked for, which there are not."""
    (tmp_path / "run" / "monitor").mkdir(parents=True)
    (tmp_path / "run" / ".thalweg-new-00000000-0123456789abcdef-config.json").touch()
    (tmp_path / "run" / "slurm-17.out").touch()
    with pytest.raises(pytest.fail.Exception, match="the data were read first"):
        run(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").touch()
    refused(lambda: run(tmp_path / "run"), tmp_path / "run", "must be new, empty or hold a run, and holds 'notes.txt'")


def test_a_refusal_after_the_claim_leaves_what_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".notes").write_text("mine")

    def fail(self):
        (self.folder / "plan.json").write_text("{}")
        (self.folder / "tensorboard").mkdir()
        raise UserError("no")

    monkeypatch.setattr(Trainer, "fit", fail)
    before = content(folder)
    refused(lambda: run(folder), None, "no")
    assert content(folder) == before
    refused(lambda: run(tmp_path / "deep" / "run"), None, "no")
    assert not (tmp_path / "deep").exists()


# Stopped --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["read_dataset", "check_parts", "_trainer", "Trainer.fit"])
def test_stopped_before_the_first_checkpoint_nothing_is_kept(tmp_path, monkeypatch, moment):
    def stop(*args, **keywords):
        raise KeyboardInterrupt

    target = Trainer if "." in moment else module
    monkeypatch.setattr(target, moment.rpartition(".")[2], stop)
    with pytest.raises(NothingBegun, match="nothing is kept; the same command starts anew") as caught:
        run(tmp_path / "deep" / "run")
    assert caught.value.signum == signal.SIGINT
    assert content(tmp_path) == {}


@pytest.mark.parametrize("moment", ["read_dataset", "_trainer", "finish"])
def test_a_run_that_had_begun_is_kept_when_stopped(whole, tmp_path, monkeypatch, moment):
    folder = tmp_path / "run"
    shutil.copytree(whole / "named", folder)
    (folder / "manifest.json").unlink()

    def stop(*args, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, moment, stop)
        with pytest.raises(Interrupted, match="is kept") as caught:
            run(folder, resume=True)
    assert getattr(caught.value, "resumable", True)
    run(folder, resume=True)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("moment", "signum"), [("read_dataset", signal.SIGINT), ("_trainer", signal.SIGTERM)])
def test_a_signal_before_the_first_step_is_one_line(forked, tmp_path, signum, moment):
    def slow(*args, **keywords):
        print("ready", file=sys.stderr, flush=True)  # noqa: T201
        time.sleep(60)

    words = ["train", "two-moons", "--steps", "4", "-o", "deep/run", *TINY]
    child = forked(*words, change=lambda: setattr(module, moment, slow))
    while child.said() != "ready\n":
        time.sleep(0.01)
    os.kill(child.pid, signum)
    code, out, err = child.wait()
    assert (code, out) == (128 + signum, "")
    assert err.removeprefix("ready\n") == (
        "thalweg: stopped before the first checkpoint, nothing is kept; the same command starts anew\n"
    )
    assert content(tmp_path) == {}


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (Path(thalweg.__file__).parent / "recipes").glob("*")))
def test_every_recipe_trains_on_data_of_its_kind(recipe, tmp_path, word_files):
    """One step of each, on colour where it takes images."""
    if recipe == "words":
        small = ["train.batch_size=4", "train.precision=fp32", "energy.slots=64"]
        request = Request(data=str(word_files / "words.txt"), recipe=recipe, steps=1, overrides=small)
        assert fit(request, tmp_path / "run", tensorboard=False).energy(["a"]).isfinite().all()
        return
    image = "image" in recipe
    rows = np.random.default_rng(0).random((40, 3, 8, 8) if image else (40, 2), dtype=np.float32)
    if recipe == "conditional-labels":  # the last column is the label
        rows[:, 1] = rows[:, 1] > 0.5
    np.savez(tmp_path / "rows.npz", x=rows, y=np.arange(40) % 10)
    chains = "objective.generative.num_steps=2" if "jem" in recipe else "objective.num_steps=2"
    small = ["train.batch_size=4", "train.precision=fp32", *([chains] if "pcd" in recipe else [])]
    request = Request(data=str(tmp_path / "rows.npz"), recipe=recipe, steps=1, overrides=small)
    bundle = fit(request, tmp_path / "run", tensorboard=False)
    assert bundle.energy(torch.from_numpy(rows[:2])).isfinite().all()


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    """What holds the folder is a lock of the system, so it is gone with its process, however that ended."""
    run(tmp_path / "run", overrides=TINY, steps=2)
    (tmp_path / "run" / store.MANIFEST).unlink()
    code = "import sys, fcntl, os; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(1, flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(UserError, match="another process is training there"):
            run(tmp_path / "run", resume=True, steps=2)
        other.kill()
    run(tmp_path / "run", resume=True, steps=2)
    assert (tmp_path / "run" / store.MANIFEST).is_file()


def test_the_mixture_reads_no_more_of_a_stored_set_than_it_is_fitted_to(plane, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(900, 2)).astype(np.float32))
    x, seen = NpyRows(tmp_path / "x.npy"), []
    read = x.read
    monkeypatch.setattr(x, "read", lambda rows: seen.extend(rows.tolist()) or read(rows))
    monkeypatch.setattr("thalweg.energy.density.factor_mixture.ROWS", 300)
    assert len(fit_mixture_prior(plane, x).means) == 2
    assert seen == [*range(0, 900, 3)]
