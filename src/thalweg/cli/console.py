"""What all commands share: messages, JSON and exit codes, signals, and checks of output files.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong (one line: what, where, how to mend), 130 and 143 stopped by
Ctrl-C and SIGTERM.
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import typer

from thalweg.core.errors import DiskFull, StopSignal, ThalwegError, UserError

OF_A_RUN = ("preview.png", "preview.txt", "report.html")  # of the kinds that commands write


def run(app: typer.Typer) -> None:
    """Run a command and end the process: what went wrong becomes one line and an exit code."""
    with _signals() as caught:
        try:
            code = _run(app)
            if caught:  # Typer turns the exception into a code, without a message
                code = _stopped(caught[-1])
        except OSError as error:
            code = 0 if isinstance(error, BrokenPipeError) else _fail(_as_thalweg_error(error))
        except ThalwegError as error:
            code = _fail(error)
        except (KeyboardInterrupt, typer.Abort):
            code = _stopped(caught[-1] if caught else signal.SIGINT)
    _flush(sys.stdout)
    _flush(sys.stderr)
    sys.exit(code)


def _run(app: typer.Typer) -> int:
    try:
        code = app(standalone_mode=False)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # how click and rich tell it
            return 0
        raise
    except ThalwegError:
        raise
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error, of click or of the copy that Typer carries
            raise
        if len(sys.argv) == 1:
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            return 2
        context = getattr(error, "ctx", None)
        asked = context.command_path if context else "thalweg"
        message = " ".join(error.format_message().split())  # pyright: ignore[reportAttributeAccessIssue]
        say(f"thalweg: {message.rstrip('.')}; see `{asked} --help`")
        return 2
    return code if isinstance(code, int) else 0


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Let SIGTERM unwind the stack as Ctrl-C does; the signals that came. During training the trainer has its own."""
    caught: list[int] = []

    def stop(signum: int, frame: object) -> None:
        caught.append(signum)
        raise StopSignal(signum)

    try:
        handled = [name for name in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(name) != signal.SIG_IGN]
        before = {signum: signal.signal(signum, stop) for signum in handled}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)


def _stopped(signum: int) -> int:
    """One line for a stop outside a training; all files are written whole or not at all."""
    say("thalweg: stopped before the end; nothing is half-written")
    return 128 + signum


def _as_thalweg_error(error: OSError) -> ThalwegError:
    if isinstance(error, ThalwegError):
        return error
    return UserError(
        str(error.strerror or error),
        argument=str(error.filename or "a file"),
        hint="check the path, its rights and the disk",
    )


def _fail(error: ThalwegError) -> int:
    if not error.already_reported:
        say(f"thalweg: {' '.join(str(error).split())}")
    signum = error.signum
    if signum is not None:
        if error.resumable and not error.already_reported:
            say(f"to go on: {command()}{'' if '--resume' in sys.argv else ' --resume'}")
        return 128 + signum
    return 2 if isinstance(error, UserError) else 1


def _flush(stream: TextIO | None) -> None:
    """Flush; where that fails, discard what the interpreter would flush at its end, which would give a traceback."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def command() -> str:
    """The command as the user typed it, or torchrun did for each of its processes."""
    size = os.environ.get("WORLD_SIZE", "1")
    each = os.environ.get("LOCAL_WORLD_SIZE", size)
    launch = ["thalweg"] if size == "1" else ["torchrun", "--nproc-per-node", each, "-m", "thalweg"]
    return shlex.join([*launch, *sys.argv[1:]])


def writable(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse before the work, not after it, a file that cannot be written or is of another kind."""
    if path.suffix.lower() not in suffixes:
        raise UserError(f"must end in {' or '.join(suffixes)}", argument=str(path))
    require_parent(path)
    if path.is_dir():
        raise UserError("must be a file, and is a folder", argument=str(path))
    check_rights(path.parent, path)


def require_parent(path: Path) -> None:
    """UserError unless the folder of a file exists."""
    if not path.parent.is_dir():
        hint = f"make the folder {path.parent} first"
        raise UserError("must be in a folder that exists", argument=str(path), hint=hint)


def refuse_overwrite(out: Path, *inputs: Path | None) -> None:
    """UserError, before the work, for an output that is one of the inputs, or a file of one, and would replace it.

    Of a folder the images are inputs, and of a run's folder what the run itself wrote, by whatever links it is named.
    """
    if not out.exists():
        return
    there = out.stat()
    for path in (path for path in inputs if path is not None and path.exists()):
        if os.path.samestat(there, path.stat()):
            what = "the folder that is read" if path.is_dir() else "the file that is read"
        elif any(os.path.samestat(there, file.stat()) for file in _files_of(path)):
            what = f"a file of {path}, which is read"
        else:
            continue
        hint = "name another place, so that nothing is overwritten"
        raise UserError(f"must not be {what}", argument=str(out), hint=hint)


def _files_of(folder: Path) -> list[Path]:
    """The files of an input that is a folder; the pictures that lie in a run's own are no inputs."""
    if not folder.is_dir():
        return []
    from thalweg.data.image_files import image_files

    a_run = (folder / "config.json").is_file()
    found = [folder / name for name in OF_A_RUN] if a_run else image_files(folder)
    return [path for path in found if path.is_file()]


def writable_folder(path: Path) -> None:
    """Refuse before the work a folder that cannot be made or written in; those above it are made with it."""
    there = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise UserError(f"must be a folder, and {there} is a file", argument=str(path), hint="name another")
    check_rights(there, path)


def check_rights(folder: Path, path: Path) -> None:
    """UserError, which names the path, unless its folder may be written in."""
    if not os.access(folder, os.W_OK | os.X_OK):
        hint = "change its mode, or name another place"
        raise UserError(f"must be in a folder with the right to write, unlike {folder}", argument=str(path), hint=hint)


def say(text: str) -> None:
    """A line for people, on standard error."""
    with suppress(OSError):  # nobody reads it: no reason to stop the work
        print(text, file=sys.stderr, flush=True)  # noqa: T201 — click's echo would end the process


def count(n: int, name: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{n} {name}{'s' * (n != 1)}"


def emit(result: dict[str, Any], as_json: bool) -> None:
    """The result as one JSON object on standard output, if that was asked for."""
    if as_json:
        print_lines([json.dumps(result, allow_nan=False)])


def print_lines(lines: Iterable[str]) -> None:
    """Lines on standard output; what its encoding does not hold as an escape."""
    text = "".join(f"{line}\n" for line in lines)
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)  # noqa: T201 — as above
    except BrokenPipeError:  # the reader has stopped reading, which is no error
        return
    except OSError as error:
        text = f"standard output: {error.strerror}, so the result could not be written; the work itself is done"
        raise DiskFull(text) from error
