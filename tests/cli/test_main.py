"""The command line as people meet it: every command on tiny data, and bad input as one line with exit code 2."""

import copy
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import thalweg
from thalweg.core.rng import generator
from thalweg.data import catalog
from thalweg.data.toy import TOYS
from thalweg.energy.noise_conditional.residual import ResidualEnergy

TINY = ["train.batch_size=16", "train.precision=fp32", "energy.embed=8"]
VECTOR = [*TINY, "energy.width=16", "energy.num_blocks=1", "data.limit=300"]  # as the run `moons` was trained
PCD = ["train.batch_size=16", "energy.width=8", "objective.buffer_size=32", "objective.num_steps=2"]


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


def count(monkeypatch, counts, owner, name, wanted=lambda *args: True):
    """Count the calls of a function that are wanted."""
    original = getattr(owner, name)

    def counted(*args, **keywords):
        counts[name] += wanted(*args)
        return original(*args, **keywords)

    monkeypatch.setattr(owner, name, counted)


def test_train_to_a_bundle_and_its_report_end_to_end(thalweg_command, tmp_path, monkeypatch):
    words = ["train", "two-moons", "--steps", "20", "-o", "run", "--json", "--checkpoint-every", "8", *VECTOR]
    counts = Counter()
    count(monkeypatch, counts, ResidualEnergy, "__init__")
    count(monkeypatch, counts, copy, "deepcopy", lambda x, *memo: isinstance(x, ResidualEnergy))
    count(monkeypatch, counts, catalog, "split")
    count(monkeypatch, counts, catalog, "_digest")
    code, out, err = thalweg_command(*words)
    assert code == 0, err
    # copies: the average; to time steps on a network that is thrown away, with an average of its own; and two for the
    # trial of a second derivative, in the dry run and in the training
    assert counts == {"__init__": 1, "deepcopy": 5, "split": 1, "_digest": 1}
    result = json.loads(out)  # one object, nothing else, on standard output
    assert out.count("\n") == 1
    assert result["run"] == "run"
    assert result["training"]["steps"] == 20
    assert result["data"]["num_train"] == 300
    assert result["figures"]["likelihood"]["nats"] < 10
    run = tmp_path / "run"
    made = {path.name for path in run.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "manifest.json",
        "report.html",
        "evaluation.json",
        "preview.png",
    } <= made
    assert "thalweg train two-moons --steps 20 -o run" in (run / "report.html").read_text()
    assert json.loads((run / "config.json").read_text())["command"].startswith("thalweg train two-moons")
    assert any("two-moons, generated" in line for line in err)
    assert err[-1].startswith("done: run  (report.html, preview.png, try: thalweg sample run")
    x = TOYS["two-moons"].sample(5, generator(0, "x"))
    assert thalweg.load(run).log_prob(x).shape == (5,)

    before = files(run)
    code, out, err = thalweg_command(*words)
    assert (code, out) == (2, "")
    assert err == [
        "thalweg: run: must not hold a run yet; add --resume to go on with it, or name another folder with -o"
    ]
    code, out, err = thalweg_command(*words, "--resume")
    assert code == 0
    assert err[0] == "run is complete; nothing left to do"
    assert "figures" not in json.loads(out)
    assert files(run) == before

    code, out, err = thalweg_command("evaluate", "run", "-n", "40", "--json", "--seed", "3")
    assert code == 0
    assert json.loads(out)["about"]["seed"] == 3
    assert err[-1] == "report in run/report.html"


def test_train_on_a_file_of_few_rows_leaves_a_bundle_and_says_why_no_report(thalweg_command, tmp_path):
    np.savetxt(tmp_path / "rows.csv", np.random.default_rng(0).normal(size=(30, 3)), delimiter=",")
    code, _, err = thalweg_command("train", "rows.csv", "--no-header", "--steps", "3", *VECTOR[:-1])
    assert code == 0, err
    assert any(
        line.startswith("no report: runs/rows-dual: must have 20 held-out rows or more, and has 3") for line in err
    )
    assert thalweg.load(tmp_path / "runs" / "rows-dual").log_prob(torch.zeros(2, 3)).shape == (2,)


def test_without_a_report_json_says_why(thalweg_command, tmp_path):
    np.save(tmp_path / "huge.npy", np.random.default_rng(0).normal(size=(400, 2)) * 1e30)
    code, out, err = thalweg_command("train", "huge.npy", "--steps", "3", "--json", *VECTOR[:-1])
    assert code == 0, err
    result = json.loads(out)
    said = [line for line in err if line.startswith("no report: ")]
    assert (result["figures"], [f"no report: {result['no_report']}"]) == (None, said)


def test_a_resumed_run_evaluates_with_its_own_seed(thalweg_command, tmp_path, monkeypatch):
    from thalweg.cli import train

    words = ["train", "two-moons", "--steps", "3", "-o", "run", *VECTOR]
    assert thalweg_command(*words, "--seed", "5", "--no-report")[0] == 0
    (tmp_path / "run" / "manifest.json").unlink()
    monkeypatch.setattr(train, "evaluate_run", lambda *args, seed, **given: {"seed": seed})
    code, out, err = thalweg_command("train", "two-moons", "-o", "run", "--resume", "--json")
    assert code == 0, err
    assert json.loads(out)["figures"]["seed"] == 5
    assert not any("no checkpoint yet" in line for line in err)


def test_a_resumed_run_without_a_checkpoint_says_that_it_begins_anew(thalweg_command, runs, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("config.json", "plan.json"):
        shutil.copy(runs / "moons" / name, tmp_path / "run")
    code, _, err = thalweg_command("train", "two-moons", "-o", "run", "--resume", "--no-report")
    assert code == 0, err
    assert "run holds no checkpoint yet: it begins at step 0" in err


def test_a_resumed_run_refuses_what_would_have_no_effect(thalweg_command, runs, tmp_path):
    shutil.copytree(runs / "moons", tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()  # as if it had been stopped
    base = ["train", "two-moons", "-o", "run", "--resume"]
    for words, named in (
        (["energy.width=32"], "overrides="),
        (["--steps", "13"], "steps=13: "),
        (["--seed", "3"], "seed=3: "),
    ):
        code, out, err = thalweg_command(*base, *words)
        assert (code, out, len(err)) == (2, "", 1)
        assert err[0].startswith(f"thalweg: {named}")
        shutil.copy(runs / "moons" / "manifest.json", tmp_path / "run")  # and so does a run that is complete
        assert thalweg_command(*base, *words) == (2, "", err)
        (tmp_path / "run" / "manifest.json").unlink()
    assert thalweg_command("train", "rings", "-o", "run", "--resume")[2][0].startswith(
        "thalweg: run: must hold a run on rings, and holds one on two-moons"
    )
    code, _, err = thalweg_command(*base, "--steps", "12", *VECTOR, "--no-report")
    assert code == 0, err
    same = (tmp_path / "run" / "model.safetensors").read_bytes() == (runs / "moons" / "model.safetensors").read_bytes()
    assert same


@pytest.mark.parametrize("name", ["moons", "digits", "pcd"])
def test_sample_as_picture_and_as_array(thalweg_command, runs, tmp_path, name):
    code, out, err = thalweg_command("sample", runs / name, "-n", "5", "-o", "s.png", "--num-steps", "3")
    assert (code, out, err) == (0, "", ["5 samples in s.png"])
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size[0] > 8
    words = ["sample", runs / name, "-n", "5", "--npy", "s.npy", "--num-steps", "3", "--seed", "4", "--json"]
    code, out, err = thalweg_command(*words)
    assert code == 0, err
    result = json.loads(out)
    x = np.load(tmp_path / "s.npy")
    assert result == {"samples": 5, "file": "s.npy", "shape": list(x.shape), "seed": 4}
    assert x.dtype == np.float32
    assert x.shape[1:] == ((1, 8, 8) if name == "digits" else (2,))
    assert np.array_equal(x, thalweg.load(runs / name).sample(5, seed=4, num_steps=3).numpy())


def test_a_picture_and_an_array_of_the_same_samples(thalweg_command, runs, tmp_path):
    """Fault: with --npy the picture that -o names was not drawn, without a word."""
    words = ["sample", runs / "moons", "-n", "4", "-o", "a.png", "--npy", "b.npy", "--num-steps", "3", "--json"]
    code, out, err = thalweg_command(*words)
    assert (code, err) == (0, ["4 samples in b.npy", "4 samples in a.png"])
    assert json.loads(out) == {"samples": 4, "file": "b.npy", "picture": "a.png", "shape": [4, 2], "seed": 0}
    assert np.load(tmp_path / "b.npy").shape == (4, 2)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
    assert not (tmp_path / "samples.png").exists()


def test_score_to_csv_parquet_and_npy(thalweg_command, runs, tmp_path):
    import pandas as pd

    x = TOYS["two-moons"].sample(9, generator(0, "x"))
    np.save(tmp_path / "x.npy", torch.cat([x, torch.full((1, 2), 9.0)]).numpy())
    code, out, err = thalweg_command("score", runs / "moons", "x.npy", "-o", "s.csv", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["rows"] == 10
    assert result["flagged"] >= 1
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert list(rows[0]) == ["name", "energy", "log_prob", "p_value", "flag"]
    assert rows[9]["flag"] == "True"
    scores = thalweg.load(runs / "moons").score(np.load(tmp_path / "x.npy"))
    assert [float(row["energy"]) for row in rows] == pytest.approx(scores["energy"].tolist(), rel=1e-6)
    assert thalweg_command("score", runs / "moons", "x.npy", "-o", "s.parquet")[0] == 0
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert table["p_value"].tolist() == pytest.approx(scores["p_value"].tolist())
    assert thalweg_command("score", runs / "moons", "x.npy", "-o", "s.npy")[0] == 0
    assert np.array_equal(np.load(tmp_path / "s.npy"), scores["energy"].numpy())
    code, _, err = thalweg_command("score", runs / "pcd", "x.npy", "-o", "u.csv")
    assert code == 0, err
    assert "log_prob" not in (tmp_path / "u.csv").read_text()


def test_one_row_is_told_as_one(thalweg_command, runs, tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((1, 2), np.float32))
    code, _, err = thalweg_command("score", runs / "moons", "one.npy")
    assert code == 0
    assert err[-1].startswith("1 row in scores.csv, ")


def test_score_names_images_and_survives_huge_numbers(thalweg_command, runs, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("b", "a"):
        Image.fromarray(np.full((8, 8), 100, np.uint8)).save(tmp_path / "images" / f"{name}.png")
    assert thalweg_command("score", runs / "digits", "images", "-o", "s.csv")[0] == 0
    assert [row["name"] for row in csv.DictReader((tmp_path / "s.csv").read_text().splitlines())] == ["a.png", "b.png"]
    np.save(tmp_path / "huge.npy", np.full((2, 2), 1e30, np.float32))
    code, out, err = thalweg_command("score", runs / "moons", "huge.npy", "-o", "h.csv", "--json")
    assert code == 0, err
    assert json.loads(out)["mean_energy"] is None
    assert json.loads(out)["flagged"] == 2


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["score"], ["evaluate"], ["bench"]])
def test_help_has_an_example(thalweg_command, command):
    code, out, err = thalweg_command(*command, "--help")
    assert (code, err) == (0, [])
    assert "Usage" in out
    if command:
        assert "Example" in out


@pytest.mark.parametrize("words", [("--threads", "100000"), ("--batch", "99999999999"), ("--batch", "0")])
def test_bench_refuses_what_no_machine_can_do(thalweg_command, words):
    """So many threads ended in a segmentation fault, so many chains in a traceback."""
    code, _, err = thalweg_command("bench", "--nets", "mlp", "--rounds", "1", "--no-dual", *words)
    assert code == 2
    assert len(err) == 1
    assert words[0] in err[0]


def test_bench_measures_once_what_is_given_twice(thalweg_command):
    """Else a row's share of the roofline would be of another measurement's."""
    twice = [*["--nets", "mlp"] * 2, *["--batch", "4"] * 2, *["--threads", "1"] * 2]
    code, out, _ = thalweg_command("bench", *twice, "--rounds", "1", "--no-dual")
    assert code == 0
    assert out.startswith("| net | batch |")
    assert out.count("| roofline |") == 1


def test_bench_as_json(thalweg_command):
    words = ["bench", "--nets", "mlp", "--batch", "4", "--threads", "1", "--rounds", "1"]
    code, out, err = thalweg_command(*words, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert {"tutorial", "thalweg fp32", "roofline"} <= {row["name"] for row in rows}
    assert all(row["cpu_ms"] > 0 for row in rows)
    code, _, err = thalweg_command("bench", "--nets", "cnm")
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith("thalweg: --nets='cnm': ")


def test_version_and_no_arguments(thalweg_command):
    assert thalweg_command("--version")[:2] == (0, f"{thalweg.__version__}\n")
    code, out, err = thalweg_command()
    assert code == 2
    assert "Usage" in out + "\n".join(err)


def test_work_that_fails_is_one_line_and_exit_code_1(thalweg_command, tmp_path):
    words = ["train", "two-moons", "--steps", "40", "-o", "run", *VECTOR, "train.learning_rate=1e30"]
    code, out, err = thalweg_command(*words, "train.clip=null")
    assert (code, out) == (1, "")
    assert "is not finite" in err[-1]
    assert err[-1].startswith("thalweg: ")
    code, _, err = thalweg_command(*words, "train.learning_rate=1e-3", "--no-report")
    assert code == 0, err  # met in a trial step, it leaves no run behind in the folder
    assert not any("Traceback" in line for line in err)


# Bad input -----------------------------------------------------------------------------------------------------------


MOONS, DIGITS = object(), object()
T = ["train", "two-moons", "--steps", "2", "--no-report", "-o", "run"]
REFUSED = {
    "no picture": (["train", "text.png", "--steps", "2"], "text.png"),
    "an empty folder": (["train", "empty", "--steps", "2"], "empty"),
    "one image": (["train", "single", "--steps", "2"], "single"),
    "data for a named set": ([*T, "--data", "plane.npy"], "data"),
    "unknown recipe": ([*T, "--recipe", "duall"], "recipe"),
    "recipe of another kind": ([*T, "--recipe", "dual-image"], "energy.type"),
    "odd recipe file": ([*T, "--recipe", "odd.yaml"], "enrgy"),
    "broken recipe file": ([*T, "--recipe", "broken.yaml"], "broken.yaml"),
    "sampler of another kind": ([*T, "sampler={type: 'thalweg.sampler.langevin:ULA', step_size: 0.1}"], "sampler.type"),
    "no objective": ([*T, "objective.type=thalweg.energy.networks.mlp:MLPEnergy"], "objective.type"),
    "budget beside an override": ([*T, "train.minutes=1"], "--steps and train.minutes"),
    "long seed": ([*T, "--seed", str(2**64)], "Invalid value for '--seed'"),
    "negative seed of samples": (["sample", MOONS, "--seed", "-1"], "Invalid value for '--seed'"),
    "metrics of the wrong kind": ([*T, "-o", "odd"], "odd/metrics.jsonl"),
    "no steps": (["train", "two-moons", "--steps", "0"], "train.steps"),
    "small buffer": ([*T, "--recipe", "pcd", "objective.buffer_size=3"], "buffer_size"),
    "run folder under a file": ([*T, "-o", "plane.npy/run"], "plane.npy/run"),
    "unknown option": (["train", "two-moons", "--stepz", "3"], "No such option: --stepz"),
    "unknown command": (["trian"], "No such command 'trian'"),
    "argument left out": (["score", MOONS], "Missing argument"),
    "sample of a file": (["sample", "plane.npy"], "plane.npy"),
    "sample of a damaged run": (["sample", "damaged"], "damaged/model.safetensors"),
    "sample to a folder": (["sample", MOONS, "-o", "single.png"], "single.png"),
    "sample to another kind": (["sample", MOONS, "-o", "s.txt"], "s.txt"),
    "array to another kind": (["sample", MOONS, "--npy", "s.png"], "s.png"),
    "score of a missing file": (["score", MOONS, "nothing.npy"], "nothing.npy"),
    "score of another width": (["score", MOONS, "three.npy"], "three.npy"),
    "score of colours": (["score", DIGITS, "colour.npy"], "colour.npy"),
    "alpha": (["score", MOONS, "plane.npy", "--alpha", "2"], "--alpha=2.0: must be in [0, 1]"),
    "alpha that is no number": (["score", MOONS, "plane.npy", "--alpha", "nan"], "--alpha=nan: must be in [0, 1]"),
    "evaluation of few samples": (["evaluate", MOONS, "-n", "3"], "Invalid value for '-n'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line_exit_code_2_and_nothing_half_written(thalweg_command, place, runs, name, monkeypatch):
    """One of each kind; the functions' own tests have the rest, and test_messages.py the wording."""
    monkeypatch.delenv("THALWEG_DATA", raising=False)
    (place / "single.png").mkdir()
    words, named = REFUSED[name]
    words = [{id(MOONS): runs / "moons", id(DIGITS): runs / "digits"}.get(id(word), word) for word in words]
    before = files(place), files(runs)
    code, out, err = thalweg_command(*words)
    assert code == 2, err
    assert out == ""
    lines = [line for line in err if not line.startswith(("data: ", "2 steps planned"))]  # work that had begun
    assert len(lines) == 1, err
    assert lines[0].startswith(f"thalweg: {named}")
    assert (files(place), files(runs)) == before


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["train", ""], "DATA"),
        (["score", "run", ""], "DATA"),
        (["detect", "fit", "", "-o", "new"], "TABLE"),
        (["detect", "score", "run", ""], "TABLE"),
        (["evaluate", ""], "RUN"),
        (["rerank", "fit", "real", "", "-o", "new"], "GENERATED"),
        (["inpaint", "run", "--image", ""], "--image"),
        (["train", "two-moons", "--steps", "1", "-o", ""], "--out"),
    ],
)
def test_an_empty_name_is_not_the_working_folder(thalweg_command, tmp_path, words, where):
    message = f"thalweg: {where}: must not be empty; give a name or a path; . is this folder"
    assert thalweg_command(*words) == (2, "", [message])
    assert files(tmp_path) == set()


def test_another_run_in_that_place_still_works_after_a_refusal(thalweg_command, place):
    """A refused run leaves no folder behind that would refuse the next."""
    assert thalweg_command(*T, "--recipe", "pcd", "objective.buffer_size=3")[0] == 2
    code, _, err = thalweg_command(*T, "--recipe", "pcd", *PCD)
    assert code == 0, err


@pytest.mark.parametrize(
    ("theirs", "after"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_sleep_soon_unless_the_user_wants_otherwise(thalweg_command, monkeypatch, theirs, after):
    """Set before the command, and so before torch: `thalweg --version` in a fresh process does not import it."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    assert thalweg_command("--version")[0] == 0
    assert os.environ.get("GOMP_SPINCOUNT") == after


# Streams and signals -------------------------------------------------------------------------------------------------


def command(words, cwd, **streams):
    """The command in a process of its own, to the very end of the interpreter: (exit code, standard error)."""
    code = "import thalweg.cli.main; thalweg.cli.main.main()"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        check=False,
        timeout=120,
        **streams,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["sample", "-n", "3", "--json"]])
def test_a_reader_that_has_gone_is_no_fault(runs, tmp_path, words):
    words = [*words[:1], runs / "moons", *words[1:], "--num-steps", "2"] if words[0] == "sample" else words
    read, write = os.pipe()
    os.close(read)
    try:
        code, err = command(words, tmp_path, stdout=write)
    finally:
        os.close(write)
    assert (code, err) == (0, "3 samples in samples.png\n" if words[0] == "sample" else "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_result_that_finds_no_room_is_one_line(runs, tmp_path):
    with open("/dev/full", "w") as full:
        code, err = command(["sample", runs / "moons", "-n", "3", "--json", "--num-steps", "2"], tmp_path, stdout=full)
    assert code == 1
    assert err.splitlines()[0] == "3 samples in samples.png"
    assert err.splitlines()[1:] == [
        "thalweg: standard output: No space left on device, so the result could not be written; the work itself is done"
    ]
    with open("/dev/full", "w") as full:
        code, err = command(["--version"], tmp_path, stdout=full)
    assert code == 2
    assert len(err.splitlines()) == 1


def test_stopped_in_the_evaluation_the_run_is_whole(thalweg_command, tmp_path, monkeypatch):
    signum = signal.SIGTERM
    monkeypatch.setattr("thalweg.evaluate.suite.evaluate_bundle", lambda *_, **__: os.kill(os.getpid(), signum))
    before = signal.getsignal(signum)
    code, out, err = thalweg_command("train", "two-moons", "--steps", "3", "-o", "a run", *VECTOR)
    assert (code, out) == (128 + signum, "")
    assert err[-1] == (
        "thalweg: stopped in the evaluation; the run is complete, its report is made by thalweg evaluate 'a run'"
    )
    assert thalweg.load(tmp_path / "a run").shape == (2,)
    assert signal.getsignal(signum) == before
    code, _, err = thalweg_command("evaluate", "a run")
    assert code == 128 + signum
    assert err[-1] == "thalweg: stopped before the end; nothing is half-written"
