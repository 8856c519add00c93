"""Tables through every command: columns by their names, one rule for the first line, columns far from zero."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import thalweg
from thalweg.core.errors import UserError
from thalweg.run.fit import Request, fit

TINY = ["train.batch_size=32", "train.precision=fp32", "energy.width=16", "energy.num_blocks=1", "energy.embed=8"]
NAMES = ["northing", "strain", "load"]
MEAN, SPREAD = np.array([5932154.0, 0.0, 300.0]), np.array([0.05, 1.0, 20.0])


def normal(n=300, seed=0):
    return pd.DataFrame(MEAN + SPREAD * np.random.default_rng(seed).normal(size=(n, 3)), columns=NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on a table, `run`, and one on the same numbers without names, `array`."""
    folder = tmp_path_factory.mktemp("tables")
    normal().assign(id=1).to_csv(folder / "train.csv", index=False)
    np.save(folder / "train.npy", normal().to_numpy())
    for name, data, drop, steps in (("run", "train.csv", ["id"], 120), ("array", "train.npy", [], 2)):
        request = Request(data=folder / data, steps=steps, overrides=TINY, drop=drop)
        fit(request, folder / name, tensorboard=False)
    return folder


@pytest.fixture(scope="module")
def bundle(folder):
    return thalweg.load(folder / "run")


def energies(path):
    return pd.read_csv(path).energy.to_numpy()


@pytest.fixture
def score(folder, call, tmp_path):
    """`thalweg score RUN new.csv` of a frame: (exit code, energies or None, lines of standard error)."""

    def run(frame, *words, model="run", **how):
        frame.to_csv(tmp_path / "new.csv", index=False, **how)
        code, _, err = call("score", folder / model, "new.csv", "-o", "s.csv", *words)
        return code, energies(tmp_path / "s.csv") if code == 0 else None, err

    return run


def refused(found, *parts):
    code, *_, err = found
    assert (code, len(err)) == (2, 1), err
    for part in parts:
        assert part in err[0]


class TestNames:
    def test_the_bundle_has_them(self, bundle):
        stored = json.loads((bundle.path / "config.json").read_text())["data"]
        assert (stored["columns"], stored["ignored"], stored["dtype"]) == (NAMES, ["id"], "float64")
        assert bundle.layout.names == NAMES

    def test_score_matches_by_name(self, score, bundle):
        new = normal(40, seed=1)
        code, u, err = score(new)
        assert code == 0, err
        np.testing.assert_array_equal(u, bundle.energy(new).double().numpy())
        for other in (new[NAMES[::-1]], new.assign(id=7)[["id", *NAMES]]):  # `id` was left out of the training
            np.testing.assert_array_equal(score(other)[1], u)

    def test_score_refuses_other_names(self, score):
        new = normal(5)
        refused(score(new.rename(columns={"load": "Load"})), "new.csv: lacks column 'load' (column 'Load' not known)")
        refused(score(new[NAMES[:2]]), "lacks column 'load'")
        refused(score(new.assign(age=1)), "column 'age' not among the 3 columns", "--drop 'age'")
        refused(score(new, "--drop", "load"), "the model needs it")
        refused(score(new, "--drop", "age"), "no column 'age'")
        assert score(new.assign(age=1), "--drop", "age")[0] == 0

    def test_tables_without_names_go_by_order_and_are_told(self, score, caplog):
        new = normal(10, seed=2)
        u = score(new)[1]
        code, found, err = score(new, "--no-header", header=False)
        assert code == 0, err
        np.testing.assert_array_equal(found, u)
        assert "new.csv: no names, so its columns are taken in the order of the model's: northing, str" in caplog.text
        refused(score(new, header=False), "could be names or data, and is unlike the table of the fit; say --header")

    def test_the_reverse_is_told_too(self, score, folder, caplog):
        new = normal(10, seed=2)
        code, u, err = score(new, model="array")
        assert code == 0, err
        assert "knows no names, so the columns are taken in this order: northing, strain, load" in caplog.text
        np.testing.assert_array_equal(u, thalweg.load(folder / "array").energy(new.to_numpy()).double().numpy())

    @pytest.mark.parametrize("kind", [pl.from_pandas, pa.Table.from_pandas, lambda t: t.to_numpy()])
    def test_frames_of_any_kind_and_arrays(self, kind, bundle):
        new = normal(20, seed=3)
        turned = new if isinstance(kind(new), np.ndarray) else new[NAMES[::-1]]
        assert torch.equal(bundle.energy(kind(turned)), bundle.energy(new))
        assert torch.equal(bundle.log_prob(kind(turned)), bundle.log_prob(new))
        assert torch.equal(bundle.score(kind(turned))["p_value"], bundle.score(new)["p_value"])

    def test_frames_are_refused_by_name(self, bundle):
        for bad, part in (
            (normal(3).rename(columns={"load": "x"}), "lacks column 'load'"),
            (normal(3).assign(x=1), "column 'x' not among"),
            (normal(3).assign(load=np.nan), "column 'load' is missing .* in row 0"),
        ):
            with pytest.raises(UserError, match=part):
                bundle.energy(bad)

    @pytest.mark.parametrize("suffix", ["csv", "parquet"])
    def test_samples_have_the_names(self, suffix, bundle, call, tmp_path):
        code, _, err = call("sample", bundle.path, "-n", 7, "-o", f"x.{suffix}", "--num-steps", 3)
        assert code == 0, err
        found = pd.read_csv(tmp_path / "x.csv") if suffix == "csv" else pd.read_parquet(tmp_path / "x.parquet")
        assert list(found) == NAMES
        np.testing.assert_array_equal(found.to_numpy(), bundle.sample(7, num_steps=3).numpy())
        assert call("score", bundle.path, f"x.{suffix}", "-o", "s.csv")[0] == 0

    def test_samples_of_nameless_rows_and_of_images(self, folder, digits, call, tmp_path):
        assert call("sample", folder / "array", "-n", 2, "-o", "x.csv", "--num-steps", 2)[0] == 0
        assert list(pd.read_csv(tmp_path / "x.csv")) == ["x0", "x1", "x2"]
        refused(call("sample", digits.path, "-n", 2, "-o", "x.csv"), "must end in .png")

    def test_inpaint_matches_by_name(self, bundle, call, tmp_path):
        gaps, mask = normal(4), pd.DataFrame(0, index=range(4), columns=NAMES).assign(strain=1)
        gaps.loc[:, "strain"] = np.nan
        found = []
        for order in (NAMES, NAMES[::-1]):
            gaps[order].to_csv(tmp_path / "gaps.csv", index=False)
            mask[order[1:] + order[:1]].to_csv(tmp_path / "mask.csv", index=False)
            words = ["--image", "gaps.csv", "--mask", "mask.csv", "-n", 2, "-o", "out.npy"]
            code, _, err = call("inpaint", bundle.path, *words)
            assert code == 0, err
            found.append(np.load(tmp_path / "out.npy"))
        np.testing.assert_array_equal(*found)
        np.testing.assert_array_equal(found[0][:, :, [0, 2]], np.stack([gaps[["northing", "load"]]] * 2))
        assert np.abs(found[0][:, :, 1]).max() < 10
        observed = torch.tensor([True, False, True])
        assert torch.equal(bundle.inpaint(gaps, observed, n=2), bundle.inpaint(gaps[NAMES[::-1]], observed, n=2))


class TestRerank:
    @pytest.fixture
    def tables(self, tmp_path):
        """Real and generated rows of other columns."""
        random = np.random.default_rng(0)
        real = pd.DataFrame(random.normal(size=(80, 3)) * [1, 10, 100], columns=[*"abc"])
        made = pd.DataFrame(random.normal(size=(80, 3)) * [2, 10, 100], columns=[*"abc"])
        real.to_csv(tmp_path / "real.csv", index=False)
        made[[*"cab"]].to_csv(tmp_path / "made.csv", index=False)
        return real, made

    def test_fit_and_choose_match_by_name(self, tables, call, tmp_path):
        _, made = tables
        words = ["--steps", 20, "--ensemble", 2]
        code, _, err = call("rerank", "fit", "real.csv", "made.csv", "-o", "judge", *words)
        assert code == 0, err
        found = []
        for order in ([*"abc"], [*"bca"]):
            made[order].to_csv(tmp_path / "new.csv", index=False)
            assert call("rerank", "judge", "new.csv", "--keep", 5, "--table", "t.csv")[0] == 0
            found.append((tmp_path / "t.csv").read_text())
        assert found[0] == found[1]
        judge = thalweg.load(tmp_path / "judge")
        assert judge.layout.names == [*"abc"]
        assert torch.equal(judge.energies(made), judge.energies(made[[*"cba"]]))
        assert torch.equal(judge.energies(made), judge.energies(made.to_numpy()))
        for change, part in (({"a": "z"}, "lacks column 'a' (column 'z' not known)"), ({"a": "b"}, "there twice")):
            made.rename(columns=change).to_csv(tmp_path / "new.csv", index=False)
            refused(call("rerank", "judge", "new.csv", "--keep", 5), "new.csv", part)
        made.assign(id=1).to_csv(tmp_path / "new.csv", index=False)
        refused(call("rerank", "judge", "new.csv"), "column 'id' not among", "--drop 'id'")
        assert call("rerank", "judge", "new.csv", "--drop", "id")[0] == 0

    def test_a_column_that_float32_cannot_tell_is_refused(self, tables, call, tmp_path):
        real, _ = tables
        real.assign(a=5932154 + real.a / 20).to_csv(tmp_path / "far.csv", index=False)
        refused(call("rerank", "fit", "far.csv", "made.csv", "-o", "judge"), "far.csv: column 'a' spreads by")


class TestHeaders:
    @pytest.fixture
    def years(self, tmp_path):
        x = 100 + np.random.default_rng(0).normal(size=(60, 3))
        pd.DataFrame(x, columns=["2019", "2020", "2021"]).to_csv(tmp_path / "years.csv", index=False)
        return tmp_path / "years.csv"

    def test_train_asks_as_detect_does(self, years, call):
        for command in (["train", years, "--steps", 2], ["detect", "fit", years, "-o", "d"]):
            refused(call(*command), "the first line, with '2019', could be names or data; say --header")

    @pytest.mark.parametrize(("option", "rows", "names"), [("--header", 60, True), ("--no-header", 61, False)])
    def test_either_answer_is_kept(self, option, rows, names, years, call, tmp_path):
        code, told, err = call("train", years, option, "--steps", 2, "-o", "run", "--no-report", "--json", *TINY)
        assert code == 0, err
        assert told["data"]["num_train"] + told["data"]["num_held_out"] == rows
        assert told["data"]["columns"] == (["2019", "2020", "2021"] if names else None)
        code, told, err = call("score", "run", years, "-o", "s.csv", "--json")  # as the training was
        assert (code, told["rows"]) == (0, rows), err
        resumed = ["train", years, "--steps", 2, "-o", "run", "--resume"]
        assert call(*resumed, option)[0] == 0
        refused(call(*resumed, "--no-header" if names else "--header"), "as when the run in run began")

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("a;b\n99,348;109,825\n", "separated by semicolons"),
            ("a,b,\n1,2,\n", "column '' has no value at all"),
            ("a,a\n1,2\n", "column 'a' there twice"),
            ("a,b\n1,2\n1,x\n", "column 'b'"),
        ],
    )
    def test_bad_tables_are_told_alike(self, text, part, call, tmp_path):
        """By every command that reads a CSV; `detect` takes the texts for categories."""
        head, row, *rest = text.splitlines()
        (tmp_path / "t.csv").write_text("\n".join([head, *[row] * 30, *rest]) + "\n")
        commands = [["train", "t.csv", "--steps", 2], ["rerank", "fit", "t.csv", "t.csv", "-o", "j"]]
        for command in commands if "x" in text else [*commands, ["detect", "fit", "t.csv", "-o", "d"]]:
            refused(call(*command), "t.csv", part)

    def test_options_of_images_are_refused_for_a_table_in_plain_words(self, folder, call):
        found = call("train", folder / "train.csv", "--size", 16, "--steps", 2)
        wanted = "--size: is for images, images in Parquet and sets of the Hub, and "
        refused(found, f"{wanted}{folder / 'train.csv'} is a table; leave it out")
        for words, option in ((["--size", 16], "size=16"), (["--labels", "a"], "labels='a'")):
            found = call("train", folder / "train.csv", *words, "--resume", "-o", folder / "run")
            refused(found, f"--{option}: must be left out, as the run in {folder / 'run'} began without it")

    def test_options_of_tables_have_no_effect_elsewhere(self, folder, call):
        for words in (["--header"], ["--drop", "a"]):
            refused(
                call("train", "two-moons", *words, "--steps", 2),
                "is for tables",
                "and two-moons is a named set; leave it out",
            )
            refused(call("score", folder / "run", folder / "train.npy", *words), "is for tables, and train.npy is none")


class TestFarFromZero:
    def test_rows_four_deviations_out_are_far(self, bundle):
        """By each column; the mutant that rounds the table on reading gives all of the first the centre's energy."""
        new = pd.DataFrame(np.vstack([MEAN, *(MEAN + 4 * SPREAD * np.eye(3))]), columns=NAMES)
        centre, *far = bundle.energy(new).tolist()
        assert min(far) > centre + 3
        assert torch.equal(bundle.energy(new.to_numpy()), bundle.energy(new))
        assert torch.equal(bundle.energy(torch.tensor(new.to_numpy())), bundle.energy(new))

    def test_what_comes_too_coarse_is_refused(self, bundle, folder, call, tmp_path):
        new = normal(3).to_numpy(np.float32)
        for given in (new, torch.tensor(new)):
            with pytest.raises(UserError, match="column 'northing' comes in float32"):
                bundle.energy(given)
        frame = normal(3).astype({"northing": np.float32})
        for given in (frame[NAMES[::-1]], pl.from_pandas(frame)):
            with pytest.raises(UserError, match="column 'northing' comes in float32"):
                bundle.energy(given)
        frame.to_parquet(tmp_path / "new.parquet")
        refused(call("score", bundle.path, "new.parquet"), "new.parquet: column 'northing' comes in float32")
        assert torch.equal(bundle.energy(normal(3).astype({"load": np.float32})).isfinite(), torch.ones(3) > 0)
        np.save(folder / "coarse.npy", (1.7e9 + normal(60).to_numpy()[:, 1:]).astype(np.float32))
        with pytest.raises(UserError, match="column 2 spreads by"):
            fit(Request(data=folder / "coarse.npy", steps=2, overrides=TINY), folder / "coarse", tensorboard=False)

    def test_an_identity_is_refused_before_any_training(self, folder, tmp_path):
        overrides = [*TINY, "transform={type: thalweg.data.transform:Identity}"]
        with pytest.raises(UserError, match="column 'northing' spreads by"):
            fit(Request(data=folder / "train.csv", drop=["id"], steps=2, overrides=overrides), tmp_path / "r")
        assert not (tmp_path / "r").exists()

    def test_samples_spread_as_the_data_do(self, bundle):
        x = bundle.sample(200, seed=1)
        assert x.dtype == torch.float64
        spread = x.std(0).numpy() / SPREAD
        assert ((spread > 0.4) & (spread < 2.5)).all()

    def test_gradients_are_those_of_the_numbers(self, bundle):
        x = torch.tensor(normal(4).to_numpy())
        given = x.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(bundle.energy(given).sum(), given)
        step = torch.tensor(SPREAD * 1e-2)
        for k in range(3):
            move = step * torch.eye(3, dtype=torch.float64)[k]
            found = (bundle.energy(x + move) - bundle.energy(x - move)).double() / (2 * step[k])
            torch.testing.assert_close(found * SPREAD[k], slope[:, k] * SPREAD[k], rtol=0.05, atol=0.02)

    def test_the_report_and_the_landscape_are_made(self, call, tmp_path, caplog):
        """Of two columns, one far from zero: figures in float32 see its spread."""
        normal(200)[NAMES[:2]].to_csv(tmp_path / "two.csv", index=False)
        code, told, err = call("train", "two.csv", "--steps", 80, "-o", "run", "--json", *TINY)
        assert code == 0, err
        assert -1 < told["figures"]["likelihood"]["nats"] < 0.5  # of the law itself: 0.16
        assert "no landscape" not in caplog.text
        code, _, err = call("landscape", "run", "-o", "l.png", "--size", 12)
        assert code == 0, err
        assert err[0].startswith("places are relative to 59321")
