"""Many files scored into a folder: the same numbers as one file after the other, each row once (R30)."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import thalweg
from thalweg.apps.anomaly.calibration import q_values
from thalweg.apps.anomaly.tables.score_file import score_file
from thalweg.core.errors import DamagedFile, UserError
from thalweg.scale import addresses, parts, plan
from thalweg.scale.score_files import Engine
from thalweg.scale.sources import CsvSource, ParquetSource
from thalweg.scale.worker import Worker


def written(folder):
    """All parts as one frame; files whose names begin with _ are passed over by readers."""
    return pd.read_parquet(folder)


def test_a_detectors_scores_are_those_of_each_file(score, detector, tables, tmp_path):
    """Energy, p, flag and reasons to the bit; q over all rows of all files; each row of each file once."""
    found = score(tables, tmp_path / "out")
    assert (found.rows, found.parts, found.computed) == (1260, 7 + 3 + 3, 13)
    frame, apart = written(tmp_path / "out"), []
    for path in sorted(tables.iterdir()):
        score_file(thalweg.load(detector), path, tmp_path / "one.parquet")
        apart.append(pd.read_parquet(tmp_path / "one.parquet").assign(file=str(path)))
    wanted = pd.concat(apart, ignore_index=True)
    assert len(frame[["file", "row"]].drop_duplicates()) == len(frame)
    wanted["q_value"] = q_values(wanted["p_value"].to_numpy())
    both = [each.astype({"file": str}).sort_index(axis=1) for each in (frame, wanted)]
    exact = [name for name in both[0].columns if name not in ("energy", "q_value") and "share" not in name]
    pd.testing.assert_frame_equal(both[0][exact], both[1][exact])
    pd.testing.assert_frame_equal(both[0], both[1], rtol=1e-9)  # blocks of other sizes are summed in another order
    assert found.flagged == int(wanted["flag"].sum()) > 0
    assert found.discoveries == int((wanted["q_value"] <= thalweg.load(detector).detector.rate_).sum())


def test_a_trained_energys_scores_are_those_of_the_bundle(score, plane, tmp_path):
    """Of an array, of Parquet with other columns and of a CSV, with log p, p-values and flags."""
    x = np.random.default_rng(0).normal(size=(900, 2)).astype(np.float32)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", x)
    frame = pd.DataFrame({"time": range(900), "u": x[:, 0], "v": x[:, 1]})
    parquet.write_table(pa.Table.from_pandas(frame.drop(columns="time")), tmp_path / "in" / "b.parquet")
    frame.drop(columns="time").to_csv(tmp_path / "in" / "c.csv", index=False)
    given = {"kind": "energy", "run": plane.path, "block_rows": 256}
    found = score(tmp_path / "in", tmp_path / "out", **given)
    assert (found.rows, found.parts) == (2700, 12)
    got, wanted = written(tmp_path / "out"), plane.score(x)
    assert list(got.columns) == ["file", "name", *wanted]
    for name, part in got.groupby("file", observed=True):
        assert part["name"].tolist() == [str(i) for i in range(900)], name
        for key, value in wanted.items():
            tolerance = 0 if str(name).endswith("npy") else 1e-5 if key in ("energy", "log_prob") else 1e-3
            np.testing.assert_allclose(part[key].to_numpy(), value.numpy(), rtol=tolerance, atol=tolerance)
    assert found.mean_energy == pytest.approx(got["energy"].mean())


def test_images_in_arrays(score, digits, tmp_path):
    """Pixels uint8 of a grey image without an axis of channels."""
    x = np.random.default_rng(0).integers(0, 256, size=(300, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    score(tmp_path / "x.npy", tmp_path / "out", kind="energy", run=digits.path, block_rows=256)
    np.testing.assert_array_equal(written(tmp_path / "out")["energy"], digits.energy(x[:, None]).numpy())


def test_a_row_group_is_not_read_as_a_whole(tables, rows):
    """A mutant that skips too many rows of the first row group gives others than the frame's."""
    source = plan.absolute(str(tables / "a.parquet"))
    found, frame = ParquetSource("a", source), pd.read_parquet(source)
    for first, num in ((0, 1), (129, 2), (130, 130), (0, 700), (699, 1), (250, 300)):
        got = found.read(first, num, ["heat", "flow"], (0, 0)).to_pandas()
        pd.testing.assert_frame_equal(got, frame[["heat", "flow"]].iloc[first : first + num].reset_index(drop=True))


def test_a_first_row_is_tried_without_the_rest_of_its_block(score, tables, tmp_path, monkeypatch):
    sizes, read = [], CsvSource.read

    def told(self, first, rows, names, span):
        sizes.append((rows, span[1] - span[0]))
        return read(self, first, rows, names, span)

    monkeypatch.setattr(CsvSource, "read", told)
    score(tables, tmp_path / "out")
    assert sizes[0][0] == 1
    assert 0 < sizes[0][1] < min(size for _, size in sizes[1:])


class TestAddresses:
    def test_in_memory_as_on_disk(self, score, tables, bytes_of, tmp_path):
        """Addresses of fsspec for input and output; the parts differ by the names of the files alone."""
        fsspec = pytest.importorskip("fsspec")
        memory = fsspec.filesystem("memory")
        for path in tables.iterdir():
            memory.pipe_file(f"/in/{path.name}", path.read_bytes())
        try:
            first = score("memory://in/*", "memory://out")
            assert score("memory://in/*", "memory://out").computed == 0
            score(tables, tmp_path / "out")
            names = addresses.names_in("memory://out")
            assert names == [*bytes_of(tmp_path / "out")]
            for name in (name for name in names if name.endswith(".parquet")):
                with memory.open(f"/out/{name}") as file:
                    far = pd.read_parquet(file)
                near = pd.read_parquet(tmp_path / "out" / name)
                assert far["file"].str.startswith("memory://").all()
                pd.testing.assert_frame_equal(far.drop(columns="file"), near.drop(columns="file"))
            assert first.rows == 1260
        finally:
            memory.rm("/in", recursive=True)
            memory.rm("/out", recursive=True)

    def test_file_addresses_are_paths(self, score, tables, bytes_of, tmp_path):
        score(f"file://{tables}/*.parquet", f"file://{tmp_path}/out")
        score(f"{tables}/*.parquet", tmp_path / "other")
        assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "other")

    def test_a_package_that_is_missing(self, monkeypatch):
        import fsspec

        def missing(address):
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
        with pytest.raises(UserError, match="Install s3fs"):
            addresses.listed("s3://bucket/*.parquet", (".parquet",))

    def test_a_protocol_that_nobody_knows(self):
        with pytest.raises(UserError, match="must be an address of fsspec"):
            addresses.listed("nope://bucket/*.parquet", (".parquet",))


class TestRefused:
    def test_no_files(self, score, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "notes.txt").write_text("x")
        for data in ("in/*.parquet", "in", "nowhere"):
            with pytest.raises(UserError, match=r"must match files|no such file"):
                score(tmp_path / data, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_other_columns_before_any_work(self, score, rows, tables, tmp_path, monkeypatch):
        """In the last of the files; a mutant that checks the first one alone begins to work."""
        monkeypatch.setattr(Worker, "score", lambda *_: pytest.fail("worked"))
        (tmp_path / "in").mkdir()
        rows(30, 1).to_parquet(tmp_path / "in" / "a.parquet")
        rows(30, 1).rename(columns={"heat": "cold"}).to_parquet(tmp_path / "in" / "b.parquet")
        with pytest.raises(UserError, match=r"lacks column 'heat'.*'cold' not known") as caught:
            score(tmp_path / "in", tmp_path / "out")
        assert caught.value.argument.endswith("b.parquet")
        rows(30, 1).assign(heat="warm").to_parquet(tmp_path / "in" / "b.parquet")
        with pytest.raises(UserError, match="column 'heat'"):
            score(tmp_path / "in" / "b.parquet", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_column_that_is_left_out(self, score, rows, tmp_path):
        rows(30, 1).assign(id=range(30)).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(UserError, match=r"--drop id|--drop 'id'"):
            score(tmp_path / "a.parquet", tmp_path / "out")
        assert score(tmp_path / "a.parquet", tmp_path / "out", options=(None, ("id",))).rows == 30
        with pytest.raises(UserError, match="no column 'nope'"):
            score(tmp_path / "a.parquet", tmp_path / "out", options=(None, ("nope",)))

    @pytest.mark.parametrize("suffix", [".parquet", ".csv"])
    def test_a_row_that_cannot_be_scored(self, score, rows, suffix, tmp_path):
        """Its file and its number in the file; the parts before it stay whole."""
        frame = rows(500, 1)
        frame.loc[333, "flow"] = np.nan
        (tmp_path / "in").mkdir()
        write = frame.to_parquet if suffix == ".parquet" else frame.to_csv
        write(tmp_path / "in" / f"bad{suffix}", index=False)
        with pytest.raises(UserError, match=r"'flow' is missing.* in row 333") as caught:
            score(tmp_path / "in", tmp_path / "out")
        assert caught.value.argument.endswith(f"bad{suffix}")
        names = addresses.names_in(str(tmp_path / "out"))
        assert names == ["_plan.json", *(f"part-{i:06d}.parquet" for i in range(3))]

    def test_a_text_among_numbers(self, score, plane, tmp_path):
        """Its number in the file, not in the block."""
        frame = pd.DataFrame(np.random.default_rng(0).normal(size=(600, 2)), columns=["u", "v"]).astype(object)
        frame.loc[555, "v"] = "oops"
        frame.to_csv(tmp_path / "x.csv", index=False)
        with pytest.raises(UserError, match="'oops' in row 555"):
            score(tmp_path / "x.csv", tmp_path / "out", kind="energy", run=plane.path, block_rows=256)

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            (b"1,2,u,3", r"too many or too few values \(row 250 .*got 4: 1,2,u,3\); mend the line"),
            (b"1,2", r"too many or too few values \(row 250 .*got 2: 1,2\); mend the line"),
            (b"1,2,\xff", r"not UTF-8 text in row 250"),
        ],
    )
    def test_a_line_that_cannot_be_read(self, line, told, score, rows, tmp_path):
        """Its number in the file, not in the block, blank lines left out."""
        good = b"\n\n".join(rows(300, 1).to_csv(index=False).encode().splitlines())
        lines = good.split(b"\n")
        lines[2 * 251] = line
        (tmp_path / "x.csv").write_bytes(b"\n".join(lines) + b"\n")
        with pytest.raises(UserError, match=told):
            score(tmp_path / "x.csv", tmp_path / "out")

    def test_a_row_of_more_than_a_megabyte(self, score, rows, tmp_path):
        """As much as Arrow takes for a block of a CSV."""
        frame = rows(30, 1)
        frame.loc[29, "site"] = "w" * (3 << 20)
        frame.to_csv(tmp_path / "x.csv", index=False)
        assert score(tmp_path / "x.csv", tmp_path / "out").new_categories == {"site": 1}

    @pytest.mark.parametrize(
        ("options", "argument"),
        [
            ({"block_rows": 0}, "block_rows"),
            ({"engine": Engine("ray", workers=0)}, "workers"),
            ({"engine": Engine("rey")}, "engine"),
        ],
    )
    def test_options_before_any_work(self, options, argument, score, tables, tmp_path):
        with pytest.raises(UserError) as caught:
            score(tables, tmp_path / "out", **options)
        assert caught.value.argument == argument
        assert not (tmp_path / "out").exists()

    def test_a_row_of_an_array_that_cannot_be_scored(self, score, plane, tmp_path):
        x = np.zeros((700, 2))
        x[600] = np.inf
        np.save(tmp_path / "x.npy", x)
        with pytest.raises(UserError, match="must be finite, and is not in row 600"):
            score(tmp_path / "x.npy", tmp_path / "out", kind="energy", run=plane.path, block_rows=256)

    def test_the_wrong_kind_of_model_or_folder(self, score, detector, plane, tables, tmp_path):
        with pytest.raises(UserError, match="must hold a detector, and holds a trained energy"):
            score(tables, tmp_path / "out", run=plane.path)
        np.save(tmp_path / "x.npy", np.zeros((30, 3)))
        with pytest.raises(UserError, match="must be a table, CSV or Parquet"):
            score(tmp_path / "x.npy", tmp_path / "out")
        with pytest.raises(UserError, match=r"must have the shape \(N, 2\)"):
            score(tmp_path / "x.npy", tmp_path / "out", kind="energy", run=plane.path)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("x")
        with pytest.raises(UserError, match=r"must be empty or hold a scoring that was begun, and holds 'mine\.txt'"):
            score(tables, tmp_path / "out")

    def test_scores_beside_their_inputs(self, score, rows, tmp_path):
        rows(30, 1).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(UserError, match="must not hold the input"):
            score(tmp_path, tmp_path)

    def test_a_run_that_goes_on(self, score, chains, tmp_path):
        import shutil

        shutil.copytree(chains.path, tmp_path / "run")
        (tmp_path / "run" / "manifest.json").unlink()
        for name in ("model.safetensors", "calibration.safetensors"):
            (tmp_path / "run" / name).unlink(missing_ok=True)
        np.save(tmp_path / "x.npy", np.zeros((30, 2)))
        with pytest.raises(UserError, match="must be a run that has ended"):
            score(tmp_path / "x.npy", tmp_path / "out", kind="energy", run=tmp_path / "run")


class TestChanged:
    """The same call goes on; a call with anything else is refused and names it."""

    def test_what_has_changed_is_named(self, score, rows, detector, tmp_path):
        path = tmp_path / "a.parquet"
        rows(300, 1).to_parquet(path)
        score(path, tmp_path / "out")
        for more, part in (
            ({"options": (0.2,)}, "alpha was 0.05"),
            ({"options": (None, (), True)}, "--header=?.*has no effect without a CSV"),
            ({"block_rows": 50}, "--block-rows is another one"),
        ):
            with pytest.raises(UserError, match=part):
                score(path, tmp_path / "out", **more)
        rows(300, 2).to_parquet(path)
        with pytest.raises(UserError, match=r"a\.parquet has changed since"):
            score(path, tmp_path / "out")
        rows(30, 2).to_parquet(tmp_path / "b.parquet")
        with pytest.raises(UserError, match=r"b\.parquet has come since"):
            score(tmp_path / "b.parquet", tmp_path / "out")

    @pytest.mark.parametrize("change", [{"options": None}, {"more": 1}, {"inputs": 3}])
    def test_a_plan_that_was_edited(self, change, score, rows, tmp_path):
        rows(30, 0).to_parquet(tmp_path / "a.parquet")
        score(tmp_path / "a.parquet", tmp_path / "out")
        file = tmp_path / "out" / "_plan.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(DamagedFile, match="must be the plan of a scoring; remove the folder"):
            score(tmp_path / "a.parquet", tmp_path / "out")

    def test_another_model(self, score, rows, detector, tmp_path):
        rows(300, 1).to_parquet(tmp_path / "a.parquet")
        score(tmp_path / "a.parquet", tmp_path / "out")
        other = thalweg.load(detector)
        other.about["note"] = "another one"
        other.save_pretrained(tmp_path / "other")
        with pytest.raises(UserError, match="the model has changed since"):
            score(tmp_path / "a.parquet", tmp_path / "out", run=tmp_path / "other")

    def test_a_csv_that_was_only_touched(self, score, rows, tmp_path):
        """It is hashed as a whole, so its time does not count."""
        rows(300, 1).to_csv(tmp_path / "a.csv", index=False)
        score(tmp_path / "a.csv", tmp_path / "out")
        os.utime(tmp_path / "a.csv", (1, 1))
        assert score(tmp_path / "a.csv", tmp_path / "out").computed == 0
        data = (tmp_path / "a.csv").read_bytes()
        (tmp_path / "a.csv").write_bytes(data[:-40].replace(b"1", b"2") + data[-40:])  # as long as it was
        with pytest.raises(UserError, match=r"a\.csv has changed since"):
            score(tmp_path / "a.csv", tmp_path / "out")


class TestOnlyChanged:
    """Rows that were corrected in their places: the parts that have them are made again, and no other."""

    @pytest.fixture
    def made(self, monkeypatch):
        """The numbers of the parts that are made from now on."""
        made, work = [], Worker.score
        monkeypatch.setattr(Worker, "score", lambda self, block: made.append(block.number) or work(self, block))
        return made

    @pytest.mark.parametrize("suffix", [".parquet", ".csv"])
    def test_a_bad_row_is_corrected(self, score, rows, suffix, bytes_of, made, tmp_path):
        """Of 5 + 3 parts the bad one ends the work; then it and those after it are made, and the bytes are a new
        folder's."""
        frame, folder = rows(500, 1), tmp_path / "in"
        folder.mkdir()
        rows(300, 2).to_parquet(folder / "a.parquet")
        path = folder / f"b{suffix}"
        write = {".csv": lambda: frame.to_csv(path, index=False), ".parquet": lambda: frame.to_parquet(path)}[suffix]
        good, frame.loc[333, "flow"] = frame.loc[333, "flow"], np.nan
        write()
        with pytest.raises(UserError, match=r"in row 333 \(counted from 0\)"):
            score(folder, tmp_path / "out")
        frame.loc[333, "flow"] = good
        write()
        with pytest.raises(UserError, match=r"b\.\w+ has changed since.*--only-changed"):
            score(folder, tmp_path / "out")
        made.clear()
        assert score(folder, tmp_path / "out", only_changed=True).computed == 2
        assert made == [6, 7]
        score(folder, tmp_path / "new")
        assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "new")

    def test_of_a_whole_folder_one_part_and_the_q_values(self, score, rows, bytes_of, made, tmp_path):
        path, frame = tmp_path / "a.parquet", rows(500, 1)
        frame.to_parquet(path)
        score(path, tmp_path / "out")
        frame.loc[333, "flow"] += 40
        frame.to_parquet(path)
        made.clear()
        score(path, tmp_path / "out", only_changed=True)
        assert made == [3]
        score(path, tmp_path / "new")
        assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "new")
        assert score(path, tmp_path / "out", only_changed=True).computed == 0

    def test_of_an_array(self, score, plane, bytes_of, made, tmp_path):
        path, x = tmp_path / "x.npy", np.random.default_rng(0).normal(size=(900, 2)).astype(np.float32)
        np.save(path, x)
        given = {"kind": "energy", "run": plane.path, "block_rows": 256}
        score(path, tmp_path / "out", **given)
        x[600] = 0
        np.save(path, x)
        made.clear()
        score(path, tmp_path / "out", only_changed=True, **given)
        assert made == [2]
        score(path, tmp_path / "new", **given)
        assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "new")

    def test_a_kill_on_the_way(self, score, rows, bytes_of, forked, made, tmp_path, monkeypatch):
        """The plan is the old one until all parts that stay are taken; nothing says that all is done."""
        path, frame = tmp_path / "a.parquet", rows(500, 1)
        frame.to_parquet(path)
        score(path, tmp_path / "out")
        frame.loc[333, "flow"] += 40
        frame.to_parquet(path)
        move_to_plan = parts.move_to_plan
        dies = iter([move_to_plan, move_to_plan, lambda *_: os._exit(9)])
        with monkeypatch.context() as patch:
            patch.setattr(parts, "move_to_plan", lambda *given: next(dies)(*given))
            assert forked(lambda: score(path, tmp_path / "out", only_changed=True)) == 9
        assert not (tmp_path / "out" / "_done.json").exists()
        made.clear()
        score(path, tmp_path / "out", only_changed=True)
        assert made == [3]
        score(path, tmp_path / "new")
        assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "new")

    def test_another_number_of_rows_or_other_options_are_refused(self, score, rows, tmp_path):
        path = tmp_path / "a.parquet"
        rows(300, 1).to_parquet(path)
        score(path, tmp_path / "out")
        with pytest.raises(UserError, match=r"alpha was 0\.05"):
            score(path, tmp_path / "out", options=(0.2,), only_changed=True)
        rows(299, 1).to_parquet(path)
        with pytest.raises(UserError, match=r"a\.parquet has changed since") as caught:
            score(path, tmp_path / "out", only_changed=True)
        assert "--only-changed" not in str(caught.value)


class TestParts:
    def test_parts_that_are_missing_or_not_whole_are_made_again(self, score, tables, bytes_of, tmp_path):
        """R30: cut at its end, cut to nothing, of another block, of another plan; the bytes are then the same."""
        score(tables, tmp_path / "out")
        score(tables, tmp_path / "other", options=(0.2,))
        wanted, folder = bytes_of(tmp_path / "out"), tmp_path / "out"
        name = "part-{:06d}.parquet".format
        (folder / name(0)).unlink()
        (folder / name(1)).write_bytes(wanted[name(1)][:-9])
        (folder / name(2)).write_bytes(b"")
        (folder / name(3)).write_bytes(wanted[name(4)])
        (folder / name(5)).write_bytes((tmp_path / "other" / name(5)).read_bytes())
        assert score(tables, folder).computed == 5
        assert bytes_of(folder) == wanted

    def test_a_bit_of_a_part_that_changed(self, score, tables, tmp_path):
        """The checksum of a page tells, where its p-values are read."""
        score(tables, tmp_path / "out")
        path = tmp_path / "out" / "part-000000.parquet"
        chunk = parquet.ParquetFile(path).metadata.row_group(0)
        column = next(chunk.column(i) for i in range(chunk.num_columns) if chunk.column(i).path_in_schema == "p_value")
        data = bytearray(path.read_bytes())
        data[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size // 2] ^= 4
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"part-000000\.parquet: damaged"):
            score(tables, tmp_path / "out")


def test_ranks_are_what_the_p_values_were_made_of():
    """A mutant that cuts in place of rounding loses a rank for some of 5,001 levels."""
    levels = 5001
    assert (parts.ranks((1 + np.arange(levels)) / levels, levels) == np.arange(levels)).all()


def test_a_block_of_a_large_row_group_takes_little_memory(tmp_path):
    """Arrow holds batches and a buffer a column, not the 32 MB of the row group. In a process whose peak is its own."""
    path, n = tmp_path / "x.parquet", 2_000_000
    column = np.random.default_rng(0).normal(size=n)
    parquet.write_table(pa.table({"a": column, "b": column}), path, row_group_size=n, compression="none")
    code = (
        "import sys, pyarrow; from thalweg.scale.sources import ParquetSource as Source;"
        f"block = Source(*2 * [sys.argv[1]]).read({n - 256}, 256, ['a'], (0, 0));"
        "print(block['a'][255], pyarrow.default_memory_pool().max_memory())"
    )
    told = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    last, peak = map(float, told.stdout.split())
    assert last == column[-1]
    assert 0 < peak < 8e6
