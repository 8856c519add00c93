"""Eyes on a run: figures of a set of samples beside held-out data, and a test with a known rate of false alarms.

Names are imported on first use, so that reading what was found (`history.py`) does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.monitor.diversity import Diversity, Report

__all__ = ["Diversity", "Report"]


def __getattr__(name: str) -> Any:
    """Import a public name the first time it is asked for."""
    if name in __all__:
        from thalweg.monitor import diversity

        return vars(diversity)[name]
    raise AttributeError(f"module 'thalweg.monitor' has no attribute {name!r}")
