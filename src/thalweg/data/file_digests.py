"""Digests of the files that data lie in, by which a run says which of them have changed since it began."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from thalweg.core import store
from thalweg.data.image_files import relative

NAME = "data_files.json"  # in the folder of a run
EACH = 32 + 10  # bytes of a line in it beside the name


class FileDigests:
    """SHA-256 of each file, the first 128 bits in hex, by its path from a folder. Computed when first asked for.

    Args:
        files: The files.
        root: The folder that their names are told from.
        beside: Digests of other files, which come first.
    """

    def __init__(self, files: Sequence[Path], root: Path, beside: "FileDigests | None" = None):
        self.files, self.root, self.beside = files, root, beside

    @cached_property
    def by_name(self) -> dict[str, str]:
        """The digests, in the order of the files."""
        others = {} if self.beside is None else self.beside.by_name
        return {**others, **{relative(file, self.root): _digest(file) for file in self.files}}

    @property
    def together(self) -> str:
        """One digest of all names and contents, in their order."""
        return hashlib.sha256(repr([*self.by_name.items()]).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Keep the digests in the folder of a run, unless they are too many for a file of JSON."""
        if sum(len(name.encode()) + EACH for name in self.by_name) < store.MAX_JSON:
            store.write_json(folder / NAME, self.by_name)

    def changes(self, folder: Path) -> str | None:
        """How the files differ from those that a run began with, in a few words with the first of each; None where
        they agree or its folder does not say."""
        before: Mapping[str, str] = store.read_json(folder / NAME) if (folder / NAME).is_file() else {}
        now = self.by_name if before else {}
        found = {
            "changed": [name for name in before if name in now and now[name] != before[name]],
            "gone": [name for name in before if name not in now],
            "new": [name for name in now if name not in before],
        }
        parts = []
        for what, names in found.items():
            if names:
                more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
                parts.append(f"{what}: {names[0]}{more}")
        return "; ".join(parts) or None


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
