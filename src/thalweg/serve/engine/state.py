"""How the engine stands, as probes ask it."""

from typing import NamedTuple


class EngineState(NamedTuple):
    """Whether requests are taken, whether the process works at all, and why not."""

    ready: bool
    alive: bool
    reason: str
