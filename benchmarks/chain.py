"""The speed of chains: this engine, a tutorial's loop, torchebm, ebmkit and the bare convolutions, in one table.

    pip install -e '.[bench]'        # the two libraries, if you want their rows
    python benchmarks/chain.py                 # everything, about ten minutes
    python benchmarks/chain.py --nets cnn --batch 64 --threads 1       # one block of the table
    python benchmarks/chain.py --nets mlp --rounds 31 --json rows.json # more rounds for a busy machine

Every contender runs chains of the same network in turn, in one process (`thalweg.bench.chains` has the details). The
libraries are used as their manuals show: their Langevin sampler on the network, in train mode as in training. "ours is"
says how many times faster the engine is than the row; "of roofline", how much of the row's time the convolutions and
matrix products would take alone, each in oneDNN's best layout.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or threads that wait on a busy machine keep it busy

import torch
from torch import nn

from thalweg.bench import chains as speed


def with_torchebm(energy: nn.Module, x: torch.Tensor, num_steps: int) -> Any:
    """torchebm's LangevinDynamics."""
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__(dtype=torch.float32, device=x.device)
            self.net = energy

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    noise = speed.NOISE / (2 * speed.STEP) ** 0.5
    sampler = LangevinDynamics(Model(), step_size=speed.STEP, noise_scale=noise, device=x.device)
    return lambda: sampler.sample(x=x, n_steps=num_steps)


def with_ebmkit(energy: nn.Module, x: torch.Tensor, num_steps: int) -> Any:
    """ebmkit's LangevinDynamics."""
    from ebm.samplers.langevin import LangevinDynamics

    sampler = LangevinDynamics(step_size=speed.STEP, noise_scale=speed.NOISE)
    return lambda: sampler.sample(energy, x, steps=num_steps)


def rivals() -> dict[str, Any]:
    """The libraries that import here."""
    found: dict[str, Any] = {}
    for name, module, make in (("torchebm", "torchebm", with_torchebm), ("ebmkit", "ebm", with_ebmkit)):
        try:
            version = getattr(__import__(module), "__version__", "")
        except ImportError as error:
            print(f"{name} is left out: {error}")
        else:
            found[f"{name} {version}".strip()] = make
    return found


def processor() -> str:
    """Model name and the widest vector instructions, where the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    if torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name()}"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=list(speed.NETS), default=list(speed.NETS))
    parser.add_argument("--batch", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count; medians are over these")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on a GPU --threads 1 is enough")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


def main() -> None:
    args, others, rows = arguments(), rivals(), []
    refusal = speed.bf16_pays(args.device)
    print(processor())
    if refusal:
        print(refusal)
    for net in args.nets:
        for batch in args.batch:
            for threads in args.threads:
                how = {"rounds": args.rounds, "others": others, "bf16": refusal is None, "device": args.device}
                measured = speed.measure(net, batch, threads, **how)
                rows += measured
                print("\n" + speed.table(measured), flush=True)
    if args.json:
        result = {"processor": processor(), "bf16": refusal, "rows": [row._asdict() for row in rows]}
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
