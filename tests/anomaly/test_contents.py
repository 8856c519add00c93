"""What `detect fit` takes the columns of a table for, what it says of them, and that the score reads the same way."""

import json
import logging

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import thalweg
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.core.errors import UserError
from thalweg.data.columns.contents import describe, learn
from thalweg.data.columns.reading_options import NA_WORDS, Reading


def rows(num=200, seed=0):
    random = np.random.default_rng(seed)
    flow, heat = random.normal(1500, 300, num).round(2), random.normal(21, 1.2, num).round(1)
    return pd.DataFrame({"flow": flow, "heat": heat, "site": random.choice([*"uvw"], num)})


def odd(frame):
    """Two odd rows after the others."""
    return pd.concat([frame, rows(2, 9).assign(flow=[25_000.5, 1500.0], heat=[21.0, 95.0])], ignore_index=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A detector of the rows, in memory."""
    return thalweg.EnergyDetector(random_state=0).fit(rows())


def german(frame):
    """The numbers as 1.234,50."""
    swap = str.maketrans(",.", ".,")
    return frame.assign(**{name: [f"{v:,.2f}".translate(swap) for v in frame[name]] for name in ("flow", "heat")})


def score(call, tmp_path, frame, run="run", name="new.csv"):
    """The table of scores, or the line that refuses."""
    frame.to_csv(tmp_path / name, index=False) if name.endswith("csv") else frame.to_parquet(tmp_path / name)
    code, _, err = call("detect", "score", tmp_path / run, tmp_path / name, "-o", tmp_path / "s.csv")
    return pd.read_csv(tmp_path / "s.csv") if code == 0 else (code, err)


def fit(call, tmp_path, frame, *words, run="run", **how):
    """(exit code, what --json says, lines)."""
    frame.to_csv(tmp_path / "t.csv", index=how.pop("index", False), **how)
    code, out, err = call("detect", "fit", tmp_path / "t.csv", "-o", tmp_path / run, "--json", *words)
    return code, json.loads(out) if out else None, err


class TestWriting:
    def test_a_table_in_another_writing(self, plain, thalweg_command, tmp_path):
        """Refused with the options that read it, which give the scores of the same table with points, to the bit; the
        score reads as the fit did, and refuses other writings.
        """
        code, _, err = fit(thalweg_command, tmp_path, german(rows()))
        assert (code, len(err)) == (2, 1)
        assert "column 'flow' holds '1." in err[0]
        assert "--decimal , --thousands ." in err[0]
        assert not (tmp_path / "run").exists()
        code, _, err = fit(thalweg_command, tmp_path, german(rows()), "--decimal", ",", "--thousands", ".")
        assert code == 0, err
        np.testing.assert_array_equal(thalweg.load(tmp_path / "run").detector.train_scores_, plain.train_scores_)
        new = odd(rows(40, 1))
        found = score(thalweg_command, tmp_path, german(new))
        np.testing.assert_array_equal(found.energy, plain.energy(new))
        assert found.flag[40:].all()
        typed = score(thalweg_command, tmp_path, new, name="new.parquet")
        np.testing.assert_array_equal(typed.energy, found.energy)
        code, err = score(thalweg_command, tmp_path, new)
        assert (code, len(err)) == (2, 1)
        assert "column 'flow' holds '" in err[0]

    def test_a_repair_is_written_as_the_value_beside_it(self, thalweg_command, tmp_path):
        """With a comma in a table of texts, where it is scored into a file or a folder; with a point beside numbers."""
        assert fit(thalweg_command, tmp_path, german(rows()), "--decimal", ",", "--thousands", ".")[0] == 0
        new = odd(rows(40, 1))
        texts = score(thalweg_command, tmp_path, german(new)).iloc[-1]
        assert (texts.feature_1, texts.value_1) == ("heat", "95,00")
        words = ("detect", "score", tmp_path / "run", tmp_path / "new.csv", "-o", tmp_path / "parts")
        assert thalweg_command(*words)[0] == 0
        of_folder = pd.read_parquet(tmp_path / "parts").iloc[-1]
        typed = score(thalweg_command, tmp_path, new, name="new.parquet").iloc[-1]
        assert (typed.feature_1, float(typed.value_1)) == ("heat", 95.0)
        assert texts.repair_1 == of_folder.repair_1 == str(typed.repair_1).replace(".", ",")
        assert float(texts.repair_1.replace(",", ".")) == pytest.approx(21, abs=4)

    def test_a_column_with_points_beside_one_with_commas(self, thalweg_command, tmp_path):
        """The options that would read it, and that they hold for all columns; two writings in one column, told so."""
        table = german(rows()).assign(flow=[f"{v:.3f}" for v in np.linspace(4.198, 9, 200)])
        code, _, err = fit(thalweg_command, tmp_path, table, "--decimal", ",")
        assert (code, len(err)) == (2, 1)
        assert "'4.198' in line 2" in err[0]
        assert "say --decimal . to read 4.198, or say --decimal , --thousands . to read 4198 (for all columns" in err[0]
        mixed = table.assign(flow=["4.198", "1.234,5", "1,234.5", "7.5"] * 50)
        code, _, err = fit(thalweg_command, tmp_path, mixed, "--decimal", ",")
        assert (code, len(err)) == (2, 1)
        assert "mixes two writings" in err[0]

    def test_a_fit_with_points_refuses_commas(self, thalweg_command, tmp_path):
        assert fit(thalweg_command, tmp_path, rows())[0] == 0
        for value in ("95,0", "2,500,000.00", "$4", "5 %"):
            code, err = score(thalweg_command, tmp_path, rows(3).astype({"heat": object}).assign(heat=value))
            assert (code, len(err)) == (2, 1)
            assert f"column 'heat' holds {value!r} in line 2" in err[0]

    def test_a_wrong_option(self, thalweg_command, tmp_path):
        for words, option in (
            (("--decimal", ";"), "--decimal"),
            (("--thousands", "."), "--thousands"),
            (("--dtype", "heat"), "--dtype"),
            (("--dtype", "heet=number"), "--dtype"),
        ):
            code, _, err = fit(thalweg_command, tmp_path, rows(), *words)
            assert (code, len(err)) == (2, 1)
            assert option in err[0]


class TestIndex:
    """The row numbers that pandas writes, and columns that count."""

    @pytest.mark.parametrize("how", ["the index", "again", "an id", "a shuffled id"])
    def test_it_is_left_out_and_said(self, how, plain, thalweg_command, tmp_path):
        number = {"the index": "", "again": "Unnamed: 0", "an id": "id", "a shuffled id": "nr"}[how]
        counts = np.random.default_rng(2).permutation(200) if how == "a shuffled id" else np.arange(200)
        table = rows()
        table.insert(0, number, 7 + counts)
        code, found, err = fit(thalweg_command, tmp_path, table)
        assert code == 0, err
        assert found["features"] == ["flow", "heat", "site"]
        assert [*found["columns"]["left_out"]] == [number]
        assert f"1 left out ({number!r} " in err[-2]
        new = rows(40, 1)
        scores = score(thalweg_command, tmp_path, new.assign(**{number: 9000 + np.arange(40)}))
        np.testing.assert_array_equal(scores.energy, plain.energy(new))
        np.testing.assert_array_equal(score(thalweg_command, tmp_path, new).energy, scores.energy)
        assert scores.flag.sum() < 10

    def test_only_the_first_columns_are_an_index(self):
        """Twice saved by pandas there are two; a nameless column among the others holds what it holds."""
        some = np.unique(np.random.default_rng(0).integers(0, 10**6, 210))[:200][
            np.random.default_rng(0).permutation(200)
        ]
        table = rows()
        table.insert(0, "", some)
        table.insert(1, "Unnamed: 0", some)
        table.insert(3, "Unnamed: 3", some)
        assert [name for name, _ in learn(table, Reading()).columns.left_out] == ["", "Unnamed: 0"]

    def test_it_is_kept_where_that_is_said(self, thalweg_command, tmp_path):
        code, found, _ = fit(thalweg_command, tmp_path, rows().assign(id=np.arange(200)), "--dtype", "id=number")
        assert code == 0
        assert found["columns"]["numbers"]["id"] == 200
        assert found["columns"]["left_out"] == {}

    def test_times_are_refused_and_said(self, thalweg_command, tmp_path):
        seconds = 1_706_745_600 + np.random.default_rng(0).integers(0, 90, 200).cumsum()
        days = pd.date_range("2024-01-01", periods=200, freq="4h").strftime("%d-%b-%y")
        for values in (seconds, days):
            code, _, err = fit(thalweg_command, tmp_path, rows().assign(day=values))
            assert (code, len(err)) == (2, 1)
            assert "column 'day' holds" in err[0]
            assert "--dtype day=" in err[0]

    def test_a_sorted_measurement_stays_and_is_told(self, thalweg_command, tmp_path):
        code, found, err = fit(thalweg_command, tmp_path, rows().sort_values("flow"))
        assert code == 0
        assert "flow" in found["columns"]["numbers"]
        assert any("'flow' only rises" in line for line in err)

    def test_nothing_is_left(self, thalweg_command, tmp_path):
        code, _, err = fit(thalweg_command, tmp_path, pd.DataFrame({"id": np.arange(50)}))
        assert (code, len(err)) == (2, 1)
        assert "must hold a column of measurements" in err[0]


class TestMissing:
    @pytest.fixture
    def garages(self):
        """A category whose name is NA, for rows of another flow."""
        table = rows(300)
        table["site"] = np.where(np.arange(300) % 5 < 2, "NA", table.site)
        table.loc[table.site == "NA", "flow"] += 5000
        return table

    def test_a_word_is_named_with_its_rows(self, garages, thalweg_command, tmp_path):
        code, _, err = fit(thalweg_command, tmp_path, garages)
        assert (code, len(err)) == (2, 1)
        for part in ("column 'site'", "'NA' in 120 rows", "in line 2", "--missing marginalise", "--na-values ''"):
            assert part in err[0]

    def test_a_word_may_be_a_category(self, garages, thalweg_command, tmp_path):
        """Then a row of another category with the flow of those is odd, in the score too."""
        code, found, err = fit(thalweg_command, tmp_path, garages, "--na-values", "")
        assert code == 0, err
        assert (found["rows_used"], found["columns"]["categories"]) == (300, {"site": 4})
        new = rows(2).assign(flow=[6500.0, 6500.0], heat=21.0, site=["NA", "u"])
        assert score(thalweg_command, tmp_path, new).flag.tolist() == [False, True]

    def test_rows_that_are_left_out_are_said(self, garages, thalweg_command, tmp_path):
        garages.loc[:2, "heat"] = np.nan
        code, found, err = fit(thalweg_command, tmp_path, garages, "--missing", "marginalise")
        assert code == 0
        assert found["columns"]["missing"] == {"heat": {"": 3}, "site": {"NA": 120}}
        assert "missing: heat: empty in 3 rows, site: 'NA' in 120 rows" in err[-2]
        new = garages.astype({"heat": object}).assign(heat=["NA", 21.0, 21.0] * 100)
        np.testing.assert_array_equal(
            score(thalweg_command, tmp_path, new).energy,
            score(thalweg_command, tmp_path, new.replace("NA", "")).energy,
        )

    def test_words_of_ones_own(self, thalweg_command, tmp_path):
        """In place of the usual ones, and stored: the score reads the same."""
        table = rows().astype({"heat": object})
        table.loc[::4, "heat"] = "-"
        words = ["--missing", "marginalise", "--na-values", "-", "--na-values", "n. a."]
        code, found, err = fit(thalweg_command, tmp_path, table, *words)
        assert code == 0, err
        assert found["rows_used"] == 150
        assert len(score(thalweg_command, tmp_path, table)) == 200
        code, err = score(thalweg_command, tmp_path, table.assign(heat="NA"))
        assert code == 2
        assert "'NA' in line 2" in err[0]

    def test_a_label_that_means_missing_is_none(self, thalweg_command, tmp_path):
        table = rows().assign(label=["NA", "ok"] * 100)
        words = ["--target-column", "label", "--normal", "NA"]
        assert fit(thalweg_command, tmp_path, table, *words)[0] == 2
        assert fit(thalweg_command, tmp_path, table, *words, "--na-values", "")[1]["rows_used"] == 100

    def test_the_help_names_the_words(self, thalweg_command):
        from thalweg.cli import detect

        assert all(word in detect.NA for word in NA_WORDS)
        assert len(detect.NA.replace(" and ", ", ").split(", ")) == len(NA_WORDS)


class TestLine:
    def test_what_the_columns_hold(self, thalweg_command, tmp_path):
        code, found, err = fit(thalweg_command, tmp_path, rows().assign(open=[True, False] * 100, id=range(200)))
        assert code == 0
        sorts = found["columns"]
        assert {name: [*part] for name, part in sorts.items() if part} == {
            "numbers": ["flow", "heat"],
            "truth": ["open"],
            "categories": ["site"],
            "left_out": ["id"],
        }
        assert sorts["categories"]["site"] == 3
        assert sorts["numbers"]["heat"] == rows().heat.nunique()
        assert len(err) == 2
        assert "2 of numbers (flow: 200, heat: " in err[0]
        assert "1 of categories (site: 3)" in err[0]

    def test_it_is_short_for_a_wide_table(self):
        wide = pd.DataFrame(
            np.random.default_rng(0).normal(size=(30, 400)), columns=[f"sensor {i}" for i in range(400)]
        )
        line = describe(learn(wide, Reading()).to_dict())
        assert len(line) < 300
        assert "400 of numbers (sensor 0: 30, " in line
        assert "and 395 more" in line


class TestInMemory:
    """Frames, as pandas reads a CSV without being told how."""

    @pytest.mark.parametrize("kind", [pd.DataFrame, pl.from_pandas, pa.Table.from_pandas])
    def test_texts_that_are_no_categories(self, kind, plain):
        with pytest.raises(UserError, match=r"decimal=',', thousands='\.'"):
            thalweg.EnergyDetector().fit(kind(german(rows())))
        detector = thalweg.EnergyDetector(decimal=",", thousands=".", random_state=0).fit(kind(german(rows())))
        np.testing.assert_array_equal(detector.train_scores_, plain.train_scores_)
        np.testing.assert_array_equal(detector.energy(kind(german(rows(9, 1)))), plain.energy(rows(9, 1)))
        with pytest.raises(UserError, match="dates or times"):
            thalweg.EnergyDetector().fit(kind(rows().assign(site=["01-Jan-24", "02-Jan-24"] * 100)))

    def test_a_column_that_counts(self, plain, caplog):
        table = rows()
        table.insert(0, "Unnamed: 0", range(200))
        with caplog.at_level(logging.INFO, "thalweg"):
            detector = thalweg.EnergyDetector(random_state=0).fit(table)
        assert "'Unnamed: 0'" in caplog.text
        assert caplog.records[0].levelname == "WARNING"
        assert (detector.n_features_in_, [*detector.feature_names_in_]) == (3, ["flow", "heat", "site"])
        for new in (table[:5], table[:5].drop(columns="Unnamed: 0")):
            np.testing.assert_array_equal(detector.energy(new), plain.energy(rows()[:5]))
        assert [r.feature for r in detector.explain(table[:1])] == [r.feature for r in plain.explain(rows()[:1])]
        kept = thalweg.EnergyDetector(random_state=0, dtype={"Unnamed: 0": "number"}).fit(table)
        assert kept.n_features_in_ == 4

    def test_words_are_only_those_that_are_given(self):
        table = rows().assign(site=["NA", "u"] * 100)
        assert thalweg.EnergyDetector().fit(table).columns_.columns[2].categories == ("NA", "u")
        with pytest.raises(UserError, match=r"'NA' in 100 rows.*na_values=\[\]"):
            thalweg.EnergyDetector(na_values=["NA"]).fit(table)

    @pytest.mark.parametrize("given", [{"decimal": ","}, {"na_values": []}, {"dtype": {"x0": "number"}}])
    def test_an_option_without_effect(self, given):
        x = np.random.default_rng(0).normal(size=(30, 2))
        for kind, data in (("table", x), ("image", np.zeros((30, 8, 8)))):
            with pytest.raises(UserError) as caught:
                thalweg.EnergyDetector(kind=kind, **given).fit(data)
            assert caught.value.argument == next(iter(given))

    def test_it_is_stored_as_it_was_fitted(self, tmp_path):
        """A parameter that is set after the fit does not change what the fit has learned."""
        table = german(rows()).assign(id=range(200))
        detector = thalweg.EnergyDetector(decimal=",", thousands=".", random_state=0).fit(table)
        detector.set_params(decimal=".", thousands=",")
        DetectorBundle(detector).save_pretrained(tmp_path / "run")
        again = thalweg.load(tmp_path / "run").detector
        assert (again.decimal, again.thousands) == (",", ".")
        assert again.columns_ == detector.columns_
        new = german(rows(20, 3))
        np.testing.assert_array_equal(again.energy(new), detector.energy(new))
        np.testing.assert_array_equal(again.fit(table).train_scores_, detector.train_scores_)
