"""A first line is names or data: told by what stands below it, by the fit or by an option, never by a silent guess."""

import json

import numpy as np
import pandas as pd
import pytest

NAMES = {
    "months": list(range(1, 5)),
    "years": [2019, 2020, 2021, 2022],
    "fractions": [1.5, 2.5, 3.5, 4.5],
    "pandas' own": [0, 1, 2, 3],
    "one": [0],
}


def numbers(names, num=60, seed=0):
    """Rows of columns of different sizes, so that columns in another order are strange."""
    x = np.random.default_rng(seed).normal(size=(num, len(names))) * 10.0 ** np.arange(len(names))
    return pd.DataFrame(x, columns=names)


@pytest.mark.parametrize("name", NAMES)
def test_a_header_of_numbers_is_asked_for_and_then_known(name, thalweg_command, tmp_path):
    """Fit refuses it without an option; `score` knows it by the fit, whatever the order of the columns."""
    table, run, out = tmp_path / "t.csv", tmp_path / "run", tmp_path / "s.csv"
    frame = numbers(NAMES[name])
    frame.to_csv(table, index=False)
    code, _, err = thalweg_command("detect", "fit", table, "-o", run)
    assert (code, len(err)) == (2, 1), err
    assert f"the first line, with '{NAMES[name][0]}', could be names or data; say --header" in err[0]
    code, told, err = thalweg_command("detect", "fit", table, "-o", run, "--header", "--json")
    assert code == 0, err
    told = json.loads(told)
    assert (told["features"], told["rows"]) == ([str(n) for n in NAMES[name]], 60)
    frame[frame.columns[::-1]].to_csv(tmp_path / "turned.csv", index=False)
    found = []
    for path in (table, tmp_path / "turned.csv"):
        code, _, err = thalweg_command("detect", "score", run, path, "-o", out)
        assert code == 0, err
        found.append(pd.read_csv(out))
    pd.testing.assert_frame_equal(*found)
    assert len(found[0]) == 60


def test_a_table_without_header(thalweg_command, tmp_path):
    """Rows are all kept; `score` takes the like as it is, and asks where the first line is 0, 1, … or all texts."""
    table, run, out = tmp_path / "t.csv", tmp_path / "run", tmp_path / "s.csv"
    frame = numbers([*"abc"]).assign(d="u")
    frame.to_csv(table, index=False, header=False)
    code, _, err = thalweg_command("detect", "fit", table, "-o", run)
    assert (code, len(err)) == (2, 1)
    assert "--no-header if it is a row" in err[0]
    code, told, err = thalweg_command("detect", "fit", table, "-o", run, "--no-header", "--json")
    assert code == 0, err
    assert (json.loads(told)["features"], json.loads(told)["rows"]) == ([*"0123"], 60)
    assert thalweg_command("detect", "score", run, table, "-o", out)[0] == 0
    assert len(pd.read_csv(out)) == 60
    for names, words in (([*"0123"], ["--header"]), ([*"abcd"], ["--no-header"])):
        frame.set_axis(names, axis=1).to_csv(table, index=False)
        code, _, err = thalweg_command("detect", "score", run, table, "-o", out)
        assert (code, len(err)) == (2, 1)
        assert f"with {names[0]!r}, could be names or data" in err[0]
        code, _, err = thalweg_command("detect", "score", run, table, "-o", out, *words)
        assert code == (0 if words == ["--header"] else 2), err
    assert "column '0' holds 'a' in line 1" in err[0]


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("id,2019,2020\n7,1.5,2.5\n", True),  # a text above a number
        ("site,2019\nu,1.5\n", None),  # texts above texts, numbers above numbers
        ("39,State-gov\n50,Private\n", None),
        ("a,1.5\n2,3\n", None),  # hardly a name
        ('"19,4","3,1"\n"18,2","3,3"\n', None),  # numbers in another writing
        ('temperature,flow\n"18,2","3,3"\n', True),
        ('"1,234",id\n"1,567",7\n', None),
        ("NA,4\n1,2\n", None),  # a gap is no name
        ("a,b\nu,v\n", True),
        ("1\n2\n", None),
        ("a,2\n", None),  # nothing below
        ('"a\nb",2\n1,2\n', True),
    ],
)
def test_what_the_lines_tell(text, header, tmp_path):
    from thalweg.core.errors import UserError
    from thalweg.data.tables import open_table

    (tmp_path / "t.csv").write_text(text)
    if header is None:
        with pytest.raises(UserError, match="could be names or data"):
            open_table(tmp_path / "t.csv")
    else:
        assert open_table(tmp_path / "t.csv").headless is not header
    for wanted in (True, False):
        assert open_table(tmp_path / "t.csv", header=wanted).headless is not wanted


def test_a_numeric_header_unlike_the_fit(thalweg_command, tmp_path):
    table, run = tmp_path / "t.csv", tmp_path / "run"
    numbers(NAMES["months"]).to_csv(table, index=False)
    assert thalweg_command("detect", "fit", table, "-o", run, "--header")[0] == 0
    numbers([1, 2, 3, 9]).to_csv(table, index=False)
    words = ["detect", "score", run, table, "-o", tmp_path / "s.csv"]
    code, _, err = thalweg_command(*words)
    assert (code, len(err)) == (2, 1)
    assert "could be names or data, and is unlike the table of the fit; say --header" in err[0]
    code, _, err = thalweg_command(*words, "--header")
    assert (code, len(err)) == (2, 1)
    assert "lacks column '4' (column '9' not known)" in err[0]


def test_a_parquet_table_has_its_names(normal_rows, thalweg_command, tmp_path):
    normal_rows().to_parquet(tmp_path / "t.parquet")
    code, _, err = thalweg_command("detect", "fit", tmp_path / "t.parquet", "-o", tmp_path / "run", "--no-header")
    assert (code, len(err)) == (2, 1)
    assert "leave out --no-header" in err[0]


@pytest.mark.parametrize(("separator", "decimal"), [(";", "."), (";", ","), ("\t", "."), ("|", "."), (" ", ".")])
def test_other_separators_are_refused(separator, decimal, thalweg_command, tmp_path):
    numbers([*"abc"]).to_csv(tmp_path / "t.csv", index=False, sep=separator, decimal=decimal)
    code, _, err = thalweg_command("detect", "fit", tmp_path / "t.csv", "-o", tmp_path / "run")
    assert (code, len(err)) == (2, 1)
    assert "its columns are separated by" in err[0]


def test_one_column_of_words_is_a_table(thalweg_command, tmp_path):
    """Blanks in a name and in its texts separate nothing."""
    (tmp_path / "t.csv").write_text("site name\n" + "north east\nsouth west\n" * 20)
    code, _, err = thalweg_command("detect", "fit", tmp_path / "t.csv", "-o", tmp_path / "run")
    assert code == 0, err
