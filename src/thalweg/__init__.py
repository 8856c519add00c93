"""Thalweg: energy-based models for work.

A run is data, an energy, a sampler, an objective and a trainer; everything after it reads the bundle the run leaves.
Names below are imported on first use, so `import thalweg` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from thalweg.api import train
    from thalweg.apps.anomaly.detector import EnergyDetector
    from thalweg.apps.rerank.reranker import EnergyReranker
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.files import load
    from thalweg.core.errors import DamagedFile, Diverged, NotNormalised, ThalwegError, UserError
    from thalweg.energy.noise_conditional.anchored_network import anchored
    from thalweg.normaliser.estimate import LogZ
    from thalweg.normaliser.log_z import log_z
    from thalweg.sampler.chain import run_chain

_NAMES = {
    "Bundle": "thalweg.bundle.bundle",
    "EnergyDetector": "thalweg.apps.anomaly.detector",
    "EnergyReranker": "thalweg.apps.rerank.reranker",
    "LogZ": "thalweg.normaliser.estimate",
    "anchored": "thalweg.energy.noise_conditional.anchored_network",
    "load": "thalweg.bundle.files",
    "log_z": "thalweg.normaliser.log_z",
    "run_chain": "thalweg.sampler.chain",
    "train": "thalweg.api",
    "DamagedFile": "thalweg.core.errors",
    "Diverged": "thalweg.core.errors",
    "NotNormalised": "thalweg.core.errors",
    "ThalwegError": "thalweg.core.errors",
    "UserError": "thalweg.core.errors",
}
_PACKAGES = (
    "apps",
    "bench",
    "bundle",
    "core",
    "data",
    "energy",
    "evaluate",
    "monitor",
    "normaliser",
    "objective",
    "run",
    "sampler",
    "training",
)

__all__ = [
    "Bundle",
    "DamagedFile",
    "Diverged",
    "EnergyDetector",
    "EnergyReranker",
    "LogZ",
    "NotNormalised",
    "ThalwegError",
    "UserError",
    "anchored",
    "load",
    "log_z",
    "run_chain",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name or a sub-package the first time it is asked for."""
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"thalweg.{name}")
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted([*__all__, *_PACKAGES, "__version__"])
