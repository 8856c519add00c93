"""Rows that stay on disk are the rows of the file, in an order that a step's number alone decides."""

import io
import os

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from scipy.stats import chi2

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data import permutation, stored_rows
from thalweg.data.catalog import load
from thalweg.data.in_memory import given_dataset
from thalweg.data.loader import Loader
from thalweg.data.options import DataOptions
from thalweg.data.permutation import Permutation
from thalweg.data.splitting import split_stored
from thalweg.data.stored import row_groups
from thalweg.data.stored.items import ItemRows
from thalweg.data.stored.npy import NpyRows
from thalweg.data.stored.parquet_table import ParquetTableRows
from thalweg.data.stored_rows import RowsExcept, StoredRows, some_rows

N = 230
DRAWS = np.random.default_rng(0)
PICTURES = DRAWS.integers(0, 255, (N, 6, 5, 3), dtype=np.uint8)
NUMBERS = DRAWS.normal(size=(N, 3))


def encoded(picture):
    """The bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def write_npy(folder):
    np.save(folder / "x.npy", PICTURES)
    return folder / "x.npy", DataOptions(), torch.from_numpy(PICTURES).permute(0, 3, 1, 2)


def write_table(folder):
    columns = {name: NUMBERS[:, i] for i, name in enumerate("abc")}
    parquet.write_table(pa.table(columns), folder / "x.parquet", row_group_size=37)
    return folder / "x.parquet", DataOptions(), torch.from_numpy(NUMBERS)


def write_images(folder):
    column = [{"bytes": encoded(each), "path": None} for each in PICTURES]
    labels = ["cat" if i % 3 else "dog" for i in range(N)]
    parquet.write_table(pa.table({"image": column, "kind": labels}), folder / "x.parquet", row_group_size=20)
    options = DataOptions(column="image", labels="kind")
    return folder / "x.parquet", options, torch.from_numpy(PICTURES).permute(0, 3, 1, 2)


def write_folder(folder):
    for i, each in enumerate(PICTURES):
        place = folder / "photos" / ("cat" if i % 3 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03}.png").write_bytes(encoded(each))
    order = sorted(range(N), key=lambda i: i % 3 != 0 and 1)  # cat before dog
    order = [i for i in range(N) if i % 3] + [i for i in range(N) if not i % 3]
    return folder / "photos", DataOptions(labels="folder"), torch.from_numpy(PICTURES).permute(0, 3, 1, 2)[order]


SOURCES = {"npy": write_npy, "table": write_table, "images": write_images, "folder": write_folder}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Everything stays on disk, and a row group has several pieces."""
    monkeypatch.setattr(stored_rows, "KEPT_BYTES", 0)
    monkeypatch.setattr(row_groups, "PIECE_BYTES", 300)
    monkeypatch.setattr(row_groups, "WINDOW_BYTES", 1000)
    monkeypatch.setattr(row_groups, "KEPT_PIECES", 3000)


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    """(path, options, all rows in the order of the source)."""
    return SOURCES[request.param](tmp_path)


def stored(path, options):
    x = load(str(path), options).train
    assert isinstance(x, StoredRows)
    return x


def test_rows_are_those_of_the_file(source) -> None:
    path, options, rows = source
    base = stored(path, options).base
    assert base.shape == rows.shape
    assert base.dtype == rows.dtype
    picked = torch.randperm(N, generator=generator(0, "pick"))[:90]
    assert torch.equal(base[picked], rows[picked])
    assert torch.equal(torch.cat([*base.split(40)]), rows)


def test_training_and_held_out_rows_are_all_rows_once_with_their_labels(source) -> None:
    path, options, rows = source
    data = load(str(path), options, seed=3)
    assert "read while it trains" in data.source
    both = torch.cat([data.train[:], data.held_out])
    assert len(both) == N
    assert sorted(map(hash_of, both)) == sorted(map(hash_of, rows))
    if data.train_labels is not None:
        at = {hash_of(row): i for i, row in enumerate(rows)}
        pictures = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)
        dogs = {hash_of(row) for row in pictures[::3]}
        assert data.class_names == ("cat", "dog")
        labels = torch.cat([data.train_labels, data.held_out_labels])
        assert labels.tolist() == [int(hash_of(row) in dogs) for row in both]
        assert len(at) == N
    few = load(str(path), DataOptions(**{**vars(options), "limit": 50}), seed=3)
    assert len(few.train) == 50
    assert {*map(hash_of, few.train[:])} <= {*map(hash_of, data.train[:])}


def hash_of(row):
    return row.contiguous().numpy().tobytes()


def test_each_epoch_visits_each_row_once_and_a_step_has_its_rows_from_its_number_alone(source) -> None:
    path, options, _ = source
    x = stored(path, options)
    ahead = Loader(x, torch.arange(len(x)), batch_size=23, seed=1, workers=2)
    steps = 2 * len(x) // 23
    forward = [ahead.batch(step) for step in range(steps)]
    visited = torch.cat([labels for _, labels in forward])
    for epoch in visited[: 2 * len(x)].split(len(x)):
        if len(epoch) == len(x):
            assert sorted(epoch.tolist()) == list(range(len(x)))
    assert not torch.equal(visited[:20].sort().values, visited[len(x) : len(x) + 20].sort().values)
    alone = Loader(x, torch.arange(len(x)), batch_size=23, seed=1, workers=0)
    for step in (steps - 1, 0, 7, 3):
        assert torch.equal(alone.batch(step)[0], forward[step][0])
        assert torch.equal(alone.batch(step)[1], forward[step][1])
    ranks = [Loader(x, batch_size=22, seed=1, rank=rank, world_size=2).batch(4)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat(ranks), Loader(x, batch_size=22, seed=1).batch(4)[0])


def test_content_that_changes_has_another_fingerprint(source) -> None:
    path, options, _ = source
    before = load(str(path), options)
    file = next(each for each in sorted(path.rglob("*.png")) or [path] if each.is_file())
    again = load(str(path), options)
    assert again.fingerprint == before.fingerprint
    if path.suffix == ".npy":
        np.save(path, np.concatenate([PICTURES[:-1], 255 - PICTURES[-1:]]))
    elif file.suffix == ".png":
        file.write_bytes(encoded(255 - PICTURES[0]))
    else:
        table = parquet.read_table(path)
        parquet.write_table(table.take([*range(N - 1, -1, -1)]), path, row_group_size=37)
    assert load(str(path), options).fingerprint != before.fingerprint


def test_a_source_that_changes_while_it_is_read_is_an_error(source) -> None:
    path, options, _ = source
    x = stored(path, options)
    files = sorted(path.rglob("*.png")) if path.is_dir() else [path]
    x.base.__dict__.get("_groups") and x.base._groups._kept.clear()
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(UserError, match="has changed since the run began") as caught:
        Loader(x, batch_size=8, seed=0).batch(0)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    "x", [np.linspace(0, 1, 40 * 12).reshape(40, 3, 4), DRAWS.integers(-9, 9, (40, 4)), NUMBERS.astype(np.float32)]
)
def test_arrays_are_read_as_they_are_in_memory(x, tmp_path, monkeypatch) -> None:
    np.save(tmp_path / "x.npy", x)
    read = NpyRows(tmp_path / "x.npy")
    monkeypatch.setattr(stored_rows, "KEPT_BYTES", 1 << 28)
    whole = load(str(tmp_path / "x.npy"), seed=1)
    assert read.dtype == whole.train.dtype
    assert read.shape[1:] == whole.train.shape[1:]
    assert sorted(map(hash_of, read[:])) == sorted(map(hash_of, torch.cat([whole.train, whole.held_out])))


def test_bad_content_is_told_of_all_rows_before_any_is_used(tmp_path) -> None:
    x = NUMBERS.copy()
    x[[70, 200]] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(UserError, match="2 of 230 rows are not, first row 70"):
        load(str(tmp_path / "x.npy"))
    np.save(tmp_path / "y.npy", PICTURES.astype(np.float32))
    with pytest.raises(UserError, match="divide by 255"):
        load(str(tmp_path / "y.npy"))
    columns = {name: x[:, i] for i, name in enumerate("abc")}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=37)
    with pytest.raises(UserError, match=r"column 'a' is missing \(NaN\) in row 70"):
        load(str(tmp_path / "x.parquet"))
    np.save(tmp_path / "f.npy", np.asfortranarray(NUMBERS))
    with pytest.raises(UserError, match="column by column"):
        load(str(tmp_path / "f.npy"))


def test_images_as_bytes_that_cannot_be_used(tmp_path) -> None:
    column = [encoded(each) for each in PICTURES[:40]]
    column[32] = b"no image"
    column[35] = encoded(PICTURES[0][:3])
    column[37] = None
    parquet.write_table(pa.table({"image": column, "n": range(40)}), tmp_path / "x.parquet", row_group_size=9)
    path = str(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="row 32"):
        load(path, DataOptions(column="image"))
    data = load(path, DataOptions(column="image", skip_bad=True))
    assert len(data.train) + len(data.held_out) == 37
    left_out = [("row 32", "damaged"), ("row 37", "missing or empty"), ("row 35", "pixels")]
    assert all(row in line and why in line for (row, why), line in zip(left_out, data.notes, strict=True))
    assert len(torch.unique(data.train[:], dim=0)) == len(data.train)
    for options, what in (
        (DataOptions(column="photo"), "no column 'photo'"),
        (DataOptions(column="image", labels="kind"), "no column 'kind'"),
        (DataOptions(column="n"), "must hold the bytes of image files"),
        (DataOptions(column="image", labels="n"), "has one row of the class '0'"),
    ):
        with pytest.raises(UserError, match=what):
            load(path, options)


@pytest.mark.parametrize("labels", [None, "kind"])
def test_parquet_of_images_without_rows(tmp_path, labels) -> None:
    columns = {"image": pa.array([], pa.binary()), "kind": pa.array([], pa.string())}
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet: has no rows; give Parquet with one row or more$"):
        load(str(tmp_path / "x.parquet"), DataOptions(column="image", labels=labels))


class Items(torch.utils.data.Dataset):
    """Pairs of a picture in floats and a label."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.from_numpy(PICTURES[i]).permute(2, 0, 1) / 255, i % 2


@pytest.mark.parametrize("item", [{"x": 1.0}, None, "text", (None, 1)])
def test_items_that_are_no_numbers(item) -> None:
    class Wrong(Items):
        def __getitem__(self, i):
            return item

    with pytest.raises(UserError, match=r"data\[0\]: must be numbers, and is .*; give tensors, or pairs \(x, label\)"):
        given_dataset(Wrong())


def test_items_of_a_data_set_are_read_when_they_are_needed() -> None:
    data = given_dataset(Items(), seed=2)
    assert isinstance(data.train.base, ItemRows)
    x, labels = Loader(data.train, data.train_labels, batch_size=30, seed=0).batch(3)
    at = {hash_of(Items()[i][0]): i % 2 for i in range(N)}
    assert labels.tolist() == [at[hash_of(row)] for row in x]
    assert given_dataset(Items(), seed=2).fingerprint == data.fingerprint


def test_held_out_rows_and_samples_are_bounded(tmp_path, monkeypatch) -> None:
    path, options, rows = write_table(tmp_path)
    monkeypatch.setattr("thalweg.data.splitting.HELD_OUT_NUMBERS", 30)
    data = load(str(path), options)
    assert len(data.held_out) == 10
    assert "10 held out (at most 50,000 rows, and 30 numbers, are)" in data.source
    some = some_rows(data.train, 1000, 60)
    assert len(some) == 20
    assert torch.equal(some_rows(rows, 7), rows[:7])
    parts = split_stored(ParquetTableRows(path), None, 0.5, 0, None)
    assert len(parts.train) == N - 10


@pytest.mark.parametrize("n", [1, 2, 3, 20, 1000, 4097])
def test_a_permutation_has_each_number_once(n: int) -> None:
    found = Permutation(n, generator(n, "test"))
    assert sorted(found[:].tolist()) == list(range(n))
    assert torch.equal(found[n // 2 : n], found[torch.arange(n // 2, n)])


def uniform(n=11, draws=2200):
    """Whether each number is as often as any other at each place; the test of each place has a level of 1e-4 / n."""
    found = torch.stack([Permutation(n, generator(i, "uniform"))[:] for i in range(draws)])
    counts = torch.stack([torch.bincount(place, minlength=n) for place in found.T]).double()
    statistic = ((counts - draws / n) ** 2 / (draws / n)).sum(1)
    return bool((statistic < chi2.ppf(1 - 1e-4 / n, n - 1)).all())


def test_permutations_are_uniform_at_each_place(monkeypatch) -> None:
    assert uniform()
    monkeypatch.setattr(permutation, "ROUNDS", 1)  # the mutant: half of the bits stay as they are
    assert not uniform()


def test_all_but_a_few_numbers() -> None:
    rows = RowsExcept(10, torch.tensor([0, 3, 4, 9]))
    assert rows[torch.arange(6)].tolist() == [1, 2, 5, 6, 7, 8]
    assert rows.before(torch.arange(11)).tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 6]


def test_categories_of_a_table_that_stays_on_disk(tmp_path, monkeypatch) -> None:
    """The first piece says which there are; a later row of another one is an error, and not taken for one of them."""
    monkeypatch.setattr(stored_rows, "KEPT_BYTES", 0)
    monkeypatch.setattr(row_groups, "PIECE_BYTES", 8 * 2 * 30)
    x = np.random.default_rng(0).normal(size=90)
    sites = np.array(["north", "south", "west"])[np.arange(90) * 7 % 3]
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"x": x, "site": sites}), path, row_group_size=30)
    data = load(str(path))
    assert isinstance(data.train, stored_rows.StoredRows)
    assert data.shape == (4,)
    whole = torch.cat([data.train[:], data.held_out])
    assert whole[:, 1:].sum(0).tolist() == [30, 30, 30]
    parquet.write_table(pa.table({"x": x, "site": [*sites[:80], *["east"] * 10]}), path, row_group_size=30)
    with pytest.raises(UserError, match="row 80"):
        load(str(path))


def test_a_row_group_of_many_pieces_is_read_on_from_each_to_the_next(tmp_path, monkeypatch) -> None:
    """As of a row group of 32 GB, whose pieces are 16 MB; some are passed over."""
    monkeypatch.setattr(row_groups, "PIECE_BYTES", 30)
    monkeypatch.setattr(row_groups, "KEPT_PIECES", 0)
    opened, x = [], np.arange(6000.0)
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"x": x}), path, row_group_size=len(x))
    groups = row_groups.RowGroups([path], ["x"], 10, lambda table, first: (first, table["x"].to_pylist()))
    batches = groups._batches
    monkeypatch.setattr(groups, "_batches", lambda piece: opened.append(piece) or batches(piece))
    assert len(groups.pieces) == 2000
    for i in [*range(1500), *range(1500, 2000, 7)]:
        assert groups.piece(i) == (3 * i, x[3 * i : 3 * i + 3].tolist())
    assert len(opened) == 1
    assert groups.piece(2) == (6, [6, 7, 8])  # from the start of the group again
    assert len(opened) == 2
