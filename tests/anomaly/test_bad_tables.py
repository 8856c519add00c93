"""Every bad table a user may give `thalweg detect`: one line that says what, where and how to mend, and exit code 2.

Each case is a file and what `fit` and `score` say of it, for both or one each: a part of the line, None where it works.
"""

import gzip
import io
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as arrow_parquet

import thalweg


def csv(frame):
    return frame.to_csv(index=False).encode()


def parquet(frame):
    return frame.to_parquet()


def arrow(frame, name, values):
    """Parquet with one column in a type that pandas does not have."""
    table, file = pa.Table.from_pandas(frame, preserve_index=False), io.BytesIO()
    values = values if isinstance(values, pa.Array) else pa.array(values)
    arrow_parquet.write_table(table.set_column(table.column_names.index(name), name, values), file)
    return file.getvalue()


def with_value(frame, value, column="flow", row=7):
    """The table with one value set."""
    frame = frame.astype({"flow": object, "site": object})
    frame.loc[row, column] = value
    return frame


# name: (content from the good table t, what both say) or (content, what fit says, what score says)
CASES = {
    "one row": (lambda t: t[:1], "must hold 2 rows or more", None),
    "no row": (lambda t: b"flow,heat,site\n", "must hold rows to fit", "must hold one row"),
    "a header without end of line": (lambda t: b"flow,heat,site", "must hold rows to fit", "must hold one row"),
    "empty file": (lambda t: b"", "an empty file"),
    "blank lines": (lambda t: b"\n\n\n", "no columns"),
    "a column without values": (lambda t: t.assign(heat=np.nan), "'heat' has no value at all", "'heat' is missing"),
    "a gap": (lambda t: with_value(t, np.nan), "'flow' is missing (NaN) in line 9"),
    "a gap among categories": (lambda t: with_value(t, None, "site"), "'site' is missing (NaN) in line 9"),
    "an infinite value": (lambda t: with_value(t, np.inf), "'flow' is infinite"),
    "a minus infinite value": (lambda t: with_value(t, -np.inf), "'flow' is infinite"),
    "a text among numbers": (lambda t: with_value(t, "oops"), "'flow' holds 'oops' in line 9"),
    "a text in a column of numbers": (lambda t: t.assign(heat="hot"), None, "'heat' holds 'hot' in line 2"),
    "numbers for categories": (lambda t: t.assign(site=np.arange(len(t))), None, "holds numbers where categories"),
    "numbers for categories, typed": (
        lambda t: parquet(t.assign(site=np.arange(len(t)))), None, "holds numbers where categories",
    ),
    "a column too few": (lambda t: t[["flow", "site"]], None, "lacks column 'heat'"),
    "a column too many": (lambda t: t.assign(age=1.0), None, "column 'age' not among the 3 columns of the fit"),
    "a column renamed": (lambda t: t.rename(columns={"flow": "Flow"}), None, "lacks column 'flow' (column 'Flow'"),
    "one name twice": (lambda t: csv(t).replace(b"heat", b"flow", 1), "column 'flow' there twice"),
    "dates": (lambda t: parquet(t.assign(site=pd.Timestamp(0))), "'site' holds dates"),
    "dates in a CSV": (lambda t: t.assign(site="2024-01-02"), "'site' holds dates or times such as '2024", None),
    "times in a CSV": (lambda t: t.assign(site="12:05:00"), "'site' holds dates or times such as '12:05:00'", None),
    "durations": (lambda t: parquet(t.assign(site=pd.Timedelta(1, "h"))), "'site' holds dates or times"),
    "bytes": (lambda t: parquet(t.assign(site=t.site.str.encode("utf8"))), "'site' holds bytes"),
    "bytes of one length": (
        lambda t: arrow(t, "site", pa.array([*t.site.str.encode("utf8")], pa.binary(1))), "'site' holds bytes",
    ),
    "numbers as Python writes them": (lambda t: with_value(t, "1_000"), "'flow' holds '1_000' in line 9"),
    "digits of another script": (lambda t: with_value(t, "\uff11"), "'flow' holds '\uff11' in line 9"),
    "whole numbers beyond 2^53": (lambda t: arrow(t, "flow", [2**60 + i for i in range(len(t))]), None, None),
    "whole numbers beyond 2^63": (
        lambda t: arrow(t, "flow", pa.array([2**64 - 1] * len(t), pa.uint64())), None, None,
    ),
    "decimals of 256 bits": (
        lambda t: arrow(t, "flow", pa.array([Decimal(f"{v:.2f}") for v in t.flow], pa.decimal256(60, 2))), None, None,
    ),
    "lists": (lambda t: parquet(t.assign(site=[[1]] * len(t))), "'site' holds lists"),
    "cut Parquet": (lambda t: parquet(t)[:-200], "damaged or not what its name says"),
    "half a Parquet": (lambda t: parquet(t)[:800], "damaged or not what its name says"),
    "Parquet named CSV": (lambda t: ("csv", parquet(t)), "it is Parquet, so name it"),
    "CSV named Parquet": (lambda t: ("parquet", csv(t)), "damaged or not what its name says"),
    "another kind": (lambda t: ("xlsx", csv(t)), ".xlsx: a table is .csv or .parquet; a CSV is UTF-8 text"),
    "tabs, by the name": (lambda t: ("tsv", csv(t).replace(b",", b"\t")), ".tsv: a table is .csv or .parquet"),
    "Latin 1": (lambda t: csv(t).replace(b"u\n", b"\xfc\n"), "not UTF-8 text; a CSV is UTF-8"),
    "Latin 1 in the names": (lambda t: csv(t).replace(b"heat", b"h\xe9at"), "not UTF-8 text"),
    "UTF-16": (lambda t: csv(t).decode().encode("utf-16"), "not UTF-8 text"),
    "semicolons": (lambda t: csv(t).replace(b",", b";"), "separated by semicolons"),
    "tabs": (lambda t: csv(t).replace(b",", b"\t"), "separated by tabs"),
    "bars": (lambda t: csv(t).replace(b",", b"|"), "separated by bars"),
    "blanks": (lambda t: csv(t).replace(b",", b" "), "separated by blanks; a CSV is"),
    "gzip": (lambda t: ("csv", gzip.compress(csv(t))), "compressed (gzip); unpack it"),
    "gzip, by the name": (lambda t: ("gz", gzip.compress(csv(t))), "it is compressed (gzip), so unpack it"),
    "a zip": (lambda t: ("csv", b"PK\3\4\xff\xff" + csv(t)), "compressed (zip or xlsx); unpack it"),
    "no names": (lambda t: csv(t).split(b"\n", 1)[1], "could be names or data"),
    "a short line": (lambda t: csv(t) + b"1.0,2.0\n", "a line has too many or too few values (line 62: Exp"),
    "a long line": (lambda t: csv(t) + b"1,2,u,4\n", "Expected 3 columns, got 4: 1,2,u,4); mend the line"),
    "an open quotation mark": (lambda t: csv(t) + b'1,2,"u\n1,2,v\n', "never closed"),
    "cut in a quoted text": (lambda t: csv(t) + b'1,2,"u', "never closed"),
    "all constant": (lambda t: t.assign(flow=1.0, heat=2.0, site="u"), None, None),
    "a constant column": (lambda t: t.assign(flow=1.0), None, None),
    "ten rows": (lambda t: t[:10], None, None),
    "a huge value": (lambda t: with_value(t, 1e30), None, None),
    "a value near the largest": (lambda t: with_value(t, 1.7e308), None, None),
    "huge values": (lambda t: t.assign(flow=1e30 * t.flow), None, None),
    "a new category": (lambda t: with_value(t, "new", "site"), None, None),
    "a quotation mark inside": (lambda t: csv(t) + b'1,2,5" pipe\n1,2,"5"" pipe"\n', None, None),
    "a byte order mark": (lambda t: b"\xef\xbb\xbf" + csv(t), None, None),
    "lines of Windows": (lambda t: csv(t).replace(b"\n", b"\r\n"), None, None),
}  # fmt: skip


def write(content, folder):
    """The case as a file."""
    suffix = "csv"
    if isinstance(content, tuple):
        suffix, content = content
    elif isinstance(content, bytes) and content[:4] == b"PAR1":
        suffix = "parquet"
    elif not isinstance(content, bytes):
        content = content.to_csv(index=False).encode()
    path = folder / f"table.{suffix}"
    path.write_bytes(content)
    return path


def one_line(code, err, path, part):
    """Exit code 2 and a single line that names the file and says this."""
    assert code == 2
    assert len(err) == 1, err
    assert "Traceback" not in err[0]
    assert str(path) in err[0]
    assert part in err[0]


@pytest.mark.parametrize("name", CASES)
def test_fit(name, normal_rows, thalweg_command, tmp_path):
    content, part, *_ = CASES[name]
    path = write(content(normal_rows()), tmp_path)
    code, _, err = thalweg_command("detect", "fit", path, "-o", tmp_path / "run")
    if part is not None:
        one_line(code, err, path, part)
        assert not (tmp_path / "run").exists()
        return
    assert code == 0, err
    assert np.isfinite(thalweg.load(tmp_path / "run").detector.train_scores_).all()


@pytest.mark.parametrize("name", CASES)
def test_score(name, normal_rows, thalweg_command, run, tmp_path):
    content, *_, part = CASES[name]
    path, out = write(content(normal_rows()), tmp_path), tmp_path / "scores.csv"
    out.write_text("earlier scores\n")
    code, _, err = thalweg_command("detect", "score", run, path, "-o", out)
    if part is not None:
        one_line(code, err, path, part)
        assert out.read_text() == "earlier scores\n"
        assert {p.name for p in tmp_path.iterdir()} == {path.name, out.name}
        return
    assert code == 0, err
    scores = pd.read_csv(out)
    assert np.isfinite(scores.energy).all()
    assert scores.row.tolist() == list(range(1, len(scores) + 1))
    if name in ("a huge value", "a value near the largest", "a new category"):
        assert scores.energy.idxmax() == 7
        assert scores.flag[7] or name == "a new category"


def test_strange_tables_are_judged_by_what_they_were_fitted_on(normal_rows, thalweg_command, tmp_path):
    """Where all fitted rows are equal, any other row is flagged and they are not; ten rows can flag none at 5 %."""
    constant = normal_rows().assign(flow=1.0, heat=2.0, site="u")
    constant.to_csv(tmp_path / "constant.csv", index=False)
    pd.concat([constant[:3], normal_rows()[:3]]).to_csv(tmp_path / "new.csv", index=False)
    assert thalweg_command("detect", "fit", tmp_path / "constant.csv", "-o", tmp_path / "a")[0] == 0
    assert thalweg_command("detect", "score", tmp_path / "a", tmp_path / "new.csv", "-o", tmp_path / "a.csv")[0] == 0
    assert pd.read_csv(tmp_path / "a.csv").flag.tolist() == [False] * 3 + [True] * 3
    normal_rows(10).to_csv(tmp_path / "ten.csv", index=False)
    code, _, err = thalweg_command("detect", "fit", tmp_path / "ten.csv", "-o", tmp_path / "b")
    assert code == 0
    assert "10 rows to calibrate with: none can be flagged at a false-alarm rate of 0.05; give 19" in err[0]


def test_a_column_of_names_is_told_and_useless(normal_rows, thalweg_command, tmp_path):
    normal_rows().assign(name=[f"row {i}" for i in range(60)]).to_csv(tmp_path / "t.csv", index=False)
    code, _, err = thalweg_command("detect", "fit", tmp_path / "t.csv", "-o", tmp_path / "run")
    assert code == 0
    assert err[0] == "column 'name' holds another text in each row, which tells nothing; drop it"
    _, _, err = thalweg_command("detect", "fit", tmp_path / "t.csv", "-o", tmp_path / "run", "--drop", "name")
    assert not any("'name'" in line for line in err)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nowhere.csv", "-o", "s.csv"], "nowhere.csv: no such file"),
        ([".", "-o", "s.csv"], "must be a folder for ., which may be many files"),
        (["t.csv", "-o", "nowhere/s.csv"], "make the folder nowhere first"),
        (["t.csv", "-o", "s.xlsx"], "must end in .csv or .parquet"),
        (["t.csv", "-o", "t.csv"], "t.csv: must be another file than the table"),
        (["t.csv", "-o", "s.csv", "--alpha", "2"], "--alpha=2.0: must be a number between 0 and 1"),
    ],
)
def test_wrong_words_of_score(words, part, normal_rows, thalweg_command, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_bytes(csv(normal_rows()))
    (tmp_path / "sub.csv").mkdir()
    code, _, err = thalweg_command("detect", "score", run, *words)
    assert code == 2
    assert len(err) == 1
    assert part in err[0]
    assert (tmp_path / "t.csv").read_bytes() == csv(normal_rows())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--target-column", "label"], "no column 'label'; there are flow, heat, site"),
        (["--drop", "age"], "no column 'age'"),
        (["--normal", "0"], "--normal='0': must come with a target column"),
        (
            ["--target-column", "site", "--normal", "x"],
            "must hold rows to fit on with site = x, whose values are u, v, w",
        ),
        (["--false-alarm-rate", "0"], "--false-alarm-rate=0.0: must be a number between 0 and 1"),
        (["--missing", "ignore"], "--missing='ignore': must be one of raise, marginalise"),
        (["--calibration", "none"], "--calibration='none': must be one of"),
        (["--drop", "flow", "--drop", "heat", "--drop", "site"], "no columns"),
        (["-o", "t.csv"], "t.csv: must be empty or hold a detector"),
        (["-o", "t.csv/run"], "t.csv/run: must be a folder that can be made"),
    ],
)
def test_wrong_words_of_fit(words, part, normal_rows, thalweg_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_bytes(csv(normal_rows()))
    code, _, err = thalweg_command("detect", "fit", "t.csv", "-o", "run", *words)
    assert code == 2
    assert len(err) == 1
    assert part in err[0]
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
