"""A step on tensors that stay where they are, which a CUDA graph can replay.

On a GPU the kernels of a small network take less time than their launches. A graph records the launches of one step
and repeats them all by a single call, on the memory that it saw. So the state lives in buffers; noise is drawn outside,
from the same generators as ever, and copied in; step and copying back are what the graph records. Step size and
temperature are 0-d tensors on the device: nothing of a step passes through the host. On the CPU the same step is called
instead of replayed, and gives the same bits.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor

logger = logging.getLogger(__name__)
WARM = 3  # steps before a capture: libraries choose algorithms and set up their memory at first calls
Step = Callable[[], None]


def on_device(sampler: Any, like: Tensor) -> Any:
    """The sampler with its step size and temperature as 0-d tensors where the positions are.

    They are float64, as the Python numbers were: a 0-d tensor does not raise the type of what it multiplies.
    """
    names = [name for name in ("step_size", "temperature") if hasattr(sampler, name)]
    if not dataclasses.is_dataclass(sampler) or isinstance(sampler, type) or like.device.type == "mps":
        return sampler
    kind = {"dtype": torch.float64, "device": like.device}
    return dataclasses.replace(sampler, **{name: torch.as_tensor(getattr(sampler, name), **kind) for name in names})


class StaticStep:
    """One step of a sampler on buffers: `state` and `noise`, NamedTuple and tuple of tensors, copied at the start.

    `noise` is what the sampler drew for a step like those to come.
    """

    def __init__(self, sampler: Any, energy: Any, state: Any, noise: tuple[Tensor, ...]):
        self.sampler, self.energy = on_device(sampler, state.x), energy
        self.state = type(state)(*(part.clone() for part in state))
        self.noise = tuple(part.clone() for part in noise)
        self._run = _record(self._advance, list(self.state))

    def _advance(self) -> None:
        after, _ = self.sampler.step(self.energy, self.state, self.noise)
        old = {part.untyped_storage().data_ptr() for part in self.state}
        new = [part.clone() if part.untyped_storage().data_ptr() in old else part for part in after]
        for buffer, part in zip(self.state, new, strict=True):
            buffer.copy_(part)

    def __call__(self, noise: tuple[Tensor, ...]) -> Any:
        """The state after one more step: the buffers themselves, which the next step overwrites."""
        for buffer, part in zip(self.noise, noise, strict=True):
            buffer.copy_(part)
        self._run()
        return self.state


def warm(step: Step, buffers: list[Tensor]) -> None:
    """A few steps, of which nothing is left in the buffers."""
    before = [buffer.clone() for buffer in buffers]
    for _ in range(WARM):
        step()
    for buffer, saved in zip(buffers, before, strict=True):
        buffer.copy_(saved)


def _record(step: Step, buffers: list[Tensor]) -> Step:
    """The step as a CUDA graph's replay; on other devices, or where it cannot be captured, the step itself."""
    if not buffers[0].is_cuda:
        return step
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            warm(step, buffers)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        logger.warning("the step is not captured as a CUDA graph: %.200s", str(error).splitlines()[0])
        return step
    return graph.replay


def replayed(sampler: Any, energy: Any, x: Tensor, generators: Iterable[Generator]) -> Iterator[Any]:
    """The states that `sampler.run.transitions` gives, in buffers: what is to outlive the next step must be copied.

    The first step runs as ever, for an energy looks at the chains' start.
    """
    state, step = sampler.init(energy, x), None
    for each in generators:
        noise = sampler.draw(state, each)
        if step is not None:
            state = step(noise)
        else:
            state, _ = sampler.step(energy, state, noise)
            if all(isinstance(part, Tensor) for part in state):
                step = StaticStep(sampler, energy, state, noise)
                state = step.state
        yield state
