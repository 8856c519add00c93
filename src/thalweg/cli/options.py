"""Options that several commands have."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from thalweg.core.errors import UserError

SEEDS = 2**64 - 1
PLACES = ("out", "image", "path")  # options that are paths, whatever the command
Seed = Annotated[int, typer.Option(help="Seed of all randomness.", min=0, max=SEEDS)]
Run = Annotated[Path, typer.Argument(help="Folder that `thalweg train` wrote, or a Hub id.")]
Header = Annotated[
    bool | None, typer.Option("--header/--no-header", help="Whether a CSV's first line names its columns.")
]
Input = Annotated[
    Path, typer.Argument(metavar="INPUT", help="npy, npz, CSV, Parquet, an image or a folder of them, .txt.")
]


def _share(alpha: float) -> float:
    """The level, as a bound of the option itself would let NaN fall on either end."""
    from thalweg.core.check import share

    with by_option("alpha"):
        share(alpha=alpha)
    return alpha


Alpha = Annotated[float, typer.Option(help="Flag rows whose p-value is at most this, in [0, 1].", callback=_share)]
Drop = Annotated[list[str] | None, typer.Option(help="A column of a table to leave out; repeatable.")]


def _there(device: str) -> str:
    """The name of a device, refused before any work where it is not there; torch is not imported for the usual ones."""
    named = os.environ.get("THALWEG_DEVICE", "auto") if device == "auto" else device
    if named not in ("", "auto", "cpu"):
        from thalweg.core.device import find_device

        find_device(device)
    return device


Device = Annotated[
    str,
    typer.Option(
        help="auto (THALWEG_DEVICE, else a GPU, else the CPU), cpu, cuda or cuda:N.",
        show_default=False,
        callback=_there,
    ),
]


def _trust(context: typer.Context, packages: list[str] | None) -> None:
    """Trust the packages until the command ends, so that a command need not ask for the option's value."""
    from thalweg.core.trust import trusting

    context.with_resource(trusting(*packages or ()))


Trust = Annotated[
    list[str] | None,
    typer.Option(help="A package whose classes may be imported and built; repeatable.", callback=_trust),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for machines.")]


def refuse_empty_names(command: Any) -> None:
    """UserError, in this command and those below it, for an empty text as an argument or as one of `PLACES`.

    As a path it would be the working folder, which a variable of a shell that is not set should not mean.
    """
    for each in getattr(command, "commands", {}).values():  # of a group
        refuse_empty_names(each)
    for parameter in command.params:
        if parameter.param_type_name == "argument" or parameter.name in PLACES:
            parameter.process_value = partial(_not_empty, parameter.opts[0], parameter.process_value)


def _not_empty(name: str, process: Callable[[Any, Any], Any], context: Any, value: Any) -> Any:
    """The value as the command takes it; `value` is the text, or texts, of the command line."""
    if value == "" or (isinstance(value, list | tuple) and "" in value):
        where = name if name.startswith("-") else name.upper()
        raise UserError("must not be empty", argument=where, hint="give a name or a path; . is this folder")
    return process(context, value)


@contextmanager
def by_option(*names: str) -> Iterator[None]:
    """Errors about these arguments name the options of the command line: `--skip-bad` for skip_bad."""
    try:
        yield
    except UserError as error:
        if error.argument not in names:
            raise
        raise error.replace(argument=f"--{error.argument.replace('_', '-')}") from error


def table_options(header: bool | None, drop: list[str] | None) -> dict[str, Any]:
    """What the two options say, as keywords of the readers of files."""
    return {"header": header, "drop": drop or []}
