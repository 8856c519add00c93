"""Runs as servables, with a version that changes when a file does."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from thalweg.bundle.files import StoredType, load
from thalweg.bundle.servable import Servable
from thalweg.core import store

DIGITS = 12  # of the manifest's hash


def load_models(runs: Mapping[str, Path], *, device: str = "auto") -> tuple[dict[str, Servable], dict[str, str]]:
    """(servables, versions) by name. UserError for a folder that holds nothing that scores."""
    models, versions = {}, {}
    for name, run in runs.items():
        stored: StoredType = load(run, device=device)
        models[name], versions[name] = stored.servable(), version_of(run)
    return models, versions


def version_of(run: Path) -> str:
    """The first digits of the SHA-256 of a run's manifest, which lists the hashes of its files; "1" without one."""
    manifest = run / store.MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest()[:DIGITS] if manifest.is_file() else "1"
