"""How often the monitor of a run raises a false alarm, how soon it sees a collapse, and what it costs.

    python benchmarks/monitor_alarms.py healthy -o FOLDER        # 40 short runs, their looks kept in FOLDER
    python benchmarks/monitor_alarms.py false FOLDER              # alarms in these, and in 1,000 bootstrapped histories
    python benchmarks/monitor_alarms.py planted FOLDER            # steps from a planted collapse to the alarm
    python benchmarks/monitor_alarms.py record FOLDER FILE        # the figures as JSON, for the tests

Healthy runs are contrastive divergence with persistent chains and dual score matching, on points in the plane and on
8 x 8 digits. A bootstrapped history takes one run: the trend of each figure, its end held, and blocks of four looks of
the residuals. A collapse is planted in the samples of the looks, from the middle of a run on. The constants of the test
(`monitor/sequential.py`) were set on the first 22 runs; rates are told of even and of odd seeds.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.data.catalog import Dataset
from thalweg.data.in_memory import given_dataset
from thalweg.data.toy import TOYS
from thalweg.monitor import sequential
from thalweg.monitor.diversity import Diversity
from thalweg.monitor.run_monitor import LookSamples
from thalweg.run import monitoring
from thalweg.run.given import Given
from thalweg.run.in_memory import fit_in_memory
from thalweg.run.request import Request

BLOCK = 4
PCD_DIGITS = ["energy.channels=[8,16,16]", "train.batch_size=32", "objective.buffer_size=500"]
DUAL_DIGITS = ["energy.widths=[16,32]", "energy.num_blocks=[1,1]", "augment=null", "train.batch_size=32"]
SETUPS: dict[str, dict[str, Any]] = {  # steps between looks are those that a run of the recipe takes, about
    "chains, eight points": {"recipe": "pcd-vector", "data": "eight-gaussians", "steps": 500, "every": 25},
    "chains, moons": {"recipe": "pcd-vector", "data": "two-moons", "steps": 500, "every": 25},
    "chains, digits": {"recipe": "pcd-conv-image", "data": "digits", "steps": 400, "every": 25, "own": PCD_DIGITS},
    "score, eight points": {"recipe": "dual-vector", "data": "eight-gaussians", "steps": 800, "every": 100},
    "score, digits": {"recipe": "dual-image", "data": "digits", "steps": 500, "every": 50, "own": DUAL_DIGITS},
}


def dataset(name: str, seed: int) -> Dataset:
    """2,000 points of a toy, or 1,797 digits of 8 x 8, a fifth held out."""
    if name == "digits":
        x, y = load_digits(return_X_y=True)
        return given_dataset(
            torch.from_numpy(x / 16).float().view(-1, 1, 8, 8), torch.from_numpy(y), held_out=0.2, seed=seed
        )
    return given_dataset(TOYS[name].sample(2500, generator(seed, "toy")), held_out=0.2, seed=seed)


def watched(setup: dict[str, Any], seed: int) -> tuple[Dataset, list[tuple[int, Tensor]]]:
    """The data of a run and the samples of its looks, by step. The policy is to warn: a false alarm changes nothing."""
    data, looks = dataset(setup["data"], seed), []

    class Kept(monitoring.RunSamples):
        def __call__(self, state: Any, precision: str, share: float) -> LookSamples:
            look = super().__call__(state, precision, share)
            looks.append((state.step, look.x))
            return look

    overrides = [
        *setup.get("own", []),
        f"monitor.every={setup['every']}",
        "monitor.policy=warn",
        "train.precision=fp32",
    ]
    request = Request(
        data="the data in memory", recipe=setup["recipe"], steps=setup["steps"], seed=seed, overrides=overrides,
        given=Given(data=data),
    )  # fmt: skip
    with patch.object(monitoring, "RunSamples", Kept):
        fit_in_memory(request)
    return data, looks


def healthy(folder: Path, runs: int) -> None:
    """Train, and keep the samples of the looks: a file a run."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(runs):
        name = list(SETUPS)[k % len(SETUPS)]
        path = folder / f"{k:02d}.safetensors"
        if not path.exists():
            data, looks = watched(SETUPS[name], seed=k)
            tensors = {f"{step:06d}": x for step, x in looks} | {"held_out": data.held_out, "train": data.train}
            if data.held_out_labels is not None and data.train_labels is not None:
                tensors |= {"held_out_labels": data.held_out_labels, "train_labels": data.train_labels}
            save_file(
                {key: value.contiguous() for key, value in tensors.items()}, path, {"setup": name, "seed": str(k)}
            )
        print(path, name, flush=True)


class Run(NamedTuple):
    """A run that was watched: its setup, seed and classes, and the samples of its looks by step."""

    setup: str
    seed: int
    diversity: Diversity
    train: Tensor
    looks: dict[int, Tensor]

    @property
    def reference(self) -> sequential.ReferenceFigures:
        return self.diversity.reference(max(map(len, self.looks.values())))


def runs(folder: Path) -> list[Run]:
    """The runs in a folder."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        diversity = Diversity(tensors["held_out"], tensors["train"], labels=tensors.get("held_out_labels"))
        looks = {int(key): x for key, x in tensors.items() if key.isdigit()}
        found.append(Run(about["setup"], int(about["seed"]), diversity, tensors["train"], looks))
    return found


def judged(rows: Sequence[Mapping[str, float]], reference: sequential.ReferenceFigures) -> list[str | None]:
    """The alarm of each look, None for most."""
    memory, alarms = sequential.start(), []
    for row in rows:
        memory, found = sequential.update(memory, row, reference)
        alarms.append(found.alarm)
    return alarms


def recorded(run: Run) -> dict[str, Any]:
    """The figures of a run's looks, as JSON holds them."""
    rows = [run.diversity.figures(x) for x in run.looks.values()]
    return {
        "setup": run.setup,
        "seed": run.seed,
        "steps": list(run.looks),
        "reference": {name: [round(value, 4) for value in pair] for name, pair in run.reference.items()},
        "figures": {name: [round(row[name], 4) for row in rows] for name in rows[0]},
    }


def history(record: Mapping[str, Any], length: int, rng: np.random.Generator) -> list[dict[str, float]]:
    """A bootstrapped history: the run's trend, its end held, and blocks of the residuals of a run drawn anew.

    The trend is a running median of five looks. A block has all figures of the same looks, so that they stay dependent.
    """
    names = list(record["figures"])
    table = np.array([record["figures"][name] for name in names])  # (figures, looks)
    n = table.shape[1]
    trend = np.stack([np.median(table[:, max(0, k - 2) : k + 3], axis=1) for k in range(n)], axis=1)
    end = trend[:, -max(1, n // 4) :].mean(axis=1, keepdims=True)
    trend = np.concatenate([trend, np.repeat(end, max(0, length - n), axis=1)], axis=1)[:, :length]
    residuals = table - trend[:, :n]
    starts = rng.integers(0, max(1, n - BLOCK + 1), size=-(-length // BLOCK))
    drawn = np.concatenate([residuals[:, k : k + BLOCK] for k in starts], axis=1)[:, :length]
    return [dict(zip(names, column, strict=True)) for column in (trend + drawn).T.tolist()]


def false_alarms(records: list[dict[str, Any]], histories: int, length: int) -> dict[str, Any]:
    """How many runs raise an alarm, and how many bootstrapped histories."""
    as_rows = lambda r: [dict(zip(r["figures"], row, strict=True)) for row in zip(*r["figures"].values(), strict=True)]  # noqa: E731
    real = [(r["setup"], any(judged(as_rows(r), r["reference"]))) for r in records]
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"runs": len(real), "runs with an alarm": sum(alarm for _, alarm in real)}
    for parity, name in ((0, "even seeds"), (1, "odd seeds")):
        chosen = [r for r in records if r["seed"] % 2 == parity]
        picks = rng.integers(0, len(chosen), size=histories)
        alarms = [
            next(filter(None, judged(history(chosen[k], length, rng), chosen[k]["reference"])), None) for k in picks
        ]
        found[f"histories of {length} looks, {name}"] = histories
        found[f"of these with an alarm, {name}"] = sum(alarm is not None for alarm in alarms)
        found[f"by figure, {name}"] = {k: alarms.count(k) for k in sorted(set(filter(None, alarms)))}
    return found


def plants(run: Run, num: int) -> dict[str, Callable[[Tensor, float, torch.Generator], Tensor]]:
    """Collapses by name: (a look's samples, share of the way in [0, 1], generator) to what they become."""

    def of_classes(number: int) -> Callable[..., Tensor]:
        def collapse(x: Tensor, share: float, draws: torch.Generator) -> Tensor:
            classes = run.diversity.classes(x)
            kept = classes.bincount().argsort(descending=True)[:number]
            own = torch.isin(classes, kept).nonzero()[:, 0]
            picks = own[torch.randint(len(own), (len(x),), generator=draws)]
            return x[picks] + 0.03 * x.std() * torch.randn(x.shape, generator=draws)

        return collapse

    def alike(x: Tensor, share: float, draws: torch.Generator) -> Tensor:
        few = x[torch.randint(4, (len(x),), generator=draws)]
        return few + 0.01 * x.std() * torch.randn(x.shape, generator=draws)

    def memorised(x: Tensor, share: float, draws: torch.Generator) -> Tensor:
        return run.train[torch.randint(len(run.train), (len(x),), generator=draws)]

    def drift(x: Tensor, share: float, draws: torch.Generator) -> Tensor:
        noise = (
            torch.rand(x.shape, generator=draws) if x.ndim == 4 else 2 * x.std() * torch.randn(x.shape, generator=draws)
        )
        return (1 - share) * x + share * noise

    return {f"{k} of 10 classes": of_classes(k) for k in (1, 2, 5)} | {
        "near-duplicates": alike, "training rows": memorised, "drift to noise": drift,
    }  # fmt: skip


def planted(run: Run, slow: int) -> list[dict[str, Any]]:
    """For each collapse the steps from its beginning to the alarm; a drift takes `slow` steps."""
    steps, rows = list(run.looks), []
    begin = len(steps) // 2
    every = steps[1] - steps[0]
    for name, plant in plants(run, len(run.looks[steps[0]])).items():
        values = [run.diversity.figures(run.looks[step]) for step in steps[:begin]]
        later = [*range(begin, len(steps)), *[len(steps) - 1] * 20]  # the last look goes on, where more are needed
        for k, place in enumerate(later):
            share = min(1.0, (k + 1) * every / slow)
            x = plant(run.looks[steps[place]], share, generator(run.seed, name, k))
            values.append(run.diversity.figures(x))
        alarms = judged(values, run.reference)
        first = next((k for k in range(begin, len(alarms)) if alarms[k]), None)
        early = any(alarms[:begin])
        delay = None if first is None else (first - begin + 1) * every
        rows.append(
            {
                "setup": run.setup,
                "seed": run.seed,
                "plant": name,
                "delay": delay,
                "figure": first and alarms[first],
                "early": early,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """TestResult, and the median and largest delay in steps, by setup and plant."""
    text = "| setup | collapse | found | steps, median | most | by |\n|---|---|---|---|---|---|\n"
    for setup, plant in dict.fromkeys((row["setup"], row["plant"]) for row in rows):
        some = [row for row in rows if (row["setup"], row["plant"]) == (setup, plant)]
        delays = [row["delay"] for row in some if row["delay"] is not None]
        by = ", ".join(sorted({row["figure"] for row in some if row["figure"]}))
        middle, most = (f"{np.median(delays):.0f}", max(delays)) if delays else ("-", "-")
        text += f"| {setup} | {plant} | {len(delays)} of {len(some)} | {middle} | {most} | {by} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("healthy")
    train.add_argument("-o", "--out", type=Path, required=True)
    train.add_argument("--runs", type=int, default=40)
    for name in ("false", "planted", "record"):
        commands.add_parser(name).add_argument("folder", type=Path)
    commands.choices["record"].add_argument("file", type=Path)
    commands.choices["false"].add_argument("--histories", type=int, default=1000)
    commands.choices["false"].add_argument("--looks", type=int, default=60)
    args = parser.parse_args()
    if args.command == "healthy":
        healthy(args.out, args.runs)
    elif args.command == "record":
        args.file.write_text(json.dumps([recorded(run) for run in runs(args.folder)]))
    elif args.command == "false":
        print(
            json.dumps(false_alarms([recorded(run) for run in runs(args.folder)], args.histories, args.looks), indent=2)
        )
    else:
        slow = lambda run: 200 if run.setup.startswith("chains") else 1000  # noqa: E731
        print(table([row for run in runs(args.folder) for row in planted(run, slow(run))]))


if __name__ == "__main__":
    main()
