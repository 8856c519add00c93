"""Folders of runs as `thalweg train` and the monitor leave them, without a training."""

import functools
import io
import json
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image

REFERENCE = {"vendi": [1.0, 0.03], "coverage": [0.95, 0.02], "duplicates": [0.002, 0.001], "nearest_train": [1.0, 0.04]}
GUARD = {"policy": "rollback", "max_gap": 100.0, "min_spread": 0.02}


def write_run(
    folder: Path,
    *,
    steps: int = 400,
    total: int = 1000,
    finished: bool = False,
    collapse: int | None = None,
    last: dict[str, Any] | None = None,
    rollbacks: int = 0,
) -> Path:
    """A run of `total` steps that has come to `steps`; variety is lost from step `collapse` on, for 200 steps.

    `last`: figures of the last row of the log, in place of usual ones.
    """
    folder.mkdir(parents=True)
    run = {"data": {"name": "mnist"}, "train": {"steps": total, "guard": GUARD}}
    config = {"recipe": "pcd-image", "command": f"thalweg train mnist -o {folder.name}", "run": run}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "plan.json").write_text(json.dumps({"num_steps": total, "step_seconds": 0.05}))
    rng = random.Random(0)
    rows = [_row(step, rng) for step in range(10, steps + 1, 10)]
    rows[-1].update(last or {})
    _lines(folder / "metrics.jsonl", rows)
    looks = [look(step, rng, collapse) for step in range(100, steps + 1, 100)]
    _lines(folder / "monitor.jsonl", looks)
    for row in looks:
        picture(folder / "monitor" / f"step-{row['step']:08d}.png", 1 if row["suspicion"]["vendi"] >= 1 else 8)
    checkpoint = folder / "checkpoints" / f"step-{steps:08d}"
    checkpoint.mkdir(parents=True)
    guard = {"tuple": [None, rollbacks, 300], "fields": ["origin", "rollbacks", "acted"]}
    state = {"step": steps, "seconds": steps * 0.05, "tree": {"dict": [["guard", guard]]}}
    (checkpoint / "state.json").write_text(json.dumps(state))
    if finished:
        (folder / "manifest.json").write_text("{}")
    return folder


def look(step: int, rng: random.Random, collapse: int | None) -> dict[str, Any]:
    """A line of monitor.jsonl."""
    bad = collapse is not None and collapse <= step < collapse + 200
    figures = {
        "vendi": (0.35 if bad else 0.95) + rng.uniform(-0.03, 0.03),
        "coverage": (0.4 if bad else 0.9) + rng.uniform(-0.03, 0.03),
        "duplicates": 0.4 if bad else 0.0,
        "nearest_train": 1.0 + rng.uniform(-0.03, 0.03),
    }
    after = collapse is not None and step == collapse + 200
    suspicion = {"vendi": 1.0 if bad else 0.6 if after else 0.1, "coverage": 0.7 if bad else 0.0, "nearest_train": 0.0}
    best = "the Vendi score of 0.35 lies far below 0.95, the run's own best"
    return {
        "step": step,
        "figures": figures,
        "reference": REFERENCE,
        "suspicion": suspicion,
        "alarm": "variety" if bad else None,
        "sentence": f"the samples have become alike: {best}" if bad else "nothing worse than in the run's best window",
        "action": "went back to step 200 and raised the noise of the chains" if step == collapse else None,
        "opinion": None,
    }


def picture(path: Path, kinds: int) -> None:
    """A grid of 5 x 4 tiles of 28 pixels, as `evaluate.pictures.grid` draws it, of so many kinds of bars."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(_drawn(kinds))


@functools.cache
def _drawn(kinds: int) -> bytes:
    sheet = Image.new("RGB", (5 * 30 + 2, 4 * 30 + 2), (128, 128, 128))
    for i in range(20):
        tile, x = Image.new("RGB", (28, 28)), 3 * (i % kinds)
        tile.paste((255, 255, 255), (x, 4, x + 5, 24))
        sheet.paste(tile, (2 + i % 5 * 30, 2 + i // 5 * 30))
    out = io.BytesIO()
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(out, format="PNG")
    return out.getvalue()


def _row(step: int, rng: random.Random) -> dict[str, Any]:
    loss = math.exp(-step / 200) + rng.uniform(0, 0.05)
    figures = {"loss": loss, "gap": rng.uniform(-1, 1), "spread": 0.9, "learning_rate": 1e-3}
    return {"step": step, **figures, "seconds": step * 0.05}


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
