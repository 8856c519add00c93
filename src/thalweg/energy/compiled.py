"""torch.compile for the energy of a chain, where it is faster than `energy.fused`: tried on the spot, and remembered.

A compiled network costs seconds before its first step, needs a compiler on the machine, and on a CPU is often slower
than the library's own kernels. So nothing is assumed. With "auto" a chain that is long enough to repay it has a few
gradients computed both ways, in turn, and the verdict holds for the process and every network of that make; what was
compiled stays in torch's own cache on disk. What does not compile is evaluated as ever, and one line of the log says
so.

Only the energy is compiled, never the chain: dE/dx is taken of it by autograd, the sampler's step stays as it is.
"""

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from thalweg.energy.fused import channels_last, held, is_compiled
from thalweg.energy.reach import modules_of, turn
from thalweg.energy.spectral import frozen

logger = logging.getLogger(__name__)
How = bool | Literal["auto"]
Gradient = Callable[[Any], Any]  # takes dE/dx of the energy it is given, at the chain's start and in its precision

COMPILE_SECONDS = 10.0  # what a first call may cost; 1 to 8 s for the networks of benchmarks/claims.py
MOST_SAVED = 0.5  # of a step's time: a chain that this would not repay is not tried
MUST_SAVE = 0.95  # of the time without: for less it is not worth other bits
ROUNDS, TURN_SECONDS = 5, 0.02


class Verdict(NamedTuple):
    """Seconds of a gradient without compilation, and whether compilation pays; None: not tried yet."""

    seconds: float
    pays: bool | None = None


verdicts: dict[Hashable, Verdict] = {}


def signature(energy: Any, x: Tensor, *more: Hashable) -> Hashable:
    """What a verdict depends on: the make of the network, the positions' shape, type and device, the threads."""
    parts = [(name, m) for root in modules_of(energy) for name, m in root.named_modules()]
    make = tuple((name, type(m).__module__, type(m).__qualname__, m.extra_repr()) for name, m in parts)
    sizes = tuple((tuple(p.shape), p.dtype) for root in modules_of(energy) for p in root.parameters())
    kind = energy if hasattr(energy, "__qualname__") else type(energy)
    where = (tuple(x.shape), x.dtype, str(x.device), torch.get_num_threads())
    return (kind.__module__, kind.__qualname__, make, sizes, where, *more)


@contextmanager
def compiled(energy: Any, gradient: Gradient) -> Iterator[Any]:
    """The same energy, `frozen`, its weights in channels_last, and compiled at its next call.

    Uses `torch.nn.utils.parametrize.cached`, which is global to the process: meanwhile do not train another
    parametrised module on another thread.
    """
    modules = list(dict.fromkeys(m for root in modules_of(energy) for m in root.modules()))
    with ExitStack() as stack:
        stack.enter_context(turn(modules))
        stack.enter_context(channels_last(modules))
        stack.enter_context(frozen(energy))
        stack.enter_context(parametrize.cached())
        gradient(energy)  # folds the weights, which are inputs of what is compiled: once for all chains
        if isinstance(energy, nn.Module):
            stack.callback(_forget, energy, set(energy.__dict__))
        plain = isinstance(energy, nn.Module) or hasattr(energy, "__code__")
        yield torch.compile(energy if plain else energy.__call__)


def _forget(m: nn.Module, names: set[str]) -> None:
    """Take off what torch.compile marked the module with."""
    for name in set(m.__dict__) - names:
        del m.__dict__[name]


@contextmanager
def fastest(energy: Any, x: Tensor, how: How, num_steps: int, gradient: Gradient, *more: Hashable) -> Iterator[Any]:
    """The energy for as long as a chain of `num_steps` from x lasts: `held`, or compiled where that is asked for.

    `how`: False; True, wherever it compiles; "auto", where it is faster and the chain repays it. `more` tells apart
    what `gradient` does. The energy is as it was afterwards. Raises whatever the energy itself raises.
    """
    wanted = how is not False and not any(is_compiled(m) for root in modules_of(energy) for m in root.modules())
    if wanted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's, which its callers can do nothing about
            alone = torch.get_num_threads() == 1 and x.device.type == "cpu"
            trial = Trial(energy, gradient, time.process_time if alone else time.perf_counter)
            wanted = _wanted(trial, signature(energy, x, *more), how, num_steps)
    with compiled(energy, gradient) if wanted else held(energy) as still:
        yield still


def _wanted(trial: "Trial", key: Hashable, how: How, num_steps: int) -> bool:
    known = verdicts.get(key)
    if how is True:
        return (known is not None and known.pays is True) or trial.first_call() is not None
    if known is None:
        known = verdicts[key] = Verdict(trial.seconds())
    if known.pays is None and num_steps * known.seconds * MOST_SAVED > COMPILE_SECONDS:
        known = verdicts[key] = known._replace(pays=trial.pays(known.seconds))
    return known.pays is True


@dataclass(frozen=True)
class Trial:
    """Gradients of an energy with and without compilation, timed by a clock: the processor's own for one thread of it,
    as others use it too.
    """

    energy: Any
    gradient: Gradient
    clock: Callable[[], float]

    def seconds(self) -> float:
        """Of one gradient, the energy held."""
        with held(self.energy) as still:
            self.gradient(still)
            self.gradient(still)
            return min(self._time(still, 1) for _ in range(2))

    def first_call(self) -> float | None:
        """Seconds of the first gradient, compilation included; None, and a line in the log, where there is none."""
        start = time.perf_counter()
        try:
            with compiled(self.energy, self.gradient) as fast:
                self.gradient(fast)
        except Exception as error:  # whatever a compiler may raise: the chain does not need it
            reason = (str(error).strip() or "no message").splitlines()[0]
            found = f"{type(error).__name__}: {reason:.200}"
            logger.warning("torch.compile failed, and the chain runs without it (%s)", found)
            return None
        return time.perf_counter() - start

    def pays(self, seconds: float) -> bool:
        """Whether compilation wins, by turns of both, given the seconds of a gradient without; the log tells why."""
        first = self.first_call()
        if first is None:
            return False
        times, ratios = max(1, min(50, round(TURN_SECONDS / seconds))), []
        for _ in range(ROUNDS):
            turns = []
            for way in (held(self.energy), compiled(self.energy, self.gradient)):
                with way as still:
                    self.gradient(still)
                    turns.append(self._time(still, times))
            ratios.append(turns[1] / turns[0])
        ratio = median(ratios)
        word = "used" if ratio < MUST_SAVE else "not used"
        logger.info("torch.compile takes %.2f of the time without it, after %.1f s: %s", ratio, first, word)
        return ratio < MUST_SAVE

    def _time(self, still: Any, times: int) -> float:
        start = self.clock()
        for _ in range(times):
            self.gradient(still)
        return (self.clock() - start) / times
