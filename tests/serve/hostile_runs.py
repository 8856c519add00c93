"""Folders that mean harm to whoever loads them: some 300 that are written, and any number of random mutations.

Each is a good run in which one thing was changed, and which then was sealed anew: a manifest with other hashes stops
the clumsy alone. What would run, if anything ran, makes the file `canary` in the current folder.
"""

import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from thalweg.core import store

FILES = ("config.json", "model.safetensors", "calibration.safetensors")
EXTENSIONS = ("pt", "pth", "pkl", "pickle", "bin", "ckpt", "joblib", "npy", "npz", "h5", "keras", "dill")
EXTENSIONS += ("yaml", "py", "so", "zip", "tar", "onnx")
SHELL = "touch canary"
MODULE = "canary_module"  # lies in the current folder, and makes the canary when it is imported


class Case(NamedTuple):
    """What is wrong, and how a copy of the good run becomes so."""

    name: str
    make: Callable[[Path], object]


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (SHELL,)


PICKLES = (pickle.dumps(Runs(), 0), pickle.dumps(Runs(), 4), f"cos\nsystem\n(S'{SHELL}'\ntR.".encode())


def torch_file() -> bytes:
    """As torch.save writes: a zip whose data.pkl is a pickle."""
    return zipped({"archive/data.pkl": PICKLES[1], "archive/version": b"3\n"})


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    """An npy file of any header."""
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@cache
def arrays() -> dict[str, bytes]:
    """npy and npz files whose header lies, or which grow."""
    entry = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}"
    headers = {
        "huge": entry.format("'<f8'", "(4294967296,)"),
        "overflow": entry.format("'<f8'", "(4611686018427387904, 4)"),
        "negative": entry.format("'<f8'", "(-2, -2)"),
        "objects": entry.format("'|O'", "(1,)"),
        "records": entry.format("[('a', '<f8')]", "(2,)"),
        "call": entry.format("'<f8'", f"(2, __import__('os').system('{SHELL}'))"),
        "nested": entry.format("'<f8'", "(" * 500 + "2"),
        "void": entry.format("'|V1000000000'", "(1,)"),
        "dates": entry.format("'<M8[s]'", "(2,)"),
    }
    found = {f"npy {name}": npy(header, bytes(64)) for name, header in headers.items()}
    found["npy pickle"] = npy(headers["objects"], PICKLES[1])
    found["npz bomb"] = zipped({"x.npy": npy(entry.format("'|u1'", "(60000000,)"), bytes(60_000_000))})
    return found


@cache
def bombs() -> dict[str, bytes]:
    """Small files that grow, and archives whose names lead out."""
    names = ("../../canary", "/tmp/canary-of-thalweg", "a/../../canary", "..\\canary")
    return {
        "gz bomb": gzip.compress(bytes(60_000_000)),
        "zip bomb": zipped({"data.pkl": bytes(60_000_000)}),
        **{f"zip slip {name}": zipped({name: b"x"}) for name in names},
    }


def headed(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensors(good: bytes) -> dict[str, bytes]:
    """safetensors files that no writer writes."""
    length = int.from_bytes(good[:8], "little")
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    header.pop("__metadata__", None)
    first = next(iter(header))

    def one(**changes: object) -> bytes:
        return headed({**header, first: {**header[first], **changes}}, data)

    return {
        "empty": b"",
        "short": good[:7],
        "header of 2^63": headed(b"{}", size=2**63),
        "header of 2^40": headed(b"{}", size=2**40),
        "header beyond": headed(b"{}", size=3),
        "no object": headed([], data),
        "no json": headed(b"{" * 1000, data),
        "deep": headed(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, data),
        "many": headed({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}),
        "spaces": headed(b" " * 15_000_000 + b"{}", data),
        "twice": headed(json.dumps(header)[:-1].encode() + b"," + json.dumps(header)[1:].encode(), data),
        "metadata": headed({**header, "__metadata__": {"__reduce__": "os.system"}}, data),
        "no metadata": headed({**header, "__metadata__": [1]}, data),
        "dtype": one(dtype="OBJECT"),
        "no dtype": one(dtype=None),
        "negative shape": one(shape=[-1, -4]),
        "huge shape": one(shape=[2**62, 2**62]),
        "shape of floats": one(shape=[1.5]),
        "no shape": one(shape="4"),
        "offsets turned": one(data_offsets=[8, 0]),
        "offsets beyond": one(data_offsets=[0, 2**60]),
        "offsets negative": one(data_offsets=[-8, 0]),
        "offsets of text": one(data_offsets=["0", "8"]),
        "renamed": headed({(f"x{n}" if n == first else n): v for n, v in header.items()}, data),
        "one missing": headed({n: v for n, v in header.items() if n != first}, data),
        "all NaN": headed(header, b"\xff" * len(data)),
        "all infinite": headed(header, _filled(b"\0\0\0\0\0\0\xf0\x7f", data)),
        "all huge": headed(header, _filled(b"\0\0\x80\x7f", data)),  # infinite as F32, 1e306 as F64
        "all tiny": headed(header, _filled(b"\1\0\0\0\0\0\0\0", data)),
        "nothing but zeros": headed(header, bytes(len(data))),
        "rest": good + b"x",
        "cut": good[:-1],
    }


def _filled(pattern: bytes, data: bytes) -> bytes:
    """As many bytes of a pattern."""
    return (pattern * (len(data) // len(pattern) + 1))[: len(data)]


CLASSES = (
    "os:system",
    "posix:system",
    "subprocess:Popen",
    "builtins:eval",
    "builtins:exec",
    "importlib:import_module",
    "pickle:loads",
    "torch:load",
    "numpy:load",
    "thalweg.core.store:write_bytes",
    "thalweg.core.store:os.system",
    "thalweg.apps.anomaly.saved:os",
    "thalweg.apps.anomaly.saved:DetectorBundle.__init__",
    "thalweg.cli.main:main",
    f"{MODULE}:Evil",
    f"thalweg.apps.{MODULE}:Evil",
    f"../{MODULE}:Evil",
    f"{MODULE}",
    ":",
    "",
    "a" * 100_000,
    "thalweg.apps.anomaly.saved:DetectorBundle\0",
)
VALUES = (
    None,
    [],
    {},
    -1,
    2**70,
    1e308,
    "x",
    [[[[]]]],
    {"tensor": "../../etc/passwd"},
    {"__reduce__": ["os.system", [SHELL]]},
    {"class_name": "Lambda", "config": {"function": ["4wEAAAA=", None, None], "module": "keras.layers"}},
)
NAMES = (
    "../secret",
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../secret",
    "..\\secret",
    "C:\\secret",
    "~/.ssh/id_rsa",
    "a\0b",
    "a\nb",
    "",
    ".",
    "..",
    "a//b",
    "x" * 5000,
    "file:///etc/passwd",
    "model.safetensors/x",
    "\u202egpj.exe",
)


def leaves(tree: object, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values of JSON."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def changed(tree: object, path: tuple, value: object) -> object:
    """The tree with another value at a path."""
    if not path:
        return value
    copy = tree.copy()
    copy[path[0]] = changed(tree[path[0]], path[1:], value)
    return copy


def cases(good: Path) -> Iterator[Case]:
    """All that are written."""
    yield from _replaced(good)
    yield from _configs(json.loads((good / "config.json").read_text()))
    yield from _manifests(json.loads((good / store.MANIFEST).read_text()))
    yield from _links()


def _replaced(good: Path) -> Iterator[Case]:
    for i, data in enumerate((*PICKLES, torch_file())):
        for name in (*FILES, store.MANIFEST):
            yield Case(f"pickle {i} as {name}", _put(name, data))
            yield Case(f"pickle {i} as {name}, not sealed", _put(name, data, seal=False))
        for end in EXTENSIONS if i in (1, 3) else ():
            yield Case(f"pickle {i} beside, .{end}", _put(f"evil.{end}", data))
            yield Case(f"pickle {i} in place, .{end}", _moved("model.safetensors", f"model.{end}", data))
    for name in FILES:
        for what, data in {**arrays(), **bombs()}.items():
            yield Case(f"{what} as {name}", _put(name, data))
    for name in FILES[1:]:
        for what, data in tensors((good / name).read_bytes()).items():
            yield Case(f"{name}: {what}", _put(name, data))


def _configs(config: dict) -> Iterator[Case]:
    places = list(leaves(config))
    named = [path for path in places if isinstance(_at(config, path), str) and ":" in _at(config, path)]
    for path in named:
        for name in CLASSES:
            yield Case(f"config {path} = {name[:60]!r}", _config(changed(config, path, name)))
    draw = random.Random(15)
    for path in draw.sample(places, min(60, len(places))):
        value = draw.choice(VALUES)
        yield Case(f"config {path} = {value!r:.60}", _config(changed(config, path, value)))
    texts = {
        "deep": "[" * 100_000,
        "long number": "9" * 1_000_000,
        "NaN": '{"format": NaN}',
        "infinite": '{"format": 1e999}',
        "large": " " * 9_000_000,
        "no text": "\x00\x00",
    }
    for what, text in texts.items():
        yield Case(f"config {what}", _put("config.json", text.encode()))


def _manifests(manifest: dict) -> Iterator[Case]:
    entry = next(iter(manifest["files"].values()))
    for name in NAMES:
        listed = {**manifest, "files": {**manifest["files"], name: entry}}
        yield Case(f"manifest lists {name[:40]!r}", _put(store.MANIFEST, json.dumps(listed).encode(), seal=False))
    for value in ([], {}, {"files": 3}, {**manifest, "files": {"config.json": 1}}, {**manifest, "format": 2**70}):
        yield Case(f"manifest {value!r:.40}", _put(store.MANIFEST, json.dumps(value).encode(), seal=False))
    yield Case("manifest deep", _put(store.MANIFEST, b'{"files":' * 100_000, seal=False))


def _links() -> Iterator[Case]:
    targets = ("/etc/passwd", "/dev/zero", "/dev/random", "/proc/self/mem", "/proc/self/environ", "..", "absent", ".")
    for name in (*FILES, store.MANIFEST):
        for target in targets:
            yield Case(f"{name} leads to {target}", _linked(name, target))
        yield Case(f"{name} leads to itself", _linked(name, name))
        yield Case(f"{name} is a pipe", lambda folder, name=name: (_gone(folder / name), os.mkfifo(folder / name)))
        yield Case(f"{name} is a folder", lambda folder, name=name: (_gone(folder / name), (folder / name).mkdir()))


def mutations(good: Path, count: int, seed: int = 0) -> Iterator[Case]:
    """Copies with random bytes of one file changed, cut or added, sealed anew."""
    draw = random.Random(seed)
    sources = {name: (good / name).read_bytes() for name in FILES}
    for number in range(count):
        name = draw.choice(FILES)
        data = bytearray(sources[name])
        for _ in range(draw.choice([1, 1, 2, 8])):
            # Half of them in the first kilobytes, where headers are.
            at, how = draw.randrange(min(len(data), draw.choice([2000, len(data)])) or 1), draw.randrange(4)
            if how < 2:
                data[at : at + 1] = bytes([draw.randrange(256)])
            elif how == 2:
                del data[at : at + draw.choice([1, 8, len(data)])]
            else:
                data[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice([1, 8])))
        yield Case(f"mutation {number} of {name}", _put(name, bytes(data)))


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def _gone(path: Path) -> None:
    path.unlink()


def _put(name: str, data: bytes, *, seal: bool = True) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(data)
        if seal and name != store.MANIFEST:
            store.seal(folder)

    return make


def _moved(old: str, new: str, data: bytes) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / old).unlink()
        (folder / new).write_bytes(data)
        store.seal(folder)

    return make


def _config(config: object) -> Callable[[Path], object]:
    return _put("config.json", json.dumps(config).encode())


def _linked(name: str, target: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return make
