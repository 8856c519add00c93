"""The run that a command is given, where it must be a trained energy."""

from pathlib import Path
from typing import Any

from thalweg.core.errors import UserError


def trained(run: Path) -> Any:
    """The `Bundle` in the folder; UserError that says what else lies there and which command reads it."""
    from thalweg.apps.bundle import Bundle, load
    from thalweg.apps.rerank import EnergyReranker

    found = load(run)
    if isinstance(found, Bundle):
        return found
    if isinstance(found, EnergyReranker):
        raise UserError(
            f"{run}: a re-ranker, no trained energy; rank with `thalweg rerank`, or give a run of `thalweg train`"
        )
    raise UserError(
        f"{run}: a detector, no trained energy; use `thalweg detect score`, or give a run of `thalweg train`"
    )
