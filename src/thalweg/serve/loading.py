"""Runs as servables, with a version that changes when a file does."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from thalweg.bundle.files import StoredType, load
from thalweg.bundle.servable import Servable
from thalweg.core import store
from thalweg.core.errors import UserError, kind_of
from thalweg.serve.engine.cost import plain_rows

DIGITS = 12  # of the manifest's hash


def load_models(runs: Mapping[str, Path], *, device: str = "auto") -> tuple[dict[str, Servable], dict[str, str]]:
    """(servables, versions) by name. UserError for a folder that holds nothing that scores."""
    models, versions = {}, {}
    for name, run in runs.items():
        stored: StoredType = load(run, device=device)
        models[name], versions[name] = stored.servable(), version_of(run)
        require_scores(models[name], run)
    return models, versions


def require_scores(servable: Servable, run: Path) -> None:
    """UserError for a model that fails at every plain row, other than by refusing it: its numbers cannot be right.

    A file may be whole, and of the right form, and hold numbers with which nothing can be computed.
    """
    failure: Exception | None = None
    for row in plain_rows(servable):
        try:
            servable.score(row)
        except UserError:
            return
        except Exception as error:
            failure = error
        else:
            return
    if failure is not None:
        text, hint = (
            f"must hold a model that scores, and fails by {kind_of(failure)}",
            "restore it, or fit or train again",
        )
        raise UserError(text, argument=str(run), hint=hint) from failure


def version_of(run: Path) -> str:
    """The first digits of the SHA-256 of a run's manifest, which lists the hashes of its files; "1" without one."""
    manifest = run / store.MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest()[:DIGITS] if manifest.is_file() else "1"
