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
            "a re-ranker, no trained energy",
            argument=str(run),
            hint="rank with `thalweg rerank`, or give a run of `thalweg train`",
        )
    raise UserError(
        "a detector, no trained energy",
        argument=str(run),
        hint="use `thalweg detect score`, or give a run of `thalweg train`",
    )
