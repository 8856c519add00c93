"""Files that are whole or absent, damage that is always met, and trees that come back bit for bit."""

import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.core import state_tree, store, temporary
from thalweg.core.errors import DamagedFile, DiskFull, UserError


class Pair(NamedTuple):
    x: Any
    u: Any


def _fill(folder: Path, value: int = 1) -> None:
    store.write_tensors(folder / "model.safetensors", {"w": torch.full((50,), float(value))}, {"by": "test"})
    (folder / "sub").mkdir()
    store.write_json(folder / "sub" / "state.json", {"step": value, "lr": 1e-3})


def _value(folder: Path) -> int:
    store.verify(folder)
    step = store.read_json(folder / "sub" / "state.json")["step"]
    assert torch.equal(store.read_tensors(folder / "model.safetensors")["w"], torch.full((50,), float(step)))
    return step


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Damage (R5)


def test_every_truncation_and_every_flipped_bit_of_a_sealed_folder_is_met(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    store.save_folder(folder, _fill)
    assert _value(folder) == 1
    rng = random.Random(0)
    files = _files(folder)
    assert [path.name for path in files] == ["manifest.json", "model.safetensors", "state.json"]
    for i in range(250):
        path = files[i % len(files)]
        good = path.read_bytes()
        bad = bytearray(good)
        if i < 50:
            del bad[rng.randrange(len(bad)) if i > 3 else len(bad) - 1 :]
        else:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(UserError) as caught:
            store.verify(folder)
        assert str(folder) in str(caught.value)
        path.write_bytes(good)
    assert _value(folder) == 1, "and the undamaged folder still verifies"


def test_the_newest_valid_folder_is_found_and_each_damaged_one_named(tmp_path: Path) -> None:
    assert store.newest_valid(tmp_path / "none") == (None, [])
    for step in (9, 10, 100, 11):
        store.save_folder(tmp_path / f"step-{step}", lambda folder, step=step: _fill(folder, step))
    assert store.newest_valid(tmp_path) == (tmp_path / "step-100", [])
    (tmp_path / "step-100" / "model.safetensors").write_bytes(b"")
    (tmp_path / "step-11" / "manifest.json").unlink()
    folder, warnings = store.newest_valid(tmp_path)
    assert folder == tmp_path / "step-10"
    assert ["step-100/model.safetensors" in warnings[0], "step-11/manifest.json" in warnings[1]] == [True] * 2
    assert len(warnings) == 2


def test_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    (folder / "link").symlink_to(secret)
    (folder / "dir").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    entry = {"sha256": store._sha256(secret), "bytes": 1}
    for name in (
        "../secret",
        str(secret),
        "link",
        "dir/secret",
        "loop",
        "x/../../secret",
        "",
        ".",
        "a\0b",
        "..\\secret",
        *("two\nlines", "\u2028", "\ud800", "long" * 100),
    ):
        store.write_json(folder / "manifest.json", {"format": 1, "files": {name: entry}})
        for act in (store.verify, lambda folder, name=name: store.seal(folder, [name])):
            with pytest.raises(DamagedFile) as caught:
                act(folder)
            assert len(str(caught.value).splitlines()) == 1
            linked = name in ("link", "dir/secret", "loop")
            assert caught.value.argument == str(folder / (name if linked else "manifest.json"))
            assert (str(secret) in str(caught.value)) == (name in ("link", "dir/secret", str(secret)))
            assert bool(caught.value.hint) == linked


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"format": 2, "files": {}}, "format 2, written by a newer thalweg"),
        ({"format": 0, "files": {}}, "not a manifest"),
        ({"format": True, "files": {}}, "not a manifest"),
        ({"format": 1}, "not a manifest"),
        ({"format": 1, "files": {"a": {"sha256": "0"}}}, "not a manifest"),
        ({"format": 1, "files": {"a": {"sha256": "0", "bytes": "1"}}}, "not a manifest"),
        ({"format": 1, "files": {"a": {"sha256": "0", "bytes": 1}}}, "missing"),
        ([], "not a manifest"),
    ],
)
def test_bad_manifests(manifest: Any, words: str, tmp_path: Path) -> None:
    store.write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(UserError, match=words):
        store.verify(tmp_path)


def test_only_the_named_files_are_sealed_and_verified(tmp_path: Path) -> None:
    _fill(tmp_path)
    store.seal(tmp_path, ["model.safetensors"])
    (tmp_path / "sub" / "state.json").write_bytes(b"changed")
    store.verify(tmp_path)
    store.verify(tmp_path, ["model.safetensors"])
    with pytest.raises(DamagedFile, match="not listed"):
        store.verify(tmp_path, ["sub/state.json"])


# Kills (R3)

CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "close", "unlink", "link")


def _killed_at(call: int, act: Callable[[], None]) -> bool:
    """Run `act` in a child that dies at its call number `call` to the system; whether it died."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def dying(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count > call:
                    os._exit(9)
                return original(*args, **kwargs)

            return wrapped

        for name in CALLS:
            setattr(os, name, dying(getattr(os, name)))
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("swaps", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_kill_at_any_call_leaves_the_old_or_the_new_folder_and_no_orphan(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system can swap two folders, one is there at every moment; else after `clean`."""
    if not swaps:
        monkeypatch.setattr(temporary, "_exchange", lambda *_: False)
    seen: set[int] = set()
    for call in range(200):
        parent = tmp_path / str(call)
        parent.mkdir()
        store.save_folder(parent / "best", lambda folder: _fill(folder, 1))
        died = _killed_at(call, lambda: store.save_folder(parent / "best", lambda folder: _fill(folder, 2)))  # noqa: B023
        assert not swaps or _value(parent / "best") in (1, 2)
        temporary.clean(parent)
        assert [path.name for path in parent.iterdir()] == ["best"]
        seen.add(_value(parent / "best"))
        shutil.rmtree(parent)
        if not died:
            break
    assert not died
    assert call > 20
    assert seen == {1, 2}


@pytest.mark.parametrize("error", [OSError(5, "input/output error"), KeyboardInterrupt()])
def test_a_failure_at_any_call_leaves_the_old_or_the_new_content(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target, write in (
        (tmp_path / "a.bin", lambda value: store.write_bytes(tmp_path / "a.bin", b"%d" % value)),
        (tmp_path / "f", lambda value: store.save_folder(tmp_path / "f", lambda p: _fill(p, value))),
    ):
        write(1)
        for name in ("open", "write", "fsync", "link", "replace", "rename", "mkdir"):
            for at in range(4):
                calls = iter(range(100))
                original = getattr(os, name)

                def failing(*args: Any, calls: Any = calls, at: int = at, original: Any = original, **kw: Any) -> Any:
                    if next(calls) == at:
                        raise error
                    return original(*args, **kw)

                with monkeypatch.context() as patch:
                    patch.setattr(os, name, failing)
                    try:
                        write(2)
                    except (UserError, KeyboardInterrupt):
                        failed = True
                    else:
                        failed = False
                value = _value(target) if target.is_dir() else int(target.read_bytes())
                assert value in (1, 2) if failed else value == 2
                assert not list(tmp_path.rglob(".thalweg-*"))
                write(1)


# A full disk (R6)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("limit", [0, 1, 100, 4096, 50_000, 99_999])
def test_a_full_disk_is_a_typed_error_and_the_old_file_is_intact(limit: int, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    store.write_bytes(path, b"old")
    store.save_folder(tmp_path / "f", lambda folder: _fill(folder, 1))
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = 1
        try:
            store.write_bytes(path, bytes(100_000))
        except DiskFull as err:
            code = 0 if str(path) in str(err) and "100000 bytes" in str(err) else 2
        try:
            store.save_folder(tmp_path / "f", lambda folder: (folder / "big").write_bytes(bytes(100_000)))
            code = 3
        except DiskFull as err:
            code = code if str(tmp_path / "f") in str(err) else 4
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert path.read_bytes() == b"old"
    assert _value(tmp_path / "f") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "f"]


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "none" / "a", tmp_path / "file" / "a"):
        for act in (lambda p: store.write_bytes(p, b"x"), lambda p: store.save_folder(p, _fill)):
            with pytest.raises(UserError, match=f"{path}: cannot be written"):
                act(path)


# Contents


def test_json_is_finite_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    store.write_json(path, {"b": 1, "a": [0.1, 1e-320, -0.0, "é"]})
    assert list(store.read_json(path)) == ["b", "a"]
    with pytest.raises(UserError, match=r"a\.json"):
        store.write_json(path, {"x": float("nan")})
    for text in ("", "{", "NaN", "[Infinity]", "[-Infinity]", "1e999", "[" * 99999, "9" * 9999, "1 2"):
        path.write_text(text)
        with pytest.raises(DamagedFile, match=r"a\.json"):
            store.read_json(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(DamagedFile, match=r"a\.json"):
        store.read_json(path)
    os.truncate(path, store.MAX_JSON + 1)
    with pytest.raises(DamagedFile, match="at most"):
        store.read_json(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "none"):
        for read in (store.read_json, store.read_tensors):
            with pytest.raises(UserError, match=str(path)):
                read(path)


def test_tensors_of_every_kind_round_trip(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    whole = {
        **{"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3), "bool": torch.tensor([True, False])},
        **{"u8": torch.arange(5, dtype=torch.uint8), "i64": torch.tensor([2**62, -1])},
        **{"bf16": torch.randn(4).bfloat16(), "odd": torch.tensor([float("nan"), float("inf"), -0.0])},
        **{"base": base, "same": base, "view": base[1:], "turned": base.T, "spread": base[:1].expand(3, 4)},
        "grad": torch.nn.Parameter(torch.ones(2)),
    }
    store.write_tensors(tmp_path / "a", whole, {"k": "v"})
    back = store.read_tensors(tmp_path / "a")
    assert set(back) == set(whole)
    for name, tensor in whole.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (back[name], tensor)]
        assert torch.equal(*raw)
    for bad in ({"__metadata__": base}, {"a": base.to_sparse()}, {"a": base.to(torch.complex128)}):
        with pytest.raises(UserError):
            store.write_tensors(tmp_path / "b", bad)


def test_damaged_tensor_files_raise_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    store.write_tensors(path, {"w": torch.arange(8.0), "i": torch.arange(3)})
    good, rng = path.read_bytes(), random.Random(0)
    huge = (17 * 2**20).to_bytes(8, "little") + bytes(18 * 2**20)
    beyond = (2**63).to_bytes(8, "little") + good[8:]
    for bad in (b"", b"\x80\x04K\x01.", good[:7], good[:40], good[:-1], good + b"x", huge, beyond):
        path.write_bytes(bad)
        with pytest.raises(DamagedFile, match=r"a\.safetensors"):
            store.read_tensors(path)
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] = rng.randrange(256)
        path.write_bytes(bad)
        try:
            store.read_tensors(path)
        except DamagedFile:
            continue


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.none() | st.integers() | st.text()
TENSORS = st.sampled_from([torch.tensor(1.5), torch.zeros(0), torch.arange(3), torch.tensor([True])])
TREES = st.recursive(
    SCALARS | TENSORS,
    lambda sub: st.lists(sub) | st.dictionaries(KEYS, sub) | st.lists(sub).map(tuple) | st.builds(Pair, sub, sub),
    max_leaves=12,
)


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and [*map(type, a)] == [*map(type, b)] and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return repr(a) == repr(b)


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_any_tree_comes_back_exactly(tree: Any) -> None:
    tensors, structure = state_tree.flatten(tree)
    stored = json.loads(json.dumps(structure, allow_nan=False))
    assert _same(state_tree.unflatten(tensors, stored, like=tree), tree)


def test_an_optimizer_comes_back_through_the_disk(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.99))
    net(torch.randn(4, 3)).sum().backward()
    opt.step()
    tensors, structure = state_tree.flatten({"opt": opt.state_dict(), "state": Pair(torch.ones(2), None)})
    store.write_tensors(tmp_path / "t", tensors)
    store.write_json(tmp_path / "s", structure)
    parts = store.read_tensors(tmp_path / "t"), store.read_json(tmp_path / "s")
    back = state_tree.unflatten(*parts, like={"state": Pair(0, 0)})
    assert _same(back, {"opt": opt.state_dict(), "state": Pair(torch.ones(2), None)})
    assert type(state_tree.unflatten(*parts)["state"]) is tuple
    torch.optim.AdamW(net.parameters()).load_state_dict(back["opt"])


def test_what_cannot_be_stored_or_does_not_fit_is_refused() -> None:
    for bad in ({"a": object()}, [{1, 2}], {(1, 2): 3}, {1.5: 3}, 1j):
        with pytest.raises(UserError):
            state_tree.flatten(bad)
    for bad in (
        {"tensor": "none"},
        {},
        {"dict": [[1]]},
        {"dict": 3},
        {"float": "x"},
        {"tuple": [1]},
        {"dict": [[[], 1]]},
    ):
        with pytest.raises(DamagedFile):
            state_tree.unflatten({}, bad)
    with pytest.raises(UserError, match="Pair: has the fields x, u"):
        state_tree.unflatten({}, {"tuple": [1], "fields": ["y"]}, like=Pair(1, 2))
