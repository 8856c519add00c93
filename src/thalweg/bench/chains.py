"""How fast chains run on this machine: this package beside a hand-written loop, other samplers and the bare arithmetic.

All contenders move the same number of chains of the same network by the same update, x - h dE/dx + s z. They take
turns, a short chain each (`bench.timing`). Figures are medians over the rounds, and ratios medians of the rounds' own
ratios. One thread is measured in CPU time, several threads and other devices in wall time.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.bench.timing import Contender, in_turns, markdown, on_threads
from thalweg.core.rng import generator
from thalweg.energy.engine.freeze import frozen, normalise
from thalweg.energy.networks.conv import ConvEnergy
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.networks.resnet import ResNetEnergy
from thalweg.sampler.chain import run_chain
from thalweg.sampler.langevin import ULA

STEP, NOISE = 0.01, 0.005


class PlainCNN(nn.Module):
    """The network of many tutorials, E(x) of 28 x 28 images: 3 x 3 convolutions 16-32-64 with spectral norm, LeakyReLU,
    max pooling, a linear layer.
    """

    shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.MaxPool2d(2)] if layers else []
            layers += [normalise(nn.Conv2d(c_in, c_out, 3, padding=1)), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 7 * 7, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The energy in nats."""
        return self.net(x).squeeze(1)


OURS, ROOFLINE = "thalweg fp32", "roofline"
NETS: dict[str, Callable[[], PlainCNN | ConvEnergy | ResNetEnergy | MLPEnergy]] = {
    "plain": PlainCNN,
    "cnn": lambda: ConvEnergy(shape=(1, 28, 28), channels=(16, 32, 64)),
    "resnet": lambda: ResNetEnergy(shape=(3, 32, 32), channels=(16, 32, 64)),
    "mlp": lambda: MLPEnergy(shape=(2,)),
}
STEPS = {"plain": 8, "cnn": 8, "resnet": 4, "mlp": 100}  # of 64 chains, in one turn
Others = Mapping[str, Callable[[nn.Module, Tensor, int], Contender]]  # (network, positions, steps) to a contender


class Row(NamedTuple):
    """One contender: ms a step, CPU-ms a step, images times steps a second, its time over that of `OURS`."""

    net: str
    batch: int
    threads: int
    name: str
    ms: float
    cpu_ms: float
    rate: float
    ratio: float


def _steps(net: str, batch: int) -> int:
    """How many steps a turn has: fewer of more chains, so that a table takes as long for any batch."""
    return max(1, STEPS[net] * 64 // batch) if net != "mlp" else STEPS[net]


def tutorial(energy: nn.Module, x: Tensor, num_steps: int) -> Tensor:
    """The loop as the public tutorials have it: train mode, every gradient, the network as it stands."""
    x = x.clone()
    for _ in range(num_steps):
        x.requires_grad_(True)
        energy(x).sum().backward()
        assert x.grad is not None
        x = (x - STEP * x.grad + NOISE * torch.randn_like(x)).detach()
    return x


def ours(energy: nn.Module, x: Tensor, num_steps: int, precision: str = "fp32") -> Tensor:
    """The same by `thalweg.run_chain`."""
    sampler = ULA(step_size=STEP, temperature=NOISE**2 / (2 * STEP))
    return run_chain(sampler, energy, x, num_steps=num_steps, precision=precision)


def bf16_pays(device: str = "cpu") -> str | None:
    """None where a bfloat16 convolution and its gradient are faster than in float32; else a sentence that says why not.

    Without instructions of its own for bfloat16 a processor emulates it.
    """
    if device != "cpu":
        return None
    times = []
    for kind in (torch.float32, torch.bfloat16):
        x, w = torch.ones(16, 16, 14, 14, dtype=kind).requires_grad_(), torch.ones(32, 16, 3, 3, dtype=kind)
        with on_threads(1):  # threads that wait for each other on a busy machine would be all that is measured
            times.append(_best(lambda x=x, w=w: torch.autograd.grad(F.conv2d(x, w, padding=1).sum(), x), 5))
    if times[1] < times[0]:
        return None
    return (
        f"bf16 is left out: a convolution and its gradient take {times[1] / times[0]:.1f} times as long as in fp32 here"
    )


def roofline(energy: nn.Module, x: Tensor) -> Contender:
    """The products of one step alone: every convolution and linear layer, forward and back to its input.

    Each runs in the layout that is fastest for it here, of those that the library offers: NCHW, channels_last and, for
    the forward pass, its own blocked one.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    layers = [m for m in energy.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [
        m.register_forward_hook(lambda m, args, y: calls.append((m, args[0].detach(), y.detach()))) for m in layers
    ]
    with torch.no_grad(), frozen(energy):
        energy(x)
        work = [job for call in calls for job in _products(*call)]
    for hook in hooks:
        hook.remove()

    @torch.no_grad()
    def run() -> None:
        for job in work:
            job()

    return run


def _products(m: nn.Module, x: Tensor, y: Tensor) -> tuple[Contender, Contender]:
    if isinstance(m, nn.Linear):
        w, back = m.weight.detach(), m.weight.detach().t().contiguous()
        g = torch.ones_like(y)
        return lambda: F.linear(x, w), _fastest([lambda: g @ w, lambda: F.linear(g, back)])
    assert isinstance(m, nn.Conv2d)
    assert not isinstance(m.padding, str)
    w, where = m.weight.detach(), (m.stride, m.padding, m.dilation)
    rest = (*where, False, [0, 0], m.groups, [True, False, False])
    forward, backward = [], []
    for layout in (torch.contiguous_format, torch.channels_last):
        a, v, g = (t.clone(memory_format=layout) for t in (x, w, torch.ones_like(y)))
        forward.append(lambda a=a, v=v: F.conv2d(a, v, None, *where, m.groups))
        backward.append(lambda a=a, v=v, g=g: torch.ops.aten.convolution_backward(g, a, v, None, *rest))
    if torch.backends.mkldnn.is_available() and x.device.type == "cpu":
        a, blocked = x.contiguous().to_mkldnn(), (m.padding, m.stride, m.dilation, m.groups)
        v = torch._C._nn.mkldnn_reorder_conv2d_weight(  # pyright: ignore[reportAttributeAccessIssue]
            w.contiguous().to_mkldnn(), *blocked, list(x.shape)
        )
        forward.append(lambda: torch.ops.aten.mkldnn_convolution(a, v, None, *blocked))
    return _fastest(forward), _fastest(backward)


def _best(job: Contender, times: int) -> float:
    """The shortest of several CPU times, in seconds, after one call that is not counted."""
    found = []
    for i in range(times + 1):
        start = time.process_time()
        job()
        found += [time.process_time() - start] if i else []
    return min(found)


def _fastest(jobs: Sequence[Contender]) -> Contender:
    return min(jobs, key=lambda job: _best(job, 7))


def contenders(
    net: str, batch: int, others: Others | None = None, bf16: bool = False, device: str = "cpu"
) -> dict[str, Contender]:
    """Name to a function of nothing that runs `_steps` steps; each has a network of its own, equal at the start.

    `others`: name to a function (network, x, num_steps) that makes such a function, for instance of another library.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        energy = NETS[net]().to(device)
    x = torch.rand(batch, *energy.shape, generator=generator(0, "speed")).to(device)
    num, own = _steps(net, batch), [copy.deepcopy(energy) for _ in range(4)]
    found: dict[str, Contender] = {"tutorial": lambda: tutorial(own[0], x, num)}
    found |= {name: make(copy.deepcopy(energy), x, num) for name, make in (others or {}).items()}
    found[OURS] = lambda: ours(own[1], x, num)
    if bf16:
        found["thalweg bf16"] = lambda: ours(own[2], x, num, "bf16")
        found["thalweg auto"] = lambda: ours(own[3], x, num, "auto")
    once = roofline(energy, x)
    found[ROOFLINE] = lambda: [once() for _ in range(num)]
    return found


def measure(
    net: str,
    batch: int,
    threads: int,
    *,
    rounds: int = 7,
    others: Others | None = None,
    bf16: bool = False,
    device: str = "cpu",
) -> list[Row]:
    """A row for each contender, all taking turns; the first round is not counted. A device is waited for."""
    with on_threads(threads):
        jobs, num = contenders(net, batch, others, bf16, device), _steps(net, batch)
        times = in_turns(jobs, rounds, threads, device)
    rows = []
    for name in jobs:
        wall, cpu, counted = (seconds / num for seconds in times.medians(name))
        ratio = times.ratio(name, OURS)
        rows.append(Row(net, batch, threads, name, 1e3 * wall, 1e3 * cpu, batch / counted, ratio))
    return rows


HEADER = ("net", "batch", "threads", "contender", "ms/step", "CPU-ms/step", "images·steps/s", "ours is", "of roofline")


def cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """A row as words; `rows` are those it was measured with, for its share of the roofline."""
    floor = next(r.ratio for r in rows if r.name == ROOFLINE)
    times = "-" if row.name in (OURS, ROOFLINE) else f"{row.ratio:.2f} x"
    speed = (f"{row.ms:.3g}", f"{row.cpu_ms:.3g}", f"{row.rate:,.0f}")
    return row.net, str(row.batch), str(row.threads), row.name, *speed, times, f"{100 * floor / row.ratio:.0f} %"


def table(rows: Sequence[Row]) -> str:
    """The rows of one or more measurements as a Markdown table."""
    return markdown(HEADER, [cells(row, [r for r in rows if r[:3] == row[:3]]) for row in rows], 4)
