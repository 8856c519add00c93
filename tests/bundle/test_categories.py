"""Tables with categories through every command that takes a run on a table."""

import json
import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import thalweg
from thalweg.apps.conditional.model import ConditionalModel
from thalweg.bundle import served
from thalweg.bundle.served import as_table
from thalweg.core.errors import UserError
from thalweg.run.fit import Request, fit

TINY = ["train.batch_size=64", "train.precision=fp32", "energy.width=32", "energy.num_blocks=1", "energy.embed=8"]
FAST = ["train.ema=0.95", "train.learning_rate=0.01", "train.warmup=20"]
NAMES = ["site", "temp", "kind", "open"]
MEAN = {"north": 10.0, "south": 20.0, "east": 30.0}


def normal(n=400, seed=0):
    """`kind` is that of the site in 9 of 10 rows, `temp` the site's ± 1; "oddity" comes once."""
    random = np.random.default_rng(seed)
    site = random.choice([*MEAN], n, p=[0.5, 0.3, 0.2])
    kind = np.where((random.random(n) < 0.9) == (site == "north"), "A", "B")
    temp = np.vectorize(MEAN.get)(site) + random.normal(size=n)
    frame = pd.DataFrame({"site": site, "temp": temp, "kind": kind, "open": random.random(n) < 0.7})
    return frame if seed else pd.concat([frame, frame[:1].assign(kind="oddity")], ignore_index=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("categories")
    normal().to_csv(folder / "train.csv", index=False)
    request = Request(data=folder / "train.csv", steps=250, overrides=[*TINY, *FAST])
    fit(request, folder / "run", tensorboard=False)
    return folder


@pytest.fixture(scope="module")
def bundle(folder):
    return thalweg.load(folder / "run")


def refused(found, *parts):
    code, *_, err = found
    assert (code, len(err)) == (2, 1), err
    for part in parts:
        assert part in err[0]


@pytest.mark.parametrize(
    ("site", "temp", "frames"),
    [("north", 11.0, 0), ("mars", 11.0, 0), (None, 11.0, 1), ("north", np.inf, 1)],
    ids=["known", "new", "missing", "infinite"],
)
def test_a_served_row_scores_as_its_frame_does(bundle, site, temp, frames, monkeypatch):
    rows = {"site": [site, "east"], "temp": [temp, 30.5], "kind": ["B", "A"], "open": [1.0, 0.0]}
    rows = {name: np.array(values, object if name in ("site", "kind") else float) for name, values in rows.items()}
    servable, looks = bundle.servable(), []
    monkeypatch.setattr(served, "as_table", lambda rows: looks.append(1) or as_table(rows))
    try:
        want = bundle.energy(as_table(rows))
    except UserError as refusal:
        with pytest.raises(UserError, match=re.escape(str(refusal))):
            servable.score(rows)
    else:
        assert servable.score(rows)["energy"] == pytest.approx(want.numpy(), rel=1e-6)
    assert len(looks) == frames


class TestNewCategories:
    NEW = "site,temp,kind,open\nnorth,10,A,True\nmars,11,A,True\nmars,12,C,False\nvenus,9,B,True\n"
    LINE = (
        "categories that the model does not know: 'site' in 3 rows ('mars', 'venus'), taken for unlike every known one"
        "; 'kind' in 1 row ('C'), taken for \"other\", as the rare ones of the training are"
    )

    def test_a_line_says_how_many_and_what_they_are_taken_for(self, folder, call, tmp_path, caplog):
        (tmp_path / "new.csv").write_text(self.NEW)
        assert call("score", folder / "run", "new.csv", "--alpha", 0.05)[0] == 0
        assert [record.message for record in caplog.records] == [f"new.csv: {self.LINE}"]
        caplog.clear()
        (tmp_path / "new.csv").write_text("\n".join(self.NEW.splitlines()[1:]))
        assert call("score", folder / "run", "new.csv", "--no-header", "--alpha", 0.05)[0] == 0
        names = "no names, so its columns are taken in the order of the model's: site, temp, kind, open"
        line = self.LINE.replace("'site' in", "'0' in").replace("'kind' in", "'2' in")
        assert [record.message for record in caplog.records] == [f"new.csv: {names}", f"new.csv: {line}"]

    def test_one_that_the_training_had_once_counts_as_new(self, folder, call, caplog):
        assert call("score", folder / "run", folder / "train.csv", "--alpha", 0.05)[0] == 0
        line = "'kind' in 1 row ('oddity'), taken for \"other\", as the rare ones of the training are"
        told = [record.message for record in caplog.records]
        assert told == [f"{folder / 'train.csv'}: categories that the model does not know: {line}"]  # it came once

    def test_one_comes_back_as_other_and_not_as_a_known_one(self, folder, call, tmp_path):
        (tmp_path / "new.csv").write_text(self.NEW)
        words = ["--image", "new.csv", "--mask", "gaps", "-n", 1, "-o", "out.csv"]
        code, _, told = call("inpaint", folder / "run", *words)
        assert code == 0, told
        table = pd.read_csv(tmp_path / "out.csv")
        assert table.site.tolist() == ["north", "other", "other", "other"]
        assert table.kind.tolist() == ["A", "A", "other", "B"]

    def test_of_a_detector_over_all_blocks(self, call, tmp_path, caplog, monkeypatch):
        from thalweg.data.formats import base

        normal()[["site", "temp", "kind"]].to_csv(tmp_path / "train.csv", index=False)
        assert call("detect", "fit", "train.csv", "-o", "detector")[0] == 0
        monkeypatch.setattr(base, "BLOCK_ROWS", 2)
        (tmp_path / "new.csv").write_text(self.NEW)
        caplog.clear()
        assert call("detect", "score", "detector", "new.csv", "--drop", "open")[0] == 0
        assert [record.message for record in caplog.records] == [f"new.csv: {self.LINE}"]


class TestSkipBad:
    ROWS = "site,temp,kind,open\nnorth,10,A,True\nsouth,warm,B,False\nsouth,,B,\n,?,A,False\neast,30,,False\n"

    def words(self, *more):
        return ["--image", "gaps.csv", "--mask", *more, "-n", 1, "-o", "full.csv"]

    def test_rows_with_a_text_among_numbers_are_not_completed(self, folder, call, tmp_path):
        """Each is named by its line, they are counted, and a mask for all rows stays with the rows that are left."""
        (tmp_path / "gaps.csv").write_text(self.ROWS)
        refused(call("inpaint", folder / "run", *self.words("gaps")), "line 3", "'warm'", "--skip-bad leaves out")
        code, out, err = call("inpaint", folder / "run", *self.words("gaps"), "--skip-bad", "--json")
        reason = "column 'temp' holds {!r}, where numbers were in the fit"
        lost = [f"left out line {line}: {reason.format(text)}" for line, text in ((3, "warm"), (5, "?"))]
        assert (code, err[:2]) == (0, lost), err
        assert err[-1].startswith("1 completion of 3 rows in full.csv, 2 of 5 left out")
        assert [each["file"] for each in out["skipped"]] == ["line 3", "line 5"]
        full = pd.read_csv(tmp_path / "full.csv")
        assert full.row.tolist() == [0, 2, 4]
        assert full.site.tolist() == ["north", "south", "east"]
        assert full.temp[[0, 2]].tolist() == pytest.approx([10, 30], abs=1e-4)
        marks = normal()[:5].assign(site=0, temp=[0, 0, 1, 0, 0], kind=[0, 0, 0, 0, 1], open=[0, 0, 1, 0, 0])
        marks.to_csv(tmp_path / "marks.csv", index=False)
        assert call("inpaint", folder / "run", *self.words("marks.csv"), "--skip-bad")[0] == 0
        assert pd.read_csv(tmp_path / "full.csv").equals(full)

    def test_a_table_of_nothing_else_is_refused(self, folder, call, tmp_path):
        (tmp_path / "gaps.csv").write_text(self.ROWS.replace("10", "hot").replace(",,B", ",cold,B").replace("30", "-"))
        found = call("inpaint", folder / "run", *self.words("gaps"), "--skip-bad")
        refused(found, "gaps.csv: must hold a row that can be used; the first is not: column 'temp' holds 'hot'")


class TestTraining:
    def test_the_run_keeps_the_columns(self, bundle):
        stored = json.loads((bundle.path / "config.json").read_text())["data"]
        kinds = [[n, c and sorted(c), other, *truth] for n, c, other, *truth in stored["encoding"]]
        site, temp, kind, opened = kinds
        assert (site, temp) == (["site", sorted(MEAN), False], ["temp", None, False])
        assert (kind, opened) == (["kind", ["A", "B"], True], ["open", None, False, True])
        assert (stored["columns"], stored["shape"]) == (NAMES, [8])
        assert "401 rows of 2 numbers and 2 categories" in stored["source"]

    def test_one_line_says_what_the_columns_hold(self, folder, call):
        code, _, err = call("train", folder / "train.csv", "--steps", 1, "--no-report", "-o", "r", *TINY)
        assert code == 0, err
        line = next(line for line in err if line.startswith("columns"))
        assert "1 of numbers (temp: 400), 1 of true and false (open: 2), 2 of categories (site: 3, kind: 3)" in line

    @pytest.mark.parametrize("kind", [pd.DataFrame, pl.from_pandas, pa.Table.from_pandas])
    def test_a_frame_trains_the_same(self, kind, bundle, tmp_path):
        """Kept columns, and after one step the same energies, whatever made the table."""
        bundles = []
        normal().to_parquet(tmp_path / "t.parquet")
        for data in (kind(normal()), tmp_path / "t.parquet"):
            how = {"steps": 1, "settings": {"precision": "fp32"}, "progress": False}
            bundles.append(thalweg.train("dual", data, **how))
        assert bundles[0].layout.to_list() == bundle.layout.to_list()
        assert torch.equal(*(each.energy(normal(9, seed=1)) for each in bundles))

    def test_targets_are_numbers_and_measures_may_be_categories(self, folder, call):
        words = ["train", folder / "train.csv", "--recipe", "conditional-labels", "--steps", 20, "-o", "c"]
        refused(call(*words, "data.targets=[site]"), "data.targets='site'", "'site' holds categories")
        code, _, err = call(*words, "data.targets=[open]")
        assert code == 0, err
        model = ConditionalModel(thalweg.load("c"))
        p = model.probabilities(normal(5, seed=2).drop(columns="open"))
        assert list(p) == ["open"]
        assert ((p > 0) & (p < 1)).all(axis=None)


class TestScores:
    def test_by_name_in_any_order_and_kind(self, bundle, call, tmp_path):
        new = normal(30, seed=1)
        u = bundle.energy(new)
        for kind in (pd.DataFrame, pl.from_pandas, pa.Table.from_pandas):
            assert torch.equal(bundle.energy(kind(new[NAMES[::-1]])), u)
        new[NAMES[::-1]].to_csv(tmp_path / "new.csv", index=False)
        assert call("score", bundle.path, "new.csv", "-o", "s.csv")[0] == 0
        np.testing.assert_array_equal(pd.read_csv(tmp_path / "s.csv").energy.to_numpy(), u.double().numpy())
        (tmp_path / "many").mkdir()
        new.to_csv(tmp_path / "many" / "a.csv", index=False)
        assert call("score", bundle.path, "many", "-o", "scores")[0] == 0
        (part,) = (tmp_path / "scores").rglob("*.parquet")
        np.testing.assert_array_equal(pd.read_parquet(part).energy.to_numpy(), u.double().numpy())

    def test_a_wrong_pair_is_less_likely(self, bundle):
        """Rejects the mutant that encodes every category as the first."""
        good = pd.DataFrame({"site": ["north"], "temp": [10.0], "kind": ["A"], "open": [True]})
        swapped = good.assign(site="east")
        assert float(bundle.energy(swapped) - bundle.energy(good)) > 3

    def test_new_categories(self, bundle):
        """Where there is an "other" it is that; where there is none the row is far from all."""
        good = pd.DataFrame({"site": ["north"], "temp": [10.0], "kind": ["A"], "open": [True]})
        assert torch.equal(bundle.energy(good.assign(kind="new")), bundle.energy(good.assign(kind="oddity")))
        worst = max(float(bundle.energy(good.assign(site=site))) for site in MEAN)
        assert float(bundle.energy(good.assign(site="west"))) > worst
        assert float(bundle.score(good.assign(site="west"))["p_value"]) < 0.05

    def test_what_is_refused(self, bundle, call, tmp_path):
        good = normal(3, seed=1)
        for bad, part in (
            (good.drop(columns="site"), "lacks column 'site'"),
            (good.assign(site=[None, "north", "east"]), "column 'site' is missing .* in row 0"),
            (good.assign(site=[1, 2, 3]), "column 'site' holds numbers where categories were in the fit"),
        ):
            with pytest.raises(UserError, match=part):
                bundle.energy(bad)
        with pytest.raises(UserError, match=r"must have the shape \(N, 8\)"):
            bundle.energy(np.zeros((2, 4)))
        refused(call("export", bundle.path, "-o", "g"), "not numbers in columns 'site', 'kind'")


class TestSamples:
    @pytest.mark.parametrize("suffix", ["csv", "parquet"])
    def test_categories_have_their_names(self, suffix, bundle, call, tmp_path):
        code, _, err = call("sample", bundle.path, "-n", 300, "-o", f"x.{suffix}")
        assert code == 0, err
        found = pd.read_csv(tmp_path / "x.csv") if suffix == "csv" else pd.read_parquet(tmp_path / "x.parquet")
        pd.testing.assert_frame_equal(found, bundle.frame(bundle.sample(300)), check_exact=True)
        assert {*found.site} <= {*MEAN}
        assert {*found.kind} <= {"A", "B", "other"}
        assert found["open"].dtype == bool
        share = (found.site == "north").mean()
        assert abs(share - 0.5) < 0.15  # five standard errors, of a short training
        gap = found[found.site == "east"].temp.median() - found[found.site == "north"].temp.median()
        assert abs(gap - 20) < 3


class TestInpaint:
    def test_a_missing_category_is_drawn(self, bundle, call, tmp_path):
        """North is 10 degrees: rejects the mutant that draws from the marginal, of which half is not north."""
        gaps = pd.DataFrame({"site": [None, None], "temp": [10.0, 30.0], "kind": ["A", "B"], "open": [True, False]})
        observed = gaps.notna().to_numpy()
        found = bundle.inpaint(gaps, torch.from_numpy(observed), n=20)
        sites = [bundle.frame(rows).site for rows in found]
        assert np.mean([site[0] == "north" for site in sites]) > 0.8
        assert np.mean([site[1] == "east" for site in sites]) > 0.8
        assert all(bundle.frame(rows).temp.tolist() == [10, 30] for rows in found)
        gaps.to_csv(tmp_path / "gaps.csv", index=False)
        marks = (~gaps.notna()).astype(int)
        marks[NAMES[::-1]].to_csv(tmp_path / "marks.csv", index=False)
        tables = []
        for mask in ("gaps", "marks.csv"):
            words = ["--image", "gaps.csv", "--mask", mask, "-n", 3, "-o", "out.csv"]
            code, _, err = call("inpaint", bundle.path, *words)
            assert code == 0, err
            tables.append((tmp_path / "out.csv").read_text())
        assert tables[0] == tables[1]
        table = pd.read_csv(tmp_path / "out.csv")
        assert list(table) == ["row", "rank", *NAMES]
        assert table["row"].tolist() == [0] * 3 + [1] * 3
        assert {*table.site} <= {*MEAN}

    def test_messages_speak_of_rows(self, bundle, call, tmp_path):
        whole = pd.DataFrame(
            {"site": ["north", "east"], "temp": [10.0, 30.0], "kind": ["A", "B"], "open": [True, False]}
        )
        whole.to_csv(tmp_path / "whole.csv", index=False)
        code, _, told = call("inpaint", bundle.path, "--image", "whole.csv", "--mask", "gaps", "-n", 1, "-o", "out.csv")
        assert code == 0, told
        assert "nothing is missing of 2 of 2 rows; they come back as they are" in told
        assert told[-1].startswith("1 completion of 2 rows in out.csv")
        np.save(tmp_path / "marks.npy", np.zeros((2, 8), np.uint8))
        whole.assign(temp=[None, 30.0]).to_csv(tmp_path / "gap.csv", index=False)
        words = ["--image", "gap.csv", "--mask", "marks.npy", "-o", "out.csv"]
        assert "line 2: must be finite where it is observed" in call("inpaint", bundle.path, *words)[2][-1]


class TestOthers:
    def test_serve(self, bundle):
        served = bundle.servable()
        assert [spec.datatype for spec in served.inputs] == ["BYTES", "FP64", "BYTES", "FP64"]
        new = normal(6, seed=3)
        rows = {name: new[name].to_numpy(object if name in ("site", "kind") else float) for name in NAMES}
        np.testing.assert_array_equal(served.score(rows)["energy"], bundle.energy(new).numpy())
        drawn = served.sample(5)
        assert drawn.shape == (5, 4)
        assert {*drawn[:, 0]} <= {*MEAN}

    def test_rerank(self, call, tmp_path):
        real, made = normal(seed=0), normal(200, seed=4)
        made["site"] = np.random.default_rng(0).permutation(made.site)
        real.to_csv(tmp_path / "real.csv", index=False)
        made[NAMES[::-1]].to_csv(tmp_path / "made.csv", index=False)
        words = ["--steps", 60, "--ensemble", 2]
        code, _, err = call("rerank", "fit", "real.csv", "made.csv", "-o", "judge", *words)
        assert code == 0, err
        judge = thalweg.load(tmp_path / "judge")
        assert float(judge.energies(made).mean()) > float(judge.energies(real).mean())
        assert call("rerank", "judge", "made.csv", "--keep", 5, "--table", "t.csv")[0] == 0
        refused(call("export", "judge", "-o", "g"), "not numbers in columns 'site', 'kind'")

    @pytest.mark.slow
    def test_report_and_landscape(self, bundle, call, tmp_path):
        assert call("evaluate", bundle.path, "-n", 60)[0] == 0
        code, _, err = call("landscape", bundle.path, "-o", "l.png", "--size", 8)
        assert code == 0, err
