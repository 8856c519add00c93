"""What strangers do to a re-ranker: wrong arguments, wrong folders, full disks, changed files; each one line."""

import functools
import os
import signal

import numpy as np
import pytest
import torch

import thalweg
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.rerank.candidates import read_candidates
from thalweg.apps.rerank.reranker import EnergyReranker
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core import store, temporary
from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.rng import generator

QUICK = RatioSettings(ensemble=2, steps=20, hidden=8, channels=(4, 8), batch=32, view="pixels", noise=0.3)


def brightness(x):
    return x.flatten(1).sum(1)


def images(n=60, *, channels=1, stream="images"):
    return torch.rand(n, channels, 8, 8, generator=generator(0, stream))


@pytest.fixture(scope="module")
def fitted():
    return EnergyReranker(settings=QUICK).fit(images(80), 0.6 * images(80, stream="dark"))


@pytest.fixture
def call(call, tmp_path, fitted):
    """thalweg rerank … in a folder with judge/ and x.npy: (exit code, the JSON object or None, lines of errors)."""
    fitted.save_pretrained(tmp_path / "judge")
    np.save(tmp_path / "x.npy", images(9).numpy())
    return functools.partial(call, "rerank")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("energy", lambda x: [1.0] * len(x)),
        ("features", lambda x: x[:2].flatten(1)),
        ("features", lambda x: [1]),
        ("features", lambda x: x.flatten(1) / 0),
        ("features", 3),
        ("variety", "foo"),
        ("settings", 3),
        ("seed", "x"),
    ],
)
def test_arguments_are_named(argument, value):
    with pytest.raises(UserError) as error:
        EnergyReranker(**{"energy": brightness, argument: value}).rank(images(9), 3)
    assert error.value.argument == argument


@pytest.mark.parametrize("options", [{"variety": "foo"}, {"settings": 3}, {"seed": -1}, {"features": 3}])
def test_arguments_of_the_constructor_are_refused_there(options):
    with pytest.raises(UserError, match=f"^{next(iter(options))}"):
        EnergyReranker(brightness, **options)


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert len(EnergyReranker(brightness).rank(images(9), np.int64(3))) == 3
    for size in (2.5, True, "2"):
        with pytest.raises(UserError, match=r"^size="):
            EnergyReranker(brightness).best_of(images(9), size)


def test_true_colour_and_what_is_not(call, tmp_path):
    real, made = images(40, channels=3), 0.5 * images(40, channels=3, stream="dark")
    for name, x in (("real", real), ("made", made)):
        np.save(tmp_path / f"{name}.npy", (255 * x).byte().permute(0, 2, 3, 1).numpy())  # channels last
    code, _, err = call("fit", "real.npy", "made.npy", "-o", "colour", "--steps", 20, "--ensemble", 2)
    assert code == 0, err
    assert call("colour", "made.npy", "--keep", 3, "-o", "best")[0] == 0
    assert len(read_candidates(tmp_path / "best").x[0]) == 3
    code, _, err = call("colour", "x.npy")
    assert (code, len(err)) == (2, 1)
    assert "must have the shape (N, 3, 8, 8); it has (9, 1, 8, 8)" in err[0]


def test_rows_in_a_table(call, tmp_path):
    g = generator(0, "rows")
    for name, spread in (("real", 1), ("made", 2), ("rows", 2)):
        rows = spread * torch.randn(40, 2, generator=g).numpy()
        np.savetxt(tmp_path / f"{name}.csv", rows, delimiter=",", header="a,b", comments="")
    code, _, err = call("fit", "real.csv", "made.csv", "-o", "rows", "--steps", 20, "--ensemble", 2)
    assert code == 0, err
    code, told, _ = call("rows", "rows.csv", "--keep", 4, "-o", "best.npy", "--json")
    assert (code, len(told["kept"])) == (0, 4)
    assert np.load(tmp_path / "best.npy").shape == (4, 2)
    code, _, err = call("rows", "rows.png")
    assert (code, len(err)) == (2, 1)
    code, _, err = call("judge", "rows.csv")  # a judge of images
    assert (code, len(err)) == (2, 1)
    assert "rows.csv: must be a folder of images or a file of .npy" in err[0]
    assert ", .csv" not in err[0]


def test_what_is_wrong_is_said_before_the_ranking(call, tmp_path, monkeypatch):
    np.save(tmp_path / "nan.npy", np.full((3, 8, 8), np.nan, np.float32))
    (tmp_path / "t.txt").write_text("none")
    (tmp_path / "plain").mkdir()
    monkeypatch.setattr(EnergyReranker, "_score", None)
    for words, message in (
        (("nope", "x.npy"), "nope: no such folder; check the spelling and the working directory; `thalweg rerank fit"),
        (("plain", "x.npy"), "`thalweg rerank fit REAL GENERATED -o plain` makes a re-ranker"),
        (("judge", "x.npy", "--keep", 10), "keep=10: must be a whole number in [1, 9]"),
        (("judge", "x.npy", "--variety", "most"), "variety='most'"),
        (
            ("judge", "x.npy", "--table", "judge/config.csv"),
            "judge/config.csv: must lie outside of the re-ranker's folder",
        ),
        (("judge", "x.npy", "-o", "judge/best"), "judge/best: must lie outside"),
        (("judge", "nan.npy", "--skip-bad"), "must hold a row that is finite"),
        (("judge", "t.txt"), "t.txt: must be a folder of images or a file of .npy, .npz, .png"),
    ):
        code, _, err = call(*words)
        assert (code, err[-1:] and message in err[-1], len(err)) == (2, True, 1), err


def test_networks_beyond_the_rows(call, tmp_path):
    np.save(tmp_path / "real.npy", images(40).numpy())
    np.save(tmp_path / "made.npy", images(20, stream="dark").numpy())
    code, _, err = call("fit", "real.npy", "made.npy", "-o", "new", "--ensemble", 9999)
    assert (code, len(err)) == (2, 1)
    assert "ensemble=9999: must be at most 20, the rows of made.npy" in err[0]


def test_a_refit_says_that_it_replaces(call, tmp_path):
    np.save(tmp_path / "made.npy", 0.5 * images(40).numpy())
    np.save(tmp_path / "real.npy", images(40, stream="dark").numpy())
    words = ("fit", "real.npy", "made.npy", "--steps", 5, "--ensemble", 2, "--view", "pixels", "--noise", 0.3)
    assert any("judge: replaces the re-ranker that was there" in line for line in call(*words, "-o", "judge")[2])
    assert not any("replaces" in line for line in call(*words, "-o", "new")[2])


def test_fewer_distinct_candidates_than_are_to_be_kept_is_said(caplog):
    x = images(1).expand(10, -1, -1, -1)
    EnergyReranker(brightness).rank(x, 1)
    assert not caplog.records
    assert EnergyReranker(brightness, variety="none").rank(x, 5).tolist() == [0, 1, 2, 3, 4]
    assert [r.message for r in caplog.records] == ["keep=5: of the 10 only 1 differ bit by bit; copies fill the rest"]


def test_copies_that_fill_up_are_said(call, tmp_path, caplog):
    np.save(tmp_path / "same.npy", images(1).expand(10, -1, -1, -1).numpy())
    code, told, _ = call("judge", "same.npy", "--keep", 3, "--json")
    assert (code, told["indices"]) == (0, [0, 1, 2])
    assert [r.message for r in caplog.records] == ["keep=3: of the 10 only 1 differ bit by bit; copies fill the rest"]


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_nothing_and_the_repeat_works(call, tmp_path, monkeypatch, there):
    """Mutant: the pictures straight into the folder; then two stay, and the repeat is refused. Or
    the table first, which then promises files that are not there."""
    if there:
        (tmp_path / "best").mkdir()
    write = store.write_bytes
    for full in ("3-", "ranked"):  # midway in the folder; or at the table, when the folder is filled

        def failing(path, data=b"", full=full):
            if path.name.startswith(full):
                raise OSError(28, "No space left on device", str(path))
            write(path, data)

        monkeypatch.setattr(store, "write_bytes", failing)
        monkeypatch.setattr("thalweg.data.score_table.whole_file", failing)
        code, _, err = call("judge", "x.npy", "--keep", 5, "-o", "best")
        assert code != 0
        assert len(err) == 1
        assert "No space left" in err[0]
        assert sorted(p.name for p in tmp_path.iterdir()) == (["best"] if there else []) + ["judge", "x.npy"]
        assert not there or not list((tmp_path / "best").iterdir())
    monkeypatch.undo()


def test_what_a_killed_process_left_aside_is_no_hindrance(call, tmp_path):
    left = tmp_path / "best" / f".thalweg-new-{temporary.boot()}-0123456789abcdef-kept"
    left.mkdir(parents=True)
    (left / "1-0.png").write_bytes(b"half")
    assert call("judge", "x.npy", "--keep", 2, "-o", "best")[0] == 0
    assert len(list((tmp_path / "best").glob("[!.]*"))) == 2
    assert (left / "1-0.png").exists()  # of another container, perhaps: the user's folder is not tidied


def settings(**changed):
    return lambda config, weights: config["settings"].update(changed)


def top(**changed):
    return lambda config, weights: config.update(changed)


@pytest.mark.parametrize(
    "change",
    [
        *(top(shape=s) for s in ([1, 8, -1], [1, 16, 16], [1, 10**9, 10**9], [64], [], "x", None, [1, 8.5, 8])),
        *(
            settings(**s)
            for s in ({"ensemble": 10**9}, {"hidden": 10**9}, {"channels": []}, {"steps": "x"}, {"new": 1})
        ),
        settings(view="auto"),
        settings(noise="auto"),
        top(variety="foo"),
        top(variety=["foo"]),
        top(seed="x"),
        top(check=[1]),
        lambda config, weights: config["check"].update(loss="x"),
        lambda config, weights: config.pop("settings"),
        lambda config, weights: weights["ensemble.0.head.weight"].fill_(torch.nan),
        lambda config, weights: weights["deviation"].zero_(),
        lambda config, weights: weights.update(scale=weights["scale"].half()),
        lambda config, weights: weights.clear(),
    ],
)
def test_a_judge_that_was_changed_and_sealed_again(fitted, tmp_path, change):
    folder = tmp_path / "judge"
    fitted.save_pretrained(folder)
    config, weights = store.read_json(folder / "config.json"), store.read_tensors(folder / "model.safetensors")
    change(config, weights)
    store.write_json(folder / "config.json", config)
    store.write_tensors(folder / "model.safetensors", weights)
    store.seal(folder)
    with pytest.raises(
        DamagedFile, match=r"config\.json: must describe the re-ranker whose weights are beside it \(.*again$"
    ):
        thalweg.load(folder)


def test_a_detector_is_no_judge(call, tmp_path):
    x = torch.randn(60, 2, generator=generator(0, "table")).numpy()
    DetectorBundle(thalweg.EnergyDetector().fit(x)).save_pretrained(tmp_path / "detector")
    code, _, err = call("detector", "x.npy")
    assert (code, err) == (
        2,
        [
            "thalweg: detector: must hold a re-ranker, and holds a detector; "
            "a detector is read by `thalweg detect score`"
        ],
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("there", [False, True])
def test_a_stop_leaves_nothing(call, tmp_path, monkeypatch, signum, there):
    """During the ranking, and when half of the pictures are written."""
    write = store.write_bytes

    def stopped(path, *rest):
        if getattr(path, "name", "3-").startswith("3-"):
            os.kill(os.getpid(), signum)
        return write(path, *rest)

    def energies(self, x, featured):
        return stopped(self)

    if there:
        monkeypatch.setattr(store, "write_bytes", stopped)
    else:
        monkeypatch.setattr(EnergyReranker, "_score", energies)
    code, _, err = call("judge", "x.npy", "--keep", 5, "-o", "best")
    assert (code, err) == (128 + signum, ["thalweg: stopped before the end; nothing is half-written"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["judge", "x.npy"]
