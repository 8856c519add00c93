"""A folder that a command fills: a new or an empty one, whole or not at all."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from thalweg.cli import console


def is_new_or_empty(out: Path) -> bool:
    """Whether a path is free for a folder: nothing, or a folder with nothing but what a killed process left."""
    from thalweg.core.temporary import is_temporary

    return not out.exists() or (out.is_dir() and all(map(is_temporary, out.iterdir())))


def require_writable(out: Path) -> None:
    """UserError, before the work, where the folder cannot be made or written in."""
    console.require_parent(out)
    console.writable_folder(out)


@contextmanager
def filled_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, put in place when the block has passed; where either fails, nothing is left of it."""
    from thalweg.core import temporary
    from thalweg.core.store import write_errors

    inside = out.is_dir()  # it may be a link or a disk of its own, and stays
    with ExitStack() as stack:
        with write_errors(out, None):
            aside = stack.enter_context(temporary.folder(out / "new" if inside else out))
        yield aside
        with write_errors(out, None):
            if not inside:
                aside.rename(out)
            for path in sorted(aside.iterdir()) if inside else ():
                path.rename(out / path.name)
