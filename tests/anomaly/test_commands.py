"""What `thalweg detect` does around the scores: whose files it touches, which rows it counts, what is equal to it."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import thalweg
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.data.formats import base


@pytest.fixture
def table(normal_rows, tmp_path):
    """Sixty good rows as a CSV."""
    normal_rows().to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def refused(call, part):
    """Exit code 2 and one line that says this."""
    code, _, err = call
    assert (code, len(err)) == (2, 1), err
    assert part in err[0]


class TestFolders:
    def test_what_lies_beside_a_detector_is_not_lost(self, table, thalweg_command, tmp_path):
        """Another fit replaces a detector, refuses a folder with anything else in it, and says so before it fits."""
        words = ["detect", "fit", table, "-o", tmp_path / "run"]
        assert thalweg_command(*words)[0] == 0
        assert thalweg_command(*words, "--seed", "1")[0] == 0
        assert thalweg.load(tmp_path / "run").about["seed"] == 1
        (tmp_path / "run" / "notes.txt").write_text("mine")
        words[2] = tmp_path / "nowhere.csv"
        refused(thalweg_command(*words), "nothing beside a detector, as the folder is replaced, and holds 'notes.txt'")
        with pytest.raises(ValueError, match=r"notes\.txt"):
            thalweg.load(tmp_path / "run").save_pretrained(tmp_path / "run")
        assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
        assert thalweg.load(tmp_path / "run").about["seed"] == 1

    def test_scores_do_not_go_into_the_detectors_folder(self, run, table, thalweg_command):
        refused(thalweg_command("detect", "score", run, table, "-o", run / "s.csv"), "outside of the detector's folder")
        assert not (run / "s.csv").exists()

    def test_a_link_stays_a_link(self, table, thalweg_command, tmp_path):
        (tmp_path / "far").mkdir()
        (tmp_path / "run").symlink_to(tmp_path / "far")
        for seed in ("1", "2"):
            assert thalweg_command("detect", "fit", table, "-o", tmp_path / "run", "--seed", seed)[0] == 0
            assert (tmp_path / "run").is_symlink()
            assert thalweg.load(tmp_path / "far").about["seed"] == int(seed)

    def test_a_detector_that_is_not_whole(self, run, table, thalweg_command, tmp_path):
        """Without its manifest, or with a file damaged, it is told what a detector can be mended by."""
        for name, part in (
            ("manifest.json", "must be there, as it is written last"),
            ("model.safetensors", "fit again"),
        ):
            shutil.copytree(run, tmp_path / name)
            path = tmp_path / name / name
            path.unlink() if name == "manifest.json" else path.write_bytes(path.read_bytes()[:-1])
            call = thalweg_command("detect", "score", tmp_path / name, table, "-o", tmp_path / "s.csv")
            refused(call, part)
            assert str(path) in call[2][0]
            assert "checkpoint" not in call[2][0]


class TestRuns:
    @pytest.mark.parametrize(
        "name", ["runs/nope", "./other/nope", "../nope", "/nope/nope", "a/b/c", "~/nope", "nope", "a b/c"]
    )
    def test_a_path_is_not_asked_of_the_hub(self, name, table, thalweg_command, tmp_path, monkeypatch):
        """Not even where the network would answer."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
        (tmp_path / "runs").mkdir()
        refused(
            thalweg_command("detect", "score", name, table, "-o", "s.csv"), f"{name}: no such folder; check the spell"
        )

    def test_what_may_be_a_name_on_the_hub(self, table, run, thalweg_command, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        asked = []

        def offline(name, **_):
            asked.append(name)
            raise OSError("no network")

        monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
        call = thalweg_command("detect", "score", "someone/pumps", table, "-o", "s.csv")
        refused(call, "someone/pumps: no such folder here, nor a bundle of this name on the Hub (no network)")
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(run))
        assert thalweg_command("detect", "score", "someone/pumps", table, "-o", "s.csv")[0] == 0
        assert asked == ["someone/pumps"]

    def test_a_folder_that_is_no_run(self, table, thalweg_command, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        part = "must hold a detector; give the folder that `thalweg detect fit` wrote"
        refused(thalweg_command("detect", "score", ".", table, "-o", "s.csv"), part)

    def test_a_trained_energy_is_no_detector(self, table, digits, thalweg_command):
        part = "must hold a detector, and holds a trained energy; a trained energy is read by `thalweg score`"
        refused(thalweg_command("detect", "score", digits.path, table, "-o", "s.csv"), part)


class TestRows:
    """Rows in messages are counted in the file, from 1, as `score` counts them."""

    @pytest.mark.parametrize(("value", "part"), [("oops", "holds 'oops' in"), ("inf", "is infinite"), ("", "missing")])
    @pytest.mark.parametrize("drawn", [True, False])
    def test_of_rows_that_were_drawn_or_chosen(
        self, value, part, drawn, thalweg_command, normal_rows, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(base, "BLOCK_ROWS", 100)
        frame = normal_rows(400).assign(label=["bad"] * 300 + ["ok"] * 100).astype({"flow": object})
        where = 350
        if drawn:  # a row that seed 0 draws
            random = np.random.default_rng(0)
            where = int(np.argsort(random.random(400))[:100].max())
            assert where > 300
        frame.loc[where, "flow"] = value
        frame.to_csv(tmp_path / "t.csv", index=False)
        chosen = ["--max-rows", "100", "--drop", "label"] if drawn else ["--target-column", "label", "--normal", "ok"]
        call = thalweg_command("detect", "fit", tmp_path / "t.csv", "-o", tmp_path / "run", *chosen)
        refused(call, part)
        assert f"in line {where + 2}" in call[2][0]

    def test_the_rows_that_were_used(self, normal_rows, thalweg_command, tmp_path):
        frame = normal_rows(100)
        frame.loc[:69, "flow"] = np.nan
        frame.to_csv(tmp_path / "t.csv", index=False)
        words = ["detect", "fit", tmp_path / "t.csv", "-o", tmp_path / "run", "--missing", "marginalise", "--json"]
        code, out, err = thalweg_command(*words)
        assert code == 0
        assert (json.loads(out)["rows"], json.loads(out)["rows_used"]) == (100, 30)
        assert "fitted on 30 rows, 70 with a gap left out;" in err[-1]


LABELS = {"whole": [0, 1], "fractions": [0.0, 1.0], "truth": [False, True], "words": ["ok", "bad"]}


class TestLabels:
    """--normal goes by value, whatever the file writes."""

    @pytest.mark.parametrize("suffix", ["csv", "parquet"])
    @pytest.mark.parametrize(
        ("kind", "normal"),
        [
            *[(kind, normal) for kind in ("whole", "fractions", "truth") for normal in ("0", "0.0", "False", "false")],
            ("words", "ok"),
        ],
    )
    def test_by_value(self, kind, normal, suffix, normal_rows, thalweg_command, tmp_path):
        frame = normal_rows(90).assign(
            label=np.array(LABELS[kind], dtype=object if kind == "words" else None)[[0, 0, 1] * 30]
        )
        path = tmp_path / f"t.{suffix}"
        frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
        words = ["detect", "fit", path, "-o", tmp_path / "run", "--target-column", "label", "--json"]
        code, out, err = thalweg_command(*words, "--normal", normal)
        assert code == 0, err
        assert json.loads(out)["rows_used"] == 60
        refused(
            thalweg_command(*words, "--normal", "2"),
            f"label = 2, whose values are {', '.join(sorted(map(str, LABELS[kind])))}",
        )

    def test_a_label_of_bytes(self, normal_rows, thalweg_command, tmp_path):
        normal_rows().assign(label=[b"ok", b"bad"] * 30).to_parquet(tmp_path / "t.parquet")
        words = ["--target-column", "label", "--normal", "ok", "--json"]
        code, out, _ = thalweg_command("detect", "fit", tmp_path / "t.parquet", "-o", tmp_path / "run", *words)
        assert (code, json.loads(out)["rows_used"]) == (0, 30)

    def test_a_label_of_lists(self, normal_rows, thalweg_command, tmp_path):
        normal_rows().assign(label=[[1]] * 60).to_parquet(tmp_path / "t.parquet")
        words = ["--target-column", "label", "--normal", "1"]
        call = thalweg_command("detect", "fit", tmp_path / "t.parquet", "-o", tmp_path / "run", *words)
        refused(call, "column 'label', which holds lists or structures")

    def test_a_label_that_is_dropped_too(self, normal_rows, thalweg_command, tmp_path):
        normal_rows().assign(label=0).to_csv(tmp_path / "t.csv", index=False)
        words = ["--target-column", "label", "--normal", "0", "--drop", "label"]
        assert thalweg_command("detect", "fit", tmp_path / "t.csv", "-o", tmp_path / "run", *words)[0] == 0


class TestValues:
    @pytest.mark.parametrize("fitted", ["csv", "parquet"])
    @pytest.mark.parametrize("scored", ["csv", "parquet", "lower"])
    def test_truth_values_are_the_same_from_either_file(self, fitted, scored, normal_rows, thalweg_command, tmp_path):
        def write(frame, kind, name):
            path = tmp_path / f"{name}.{'parquet' if kind == 'parquet' else 'csv'}"
            if kind == "parquet":
                frame.to_parquet(path)
            else:
                text = frame.to_csv(index=False)
                path.write_text(text if kind == "csv" else text.replace("True", "true").replace("False", "FALSE"))
            return path

        frame = normal_rows().assign(open=np.arange(60) % 3 == 0)
        assert thalweg_command("detect", "fit", write(frame, fitted, "t"), "-o", tmp_path / "run")[0] == 0
        new = write(frame, scored, "new")
        code, _, err = thalweg_command("detect", "score", tmp_path / "run", new, "-o", tmp_path / "s.csv")
        assert code == 0, err
        numbers = thalweg.EnergyDetector(random_state=0).fit(frame.assign(open=frame.open * 1.0))
        np.testing.assert_allclose(
            pd.read_csv(tmp_path / "s.csv").energy, numbers.energy(frame.assign(open=frame.open * 1.0))
        )
        frame.astype({"open": object}).replace({"open": {True: "yes"}}).to_csv(tmp_path / "new.csv", index=False)
        call = thalweg_command("detect", "score", tmp_path / "run", tmp_path / "new.csv", "-o", tmp_path / "s.csv")
        refused(call, "column 'open' holds 'yes' in line 2, where True or False was in the fit")
        write(frame.assign(open=[2, *[1, 0] * 29, 1]), scored, "new")
        call = thalweg_command("detect", "score", tmp_path / "run", new, "-o", tmp_path / "s.csv")
        place = "'2.0' in row 0 (counted from 0)" if scored == "parquet" else "'2' in line 2"
        refused(call, f"column 'open' holds {place}, where True or False was in the fit")

    def test_a_truth_value_is_no_number(self, run, normal_rows, thalweg_command, tmp_path):
        normal_rows(2).assign(flow=["True", "1"]).to_csv(tmp_path / "t.csv", index=False)
        call = thalweg_command("detect", "score", run, tmp_path / "t.csv", "-o", tmp_path / "s.csv")
        refused(call, "column 'flow' holds 'True' in line 2, where numbers were")

    def test_codes_with_underscores_are_categories(self, normal_rows, thalweg_command, tmp_path):
        """The mutant that reads texts by Python's float takes them for 0, 110 and 220."""
        frame = normal_rows().assign(code=["0_00", "1_10", "2_20"] * 20)
        frame.to_csv(tmp_path / "t.csv", index=False)
        assert thalweg_command("detect", "fit", tmp_path / "t.csv", "-o", tmp_path / "run")[0] == 0
        column = thalweg.load(tmp_path / "run").detector.columns_.columns[-1]
        assert sorted(column.categories) == ["0_00", "1_10", "2_20"]

    @pytest.mark.parametrize(
        "values", [pa.array([*"xyz"] * 20).dictionary_encode(), pa.array([*"xyz"] * 20, pa.large_string())]
    )
    def test_categories_of_any_type_are_the_same_when_scored(self, values, normal_rows, thalweg_command, tmp_path):
        frame = pa.Table.from_pandas(normal_rows(), preserve_index=False)
        parquet.write_table(frame.append_column("kind", values), tmp_path / "t.parquet")
        assert thalweg_command("detect", "fit", tmp_path / "t.parquet", "-o", tmp_path / "run")[0] == 0
        words = [
            "detect",
            "score",
            tmp_path / "run",
            tmp_path / "t.parquet",
            "-o",
            tmp_path / "s.csv",
            "--alpha",
            "0.02",
        ]
        assert thalweg_command(*words)[0] == 0
        assert not pd.read_csv(tmp_path / "s.csv").flag[1:].all()
        kind = thalweg.load(tmp_path / "run").detector.columns_
        assert np.isin(kind.encode(parquet.read_table(tmp_path / "t.parquet"))[:, -3:], [0, 1]).all()


class TestDrop:
    @pytest.mark.parametrize(
        ("name", "part"),
        [("typo", "no column 'typo'; there are flow"), ("flow", "drop='flow': must not name a column of the fit")],
    )
    def test_what_cannot_be_dropped(self, name, part, run, table, thalweg_command, tmp_path):
        refused(thalweg_command("detect", "score", run, table, "-o", tmp_path / "s.csv", "--drop", name), part)

    def test_the_index_that_pandas_writes(self, run, normal_rows, thalweg_command, tmp_path):
        """The remedy, word by word, is the remedy."""
        normal_rows().to_csv(tmp_path / "t.csv")
        words = ["detect", "score", run, tmp_path / "t.csv", "-o", tmp_path / "s.csv"]
        refused(thalweg_command(*words), "column '' not among the 3 columns of the fit; leave it out with --drop ''")
        assert thalweg_command(*words, "--drop", "")[0] == 0


class TestArrays:
    """A detector that was fitted on an array scores tables whose columns are numbered."""

    X = np.random.default_rng(0).normal(size=(80, 3))

    @pytest.mark.parametrize("names", [["x0", "x1", "x2"], ["0", "1", "2"], None])
    def test_by_numbered_names(self, names, thalweg_command, tmp_path):
        DetectorBundle(thalweg.EnergyDetector(random_state=0).fit(self.X)).save_pretrained(tmp_path / "run")
        x = np.vstack([self.X[:5], [9.0, 0, 0]])
        frame = pd.DataFrame(x, columns=names)[names[::-1] if names else slice(None)]
        frame.to_csv(tmp_path / "t.csv", index=False, header=names is not None)
        words = ["--no-header"] if names is None else ["--header"]
        code, _, err = thalweg_command(
            "detect", "score", tmp_path / "run", tmp_path / "t.csv", "-o", tmp_path / "s.csv", *words
        )
        assert code == 0, err
        scores = pd.read_csv(tmp_path / "s.csv")
        np.testing.assert_allclose(scores.energy, thalweg.load(tmp_path / "run").energy(x).numpy(), rtol=1e-12)
        assert (scores.feature_1[5], scores.value_1[5]) == ("x0", 9.0)

    @pytest.mark.parametrize(("given", "kept"), [(7, 7), (None, None), (np.random.RandomState(0), None)])
    def test_the_seed_is_kept(self, given, kept, tmp_path):
        DetectorBundle(thalweg.EnergyDetector(random_state=given).fit(self.X)).save_pretrained(tmp_path / "run")
        assert thalweg.load(tmp_path / "run").detector.random_state == kept

    def test_other_names(self, table, thalweg_command, tmp_path):
        DetectorBundle(thalweg.EnergyDetector(random_state=0).fit(self.X)).save_pretrained(tmp_path / "run")
        call = thalweg_command("detect", "score", tmp_path / "run", table, "-o", tmp_path / "s.csv")
        refused(call, "must have the columns x0 to x2, as the detector was fitted on an array")


def test_why_none_is_reported_by_the_false_discovery_rate(run, normal_rows, thalweg_command, tmp_path):
    """61 levels of p-values: of 2,000 rows at 0.05, ceil(2000 / (0.05 x 61)) = 656 must have the least."""
    pd.concat([normal_rows(1999, seed=1), normal_rows(1).assign(flow=99.0)]).to_csv(tmp_path / "t.csv", index=False)
    words = ["detect", "score", run, tmp_path / "t.csv", "-o", tmp_path / "s.csv", "--json"]
    code, out, err = thalweg_command(*words)
    assert code == 0
    assert json.loads(out)["discoveries"] == 0
    assert json.loads(out)["least_discoveries"] == 656
    assert (
        "0 by the false discovery rate, which takes 656 rows at the least p-value, 1/61 by 60 calibration rows"
        in err[-1]
    )
    pd.concat([normal_rows(3), *[normal_rows(1).assign(flow=99.0)] * 3]).to_csv(tmp_path / "t.csv", index=False)
    code, out, err = thalweg_command(*words)
    assert json.loads(out)["discoveries"] >= json.loads(out)["least_discoveries"] == 2
    assert "takes" not in err[-1]
