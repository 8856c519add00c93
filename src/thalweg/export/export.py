"""A stored object as files for other runtimes: planned, written in memory, checked, and only then put on disk."""

import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import thalweg
from thalweg.bundle.exportable import Exportable, Plan, Program
from thalweg.bundle.files import StoredType
from thalweg.bundle.servable import Servable
from thalweg.core import store
from thalweg.core.config import type_name
from thalweg.core.errors import DamagedFile, UserError
from thalweg.export.check import check, specs_dict
from thalweg.export.formats import loaded, prepared, require, written
from thalweg.export.tracing import COUNTS

RANDOM, HOSTILE = 10_000, 1_000
TYPE = "export"  # what the manifest of an exported folder calls itself


def exportable(found: StoredType) -> tuple[Servable, Plan]:
    """What would be exported of a stored object; UserError, before any work, where nothing can be."""
    servable = found.servable()
    if not isinstance(servable, Exportable):
        raise UserError(f"must be something that can be exported, and is {servable.title}", argument="run")
    return servable, servable.plan()


def export(
    found: StoredType, out: Path, *, format: str, rows: int = RANDOM, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Write the graphs of a stored object, each checked; returns what the manifest says of them.

    The object is moved to the CPU, where graphs are made and checked.

    `out`: a file that ends in .onnx or .pt2 gets the energy's graph alone; else a folder gets all, and a manifest.

    Raises:
        UserError: An unknown format, a missing package, another thing at `out`, what cannot be exported, a graph that
            disagrees with the library. Nothing is written then.
    """
    require(format)
    single = out.suffix.lower() in (".onnx", ".pt2")
    require_place(out, format, single)
    servable, plan = exportable(found.to("cpu"))
    modules, left_out = _prepared(servable, plan, format, single)
    for name, why in left_out.items():
        say(f"{name} is left out: {why}")
    files, graphs = {}, []
    for program, module in modules:
        about: dict[str, Any] = {"graph": program.name, "of": type_name(type(found)), "title": servable.title}
        about["versions"] = versions(format)
        data = written(program, module, format, _example(program, servable, COUNTS[0]), about)
        run = loaded(data, program, format)
        figures = check(program, run, servable, typical_of(servable), (rows, min(HOSTILE, rows)))
        name = f"{program.name}.{format}"
        files[name] = data
        graphs.append({"file": name, **about, **_described(program), "check": figures.to_dict()})
    if single:
        store.write_bytes(out, next(iter(files.values())))
    else:
        _write_folder(out, files, graphs, left_out)
    return {"out": str(out), "graphs": graphs, "left_out": left_out}


def _prepared(
    servable: Servable, plan: Plan, format: str, single: bool
) -> tuple[list[tuple[Program, torch.nn.Module]], dict[str, str]]:
    """The programs with the modules that files are made of, and what is left out: why, by name."""
    found, left_out = [], {} if single else dict(plan.left_out)
    for program in plan.programs[: 1 if single else None]:
        try:
            found.append((program, prepared(program, format, partial(_example, program, servable))))
        except UserError as error:
            if not found:  # without its energy there is nothing to export
                raise
            left_out[program.name] = error.message
    return found, left_out


def typical_of(servable: Servable) -> Callable[[int, int], Any]:
    """The method of an exportable servable that draws rows."""
    assert isinstance(servable, Exportable)
    return servable.typical_rows


def _example(program: Program, servable: Servable, n: int) -> Any:
    return program.of_rows(typical_of(servable)(n, 0), torch.Generator().manual_seed(0))


def _described(program: Program) -> dict[str, Any]:
    categories = {n: {"codes": dict(c.codes), "unknown": c.unknown} for n, c in program.categories.items()}
    described = {
        "inputs": specs_dict(program.inputs, program.units),
        "outputs": specs_dict(program.outputs, program.units),
    }
    return {**described, "categories": categories} if categories else described


def _write_folder(out: Path, files: dict[str, bytes], graphs: list[dict[str, Any]], left_out: dict[str, str]) -> None:
    def write(folder: Path) -> None:
        for name, data in files.items():
            store.write_bytes(folder / name, data)

    out = out.resolve()  # a link may not be replaced by what is put in its place
    out.parent.mkdir(parents=True, exist_ok=True)
    store.save_folder(out, write, about={"type": TYPE, "graphs": graphs, "left_out": left_out})


def versions(format: str) -> dict[str, str]:
    """Of everything that a graph was made and checked with."""
    from importlib.metadata import version

    names = ("onnx", "onnxruntime") if format == "onnx" else ()
    others = {"thalweg": thalweg.__version__, "torch": torch.__version__, "numpy": np.__version__}
    return {**others, "python": platform.python_version(), **{name: version(name) for name in names}}


def require_place(out: Path, format: str, single: bool) -> None:
    """UserError where `out` is something that an export may not replace, as an export in a folder is replaced whole."""
    if single:
        if out.suffix.lower() != f".{format}":
            raise UserError(
                f"must end in .{format}", argument="--out", value=str(out), hint=f"or say --format {out.suffix[1:]}"
            )
        if out.is_dir():
            raise UserError("must be a file, and is a folder", argument=str(out), hint="name another file")
        return
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    about = _manifest(out)
    if about.get("type") != TYPE:
        raise UserError("must be empty or hold an export", argument=str(out), hint="name another folder")
    own = {store.MANIFEST, *about.get("files", ())}
    foreign = sorted(path.name for path in out.iterdir() if path.name not in own)
    if foreign:
        message = f"must hold nothing beside an export, as the folder is replaced, and holds {foreign[0]!r}"
        raise UserError(message, argument=str(out), hint="move it away, or name another folder")


def _manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a folder says; empty where there is none, or it is none of ours."""
    file = folder / store.MANIFEST
    try:
        found = store.read_json(file) if file.is_file() else None
    except DamagedFile:
        found = None
    return found if isinstance(found, dict) else {}
